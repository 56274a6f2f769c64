//! Volumes of guests: files and folders of the host in the guest, by virtio-fs.
//!
//! ```text
//! guest's kernel: virtiofs -> virtqueue -> VMM (virtio::fs) -> socket pair -> hartpod-fs (this module) -> files of the host
//! ```
//!
//! The guest speaks FUSE. The VMM owns the queue, looks at nothing of a request but where it is in the guest's memory, and copies it to the
//! file server, one per guest: a process in a jail of its own, for which neither a path of the host nor the guest's memory exists. A volume is a
//! descriptor that the daemon hands it; the guest sees it as an entry of the file system's root, by its number. hartpod-fs is started with the pod's first
//! volume, and ends with the VMM.

pub mod control;
pub mod fuse;
#[cfg(any(test, feature = "fuzz"))]
pub mod fuzz_entry;
mod pool;
pub mod process;
pub mod server;
pub mod wire;
