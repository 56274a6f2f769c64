//! The mount API of Linux 5.2: mounts are made, changed and only then attached.

use std::ffi::OsStr;
use std::io::Read as _;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

use crate::errno::Errno;

/// A new mount of a new (or shared, where the file system is like that) superblock, not attached to anything.
pub(crate) fn new(fstype: &str, source: &str, options: &[(&str, Option<&str>)]) -> Result<OwnedFd, Errno> {
    let context = fsopen(fstype, FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_set_string(&context, "source", source)?;
    for (key, value) in options {
        match value {
            Some(value) => fsconfig_set_string(&context, *key, *value)?,
            None => fsconfig_set_flag(&context, *key)?,
        }
    }
    finish(&context)
}

/// The mount of a configured context.
pub(crate) fn finish(context: &OwnedFd) -> Result<OwnedFd, Errno> {
    fsconfig_create(context)?;
    Ok(fsmount(context, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())?)
}

/// What the kernel has to say about a context that it refused, e.g. which layer is missing.
pub(crate) fn complaint(context: OwnedFd) -> String {
    let mut context = std::fs::File::from(context);
    let mut buffer = [0; 1024];
    let mut lines = Vec::new();
    // One message a read; ENODATA ends it.
    while let Ok(n @ 1..) = context.read(&mut buffer) {
        let line = String::from_utf8_lossy(&buffer[..n]);
        // "e overlay: .." - the first letter is the message's level.
        lines.push(line.get(2..).unwrap_or_default().trim_end().to_owned());
    }
    lines.join(", ")
}

/// A copy of the mount at a path, as bind mounts are; symlinks are followed.
pub(crate) fn clone_of(path: impl AsRef<OsStr>, recursive: bool) -> Result<OwnedFd, Errno> {
    clone_at(rustix::fs::CWD, path, recursive)
}

/// A copy of the mount that `path` below `dir` is on, with that as its root; empty: `dir` itself.
pub(crate) fn clone_at(
    dir: BorrowedFd<'_>,
    path: impl AsRef<OsStr>,
    recursive: bool,
) -> Result<OwnedFd, Errno> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    flags.set(OpenTreeFlags::AT_RECURSIVE, recursive);
    flags.set(OpenTreeFlags::AT_EMPTY_PATH, path.as_ref().is_empty());
    Ok(open_tree(dir, path.as_ref(), flags)?)
}

/// Puts a mount on a file or folder.
pub(crate) fn attach(mount: impl AsFd, target: impl AsFd) -> Result<(), Errno> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(mount, "", target, "", flags)?)
}
