//! Masked and read-only paths: what of /proc and /sys a container is not to see, or not to change.

use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;

use super::mount_plan::MOUNT_ATTR_RDONLY;
use super::root::{PointKind, Root, kind_of};
use crate::errno::Errno;
use crate::failure::Failure;
use crate::mount;
use crate::pod::private_root::{EMPTY, NULL};
use crate::sys::mount_attr::{self, MountAttr, Reach};

/// Puts /dev/null over files and an empty read-only folder over folders. Both come from the agent's own mounts, so nothing
/// in the image can stand in for them. A path that does not exist needs no mask.
pub(crate) fn mask(root: &Root, paths: &[String]) -> Result<(), Failure> {
    for path in paths {
        on_existing(root, path, |target| match kind_of(target)? {
            PointKind::File => mount::attach(mount::clone_of(NULL, false)?, target),
            PointKind::Folder => mount::attach(mount::clone_of(EMPTY, false)?, target),
        })
        .map_err(|errno| Failure::Path { what: "mask".into(), path: path.into(), errno })?;
    }
    Ok(())
}

/// Mounts each path read-only over itself, with all that is mounted below.
pub(crate) fn make_read_only(root: &Root, paths: &[String]) -> Result<(), Failure> {
    let attr = MountAttr { set: MOUNT_ATTR_RDONLY, ..MountAttr::default() };
    for path in paths {
        on_existing(root, path, |target| {
            let tree = mount::clone_at(target, "", true)?;
            mount_attr::set(tree.as_fd(), Reach::Tree, &attr)?;
            mount::attach(tree, target)
        })
        .map_err(|errno| Failure::Path {
            what: "make read-only".into(),
            path: path.into(),
            errno,
        })?;
    }
    Ok(())
}

fn on_existing(
    root: &Root,
    path: &str,
    change: impl FnOnce(BorrowedFd<'_>) -> Result<(), Errno>,
) -> Result<(), Errno> {
    match root.resolve(Path::new(path)) {
        Ok(target) => change(target.as_fd()),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(()),
        Err(e) => Err(e),
    }
}
