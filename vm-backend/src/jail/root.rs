//! A root file system with nothing in it, that nothing can be put into.

use std::os::fd::OwnedFd;

use rustix::fs::{CWD, Mode, OFlags, mkdirat};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, UnmountFlags,
    fsconfig_create, fsconfig_reconfigure, fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen,
    mount_change, move_mount, unmount,
};
use rustix::process::{chdir, chroot, fchdir, pivot_root};

use super::{At as _, JailError};

/// The only thing in the file system, and empty.
const ROOT: &str = "empty";

/// Lets go of the host's mounts, in a mount namespace of this process's own. Its root is then the folder of its own descriptors and nothing
/// else: an instance of proc that knows only this pid namespace, and no kernel's settings.
pub(super) fn replace_by_own_files() -> Result<(), JailError> {
    make_private()?;
    let proc = own_proc().at("make a proc of its own")?;
    become_root(&proc)?;
    // In a chroot the kernel makes no user namespaces, as below.
    chroot("self/fd").at("enter the folder of its own files")?;
    chdir("/").at("enter the folder of its own files")
}

fn own_proc() -> rustix::io::Result<OwnedFd> {
    let context = fsopen("proc", FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "source", "hartpod-fs")?;
    fsconfig_set_string(&context, "subset", "pid")?;
    fsconfig_create(&context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_RDONLY
        | MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// Or the host's mounts would go too.
fn make_private() -> Result<(), JailError> {
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)
        .at("make the mounts private")
}

/// Puts a mount in the place of all others.
fn become_root(root: &OwnedFd) -> Result<(), JailError> {
    // Any folder will do that is not the root itself: it is gone in a moment, and only in this namespace.
    let point = rustix::fs::open("/proc", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .at("find a place for the new root")?;
    let empty_paths = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    move_mount(root, "", &point, "", empty_paths).at("attach the new root")?;
    fchdir(root).at("enter the new root")?;
    // The host's root ends up on top of it, and is taken off.
    pivot_root(".", ".").at("make the new root the root")?;
    unmount(".", UnmountFlags::DETACH).at("let go of the host's mounts")
}

/// Lets go of the host's mounts, in a mount namespace of this process's own.
pub(super) fn replace_by_nothing() -> Result<(), JailError> {
    make_private()?;
    let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).at("make an empty root")?;
    let root = empty(&context).at("make an empty root")?;
    become_root(&root)?;
    mkdirat(CWD, ROOT, Mode::from_raw_mode(0o555)).at("make the empty root")?;
    // Read-only as a whole, not only this mount of it.
    fsconfig_set_flag(&context, "ro")
        .and_then(|()| fsconfig_reconfigure(&context))
        .at("make the empty root read-only")?;
    // Not for the folder's sake: a process whose root is not its namespace's may not make user namespaces, in which it would have
    // capabilities again.
    chroot(ROOT).at("enter the empty root")?;
    chdir("/").at("enter the empty root")
}

/// A file system with room for a folder.
fn empty(context: &OwnedFd) -> rustix::io::Result<OwnedFd> {
    for (key, value) in [("source", "hartpod-vmm"), ("mode", "555"), ("size", "4096"), ("nr_inodes", "2")] {
        fsconfig_set_string(context, key, value)?;
    }
    fsconfig_create(context)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NODEV
        | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}
