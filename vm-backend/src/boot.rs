//! What the parent hands a VMM: one message, and the descriptors that it names.
//!
//! The message is JSON in one packet on a `SOCK_SEQPACKET` socket pair (the VMM's standard input), the descriptors come with it
//! (`SCM_RIGHTS`). A [`Guest`] is a message that was checked as a whole, with its descriptors.

mod claims;
mod guest;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde::{Deserialize, Serialize};

pub use claims::{ClaimError, Claims};
pub(crate) use guest::disk_extents;
pub use guest::{BootError, BootFiles, DeviceFiles, FIXED_SLOTS, Guest, NetDevice, Refused, Reports};

/// The VMM's first act: it keeps nothing that its parent did not mean to give, leads a session of its own, and may have as many
/// descriptors as its parent allows at all: each layer of a container is one.
///
/// # Errors
/// The kernel refuses.
pub fn leave_parent() -> std::io::Result<()> {
    crate::sys::close_inherited()?;
    rustix::process::setsid()?;
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit })?;
    Ok(())
}

/// Index of a descriptor among those that came with a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fd(pub usize);

/// Everything of a guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootMessage {
    /// User and group that the VMM becomes, 1 to 4294967294, which nothing else on the machine has. Without, it stays root.
    pub user: Option<u32>,
    /// RAM in MiB, 32 to 1048576: the ceiling; pages are taken when the guest first touches them.
    pub memory_mib: u32,
    /// vCPUs, 1 to 64.
    pub vcpus: u32,
    /// /dev/kvm.
    pub kvm: Fd,
    /// An Image as the kernel's build makes it, uncompressed, in a regular file.
    pub kernel: Fd,
    /// A regular file.
    pub initramfs: Fd,
    /// At most 1023 printable bytes (COMMAND_LINE_SIZE of riscv).
    pub command_line: String,
    /// A regular file to which the exit reason is written, one JSON line per event: see `status`.
    pub status: Fd,
    /// A regular file or a pipe: the guest's console (SBI DBCN), appended up to `console_limit` bytes.
    pub console: Fd,
    /// Bytes.
    pub console_limit: u64,
    /// A listening `SOCK_SEQPACKET` unix socket for requests at run time: fill or empty a slot, power off.
    pub control: Fd,
    /// A listening unix stream socket: a connection that begins with `CONNECT <port>\n` is answered `OK <port>\n` and becomes a vsock stream.
    pub vsock: Option<Fd>,
    pub net: Option<Net>,
    /// A balloon that only reports free pages.
    pub balloon: bool,
    /// MMIO slots that are empty at boot and can be filled at run time; with the three first and the disks at most 32.
    pub spare_slots: u32,
    /// Disks that are there at boot, in slots 3 and up.
    pub disks: Vec<Disk>,
    /// Which interrupt controller the guest gets.
    pub interrupts: Interrupts,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Interrupts {
    /// A PLIC in the VMM: runs everywhere.
    Plic,
    /// The AIA in the kernel: fewer exits, where a probe said that it works.
    Aia,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Net {
    /// A tap with IFF_VNET_HDR, opened in the pod's network namespace.
    pub tap: Fd,
    pub mac: [u8; 6],
    pub mtu: u16,
}

/// A virtio-blk device of several files, seen by the guest as the partitions of one GPT disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// Partitions, the first is partition 1; 1 to 128.
    pub extents: Vec<Extent>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Extent {
    pub file: Fd,
    /// Writes fail with VIRTIO_BLK_S_IOERR.
    pub read_only: bool,
}
