//! Virtio devices (VIRTIO 1.2) behind the MMIO transport, version 2.

pub mod balloon;
pub mod blk;
pub mod chain;
mod device;
pub mod fs;
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz_entry;
mod interrupt;
pub mod net;
pub mod queue;
mod sys;
#[cfg(any(test, feature = "fuzz"))]
pub mod test_driver;
pub mod transport;
pub mod vsock;
pub mod worker;

pub use device::{ActivateError, Activation, ActiveQueue, Device, read_config_space};
pub use interrupt::{Interrupt, Line};
pub use transport::{QUEUE_NOTIFY, QUEUES, Removal, Slot, SlotError};
