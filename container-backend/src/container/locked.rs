//! Mounts that the root of a user namespace cannot change.
//!
//! What a mount forbids (to write, set-user-ID programs, device nodes, to execute), whoever has CAP_SYS_ADMIN over the mount namespace may take back. But when
//! a user namespace makes a mount namespace out of one that another owns, the kernel locks that in all copies, in copies of these
//! too, and keeps what is mounted below in its place (fs/namespace.c: `lock_mnt_tree`). So what is handed in is attached, complete, in the last mount
//! namespace that is the node's, and the container gets copies of what its own mount namespace, made from that one, has there.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};

use super::hidden_paths;
use super::mount_plan::{MountKind, MountPlan, NewFs};
use super::mounts::{self, Collected, Sealing};
use super::root::{Root, kind_of};
use crate::errno::Errno;
use crate::failure::Failure;
use crate::mount;
use crate::pod::private_root::ROOTFS;

/// Attaches all that is collected at the place of the root file system, under its number, with its attributes and, on a sysfs, the masks. Call it before the
/// user namespace is entered, when the root file system is in safety. The numbers of what it has attached.
pub(super) fn lay_out(
    plan: &[MountPlan],
    masked_paths: &[String],
    collected: &mut Collected,
) -> Result<Vec<usize>, Failure> {
    let failed = |errno| Failure::RootFs { what: "make a place for the mounts".into(), errno };
    let place = mount::new("tmpfs", "mounts", &[("mode", Some("755"))]).map_err(failed)?;
    let point = rustix::fs::open(ROOTFS, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
    mount::attach(place, point.map_err(|e| failed(e.into()))?).map_err(failed)?;
    let place = Root::open(ROOTFS).map_err(failed)?;
    let mut numbers = Vec::new();
    for (number, mount) in plan.iter().enumerate() {
        let Some(tree) = collected.take(number) else { continue };
        attach(&place, number, mount, &tree).map_err(|errno| mount.failure(errno))?;
        if matches!(mount.kind, MountKind::New { fstype: NewFs::Sysfs, .. }) {
            let sysfs = Root::open(path_of(number)).map_err(|errno| mount.failure(errno))?;
            hidden_paths::mask(&sysfs, &below(&mount.destination, masked_paths))?;
        }
        numbers.push(number);
    }
    Ok(numbers)
}

fn attach(place: &Root, number: usize, mount: &MountPlan, tree: &OwnedFd) -> Result<(), Errno> {
    let name = Path::new("/").join(number.to_string());
    let point = place.resolve_or_make(&name, kind_of(tree.as_fd())?)?;
    mounts::set_attributes(mount, tree.as_fd(), Sealing::Now)?;
    mount::attach(tree, point)
}

fn path_of(number: usize) -> PathBuf {
    Path::new(ROOTFS).join(number.to_string())
}

/// Paths as they are seen from a folder that they are in.
fn below(folder: &Path, paths: &[String]) -> Vec<String> {
    let inside = paths.iter().filter_map(|path| Path::new(path).strip_prefix(folder).ok());
    inside.map(|path| format!("/{}", path.display())).collect()
}

/// Copies what is laid out. Call it in the mount namespace that the user namespace has made for itself, before the root file system is attached.
pub(super) fn collect(
    plan: &[MountPlan],
    numbers: &[usize],
    collected: &mut Collected,
) -> Result<(), Failure> {
    for &number in numbers {
        let tree = mount::clone_of(path_of(number), true);
        collected.put(number, tree.map_err(|errno| plan[number].failure(errno))?);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_of_a_mount_are_those_below_it() {
        let paths = ["/sys/firmware", "/proc/kcore", "/system", "/sys//power/x"].map(str::to_owned);
        assert_eq!(below(Path::new("/sys"), &paths), ["/firmware", "/power/x"]);
        assert!(below(Path::new("/other"), &paths).is_empty());
    }
}
