//! `mount_setattr(2)`.
#![allow(unsafe_code)]

use std::os::fd::{AsRawFd, BorrowedFd};

use crate::errno::Errno;

/// Kernel ABI `struct mount_attr`, version 0 (32 bytes).
#[repr(C)]
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct MountAttr {
    /// `MOUNT_ATTR_*` to set.
    pub(crate) set: u64,
    /// `MOUNT_ATTR_*` to clear.
    pub(crate) clear: u64,
    /// One of `MS_SHARED`, `MS_SLAVE`, `MS_PRIVATE`, `MS_UNBINDABLE`; 0 keeps it.
    pub(crate) propagation: u64,
    /// With [`MOUNT_ATTR_IDMAP`]: the user namespace whose ids the files have.
    pub(crate) userns_fd: u64,
}

/// linux/mount.h
const MOUNT_ATTR_IDMAP: u64 = 0x10_0000;

/// How far a change reaches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reach {
    /// The mount that the descriptor refers to.
    One,
    /// It and everything mounted below.
    Tree,
}

const AT_EMPTY_PATH: libc::c_int = 0x1000;
const AT_RECURSIVE: libc::c_int = 0x8000;

/// Changes the attributes of the mount whose root (or any part of which) `mount` is open on.
pub(crate) fn set(mount: BorrowedFd<'_>, reach: Reach, attr: &MountAttr) -> Result<(), Errno> {
    if *attr == MountAttr::default() {
        return Ok(());
    }
    let flags = AT_EMPTY_PATH | if reach == Reach::Tree { AT_RECURSIVE } else { 0 };
    // SAFETY: the path is an empty C string, attr has the kernel's layout and its size is passed along.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            std::ptr::from_ref(attr),
            size_of::<MountAttr>(),
        )
    };
    if result < 0 { Err(std::io::Error::last_os_error().into()) } else { Ok(()) }
}

/// Shows the files of a mount that is not attached yet with the ids of a user namespace: what is 0 on the disk is its root's.
///
/// EINVAL: its file system cannot do that.
pub(crate) fn map_ids(
    mount: BorrowedFd<'_>,
    reach: Reach,
    user_namespace: BorrowedFd<'_>,
) -> Result<(), Errno> {
    #[allow(clippy::cast_sign_loss)] // an open descriptor
    let userns_fd = user_namespace.as_raw_fd() as u64;
    set(mount, reach, &MountAttr { set: MOUNT_ATTR_IDMAP, userns_fd, ..MountAttr::default() })
}
