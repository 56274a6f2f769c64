//! A file or folder of the node, to be shared with a guest.

use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, StatxFlags, statx};

use crate::container::mount_plan::MOUNT_ATTR_RDONLY;
use crate::errno::Errno;
use crate::mount;
use crate::mount_info::has_mounts_below;
use crate::sys::mount_attr::{self, MountAttr, Reach};

/// What may be done with a volume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VolumeAccess {
    ReadWrite,
    /// Its mount is read-only; what is mounted below stays as it is.
    ReadOnly,
    /// As all that is mounted below.
    ReadOnlyTree,
}

/// A copy of the mount that a path is on, with what is mounted below, attached nowhere: nothing leads out of it, it keeps nothing from being
/// unmounted, and what is mounted later does not show in it. It goes when the last copy of its descriptor is closed.
#[derive(Debug)]
pub struct VolumeTree {
    pub root: OwnedFd,
    pub kind: FileType,
    /// The same for the same file or folder on the same mount.
    pub identity: String,
    /// Something is mounted below that may be writable though the volume is not.
    pub writable_below: bool,
}

impl VolumeTree {
    /// Copies what is at `path`; symlinks are followed. Blocks as long as the file system does. The caller is privileged, and in the node's mount
    /// namespace.
    ///
    /// # Errors
    /// There is nothing at the path, or it cannot be reached or copied.
    pub fn open_blocking(path: &Path, access: VolumeAccess) -> Result<Self, Errno> {
        let source = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        let wanted = StatxFlags::TYPE | StatxFlags::INO | StatxFlags::MNT_ID;
        let found = statx(&source, c"", AtFlags::EMPTY_PATH, wanted)?;
        let root = mount::clone_at(source.as_fd(), "", true)?;
        let private = MountAttr { propagation: libc::MS_PRIVATE, ..MountAttr::default() };
        mount_attr::set(root.as_fd(), Reach::Tree, &private)?;
        let read_only = MountAttr { set: MOUNT_ATTR_RDONLY, ..MountAttr::default() };
        let writable_below = match access {
            VolumeAccess::ReadWrite => false,
            VolumeAccess::ReadOnly => {
                mount_attr::set(root.as_fd(), Reach::One, &read_only)?;
                let path = std::fs::read_link(format!("/proc/self/fd/{}", source.as_raw_fd()))?;
                has_mounts_below(&std::fs::read("/proc/thread-self/mountinfo")?, &path)
            }
            VolumeAccess::ReadOnlyTree => {
                mount_attr::set(root.as_fd(), Reach::Tree, &read_only)?;
                false
            }
        };
        let (major, minor) = (found.stx_dev_major, found.stx_dev_minor);
        let identity = format!("{}:{major}:{minor}:{}", found.stx_mnt_id, found.stx_ino);
        Ok(Self { root, kind: FileType::from_raw_mode(found.stx_mode.into()), identity, writable_below })
    }
}
