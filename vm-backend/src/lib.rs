//! Guests on the H extension: the VMM `hartpod-vmm`, the image that a guest boots from, and the launcher that the daemon starts
//! a VMM with.
//!
//! What it does: KVM, interrupt controllers, FDT, virtio devices over MMIO, guest images. What it does not: anything CRI, layers,
//! networks on the host but the tap that joins a guest to one, what runs inside (the pod agent).
//!
//! Everything that a VMM uses is opened by its parent and handed in over a socket with one [`boot::BootMessage`], so that it can run in an
//! empty root without rights ([`jail`]).

pub mod arch;
pub mod boot;
pub mod bus;
pub mod channel;
pub mod command_line;
pub mod console;
pub mod control;
pub mod counts;
pub mod devices;
pub mod guest_image;
pub mod jail;
pub mod launcher;
pub mod log;
#[cfg(target_arch = "riscv64")]
pub mod machine;
pub mod memory;
pub mod share;
pub mod status;
pub mod stop;
mod sys;
pub mod tap;
pub mod virtio;
