//! A file or folder of the node, to be shared with a guest.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, StatxFlags, statx};

use crate::errno::Errno;
use crate::mount;
use crate::sys::mount_attr::{self, MountAttr, Reach};

/// A copy of the mount that a path is on, with what is mounted below, attached nowhere: nothing leads out of it, it keeps nothing from being
/// unmounted, and what is mounted later does not show in it. It goes when the last copy of its descriptor is closed.
#[derive(Debug)]
pub struct VolumeTree {
    pub root: OwnedFd,
    pub kind: FileType,
    /// The same for the same file or folder on the same mount.
    pub identity: String,
}

impl VolumeTree {
    /// Copies what is at `path`; symlinks are followed. Blocks as long as the file system does. The caller is privileged, and in the node's mount
    /// namespace.
    ///
    /// # Errors
    /// There is nothing at the path, or it cannot be reached or copied.
    pub fn open_blocking(path: &Path) -> Result<Self, Errno> {
        let source = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        let wanted = StatxFlags::TYPE | StatxFlags::INO | StatxFlags::MNT_ID;
        let found = statx(&source, c"", AtFlags::EMPTY_PATH, wanted)?;
        let root = mount::clone_at(source.as_fd(), "", true)?;
        let private = MountAttr { propagation: libc::MS_PRIVATE, ..MountAttr::default() };
        mount_attr::set(root.as_fd(), Reach::Tree, &private)?;
        let (major, minor) = (found.stx_dev_major, found.stx_dev_minor);
        let identity = format!("{}:{major}:{minor}:{}", found.stx_mnt_id, found.stx_ino);
        Ok(Self { root, kind: FileType::from_raw_mode(found.stx_mode.into()), identity })
    }
}
