//! Virtio devices (VIRTIO 1.2) behind the MMIO transport, version 2.

mod device;
mod interrupt;

pub use device::{ActivateError, Activation, ActiveQueue, Device};
pub use interrupt::{Interrupt, Line};
