//! What a container sees as /sys/fs/cgroup.
//!
//! On v2, the tree as its cgroup namespace shows it. On v1 (hybrid hosts), as containerd and runc do it: a tmpfs with a folder
//! per hierarchy, on which the container's own cgroup is mounted, so that programs that look at /proc/self/cgroup and at
//! /sys/fs/cgroup/<controller>/ find their limits.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, mkdirat, openat, symlinkat};

use super::mount_plan::{MOUNT_ATTR_RDONLY, MountPlan};
use super::mounts::Context;
use super::root::PointKind;
use crate::errno::Errno;
use crate::mount;
use crate::sys::mount_attr::{self, MountAttr, Reach};

pub(super) fn attach(context: Context<'_>, plan: &MountPlan) -> Result<(), Errno> {
    let point = context.root.resolve_or_make(&plan.destination, PointKind::Folder)?;
    if context.v1_cgroups.is_empty() {
        let tree = mount::new("cgroup2", "cgroup", &[])?;
        mount_attr::set(tree.as_fd(), Reach::One, &plan.attr)?;
        return mount::attach(&tree, &point);
    }
    let tmpfs = mount::new("tmpfs", "cgroup", &[("mode", Some("755"))])?;
    let writable = MountAttr { set: plan.attr.set & !MOUNT_ATTR_RDONLY, ..plan.attr };
    mount_attr::set(tmpfs.as_fd(), Reach::One, &writable)?;
    mount::attach(&tmpfs, &point)?;
    let folder = context.root.resolve(&plan.destination)?;
    for (name, cgroup) in context.v1_cgroups {
        attach_hierarchy(&folder, name, cgroup, &plan.attr)?;
    }
    mount_attr::set(tmpfs.as_fd(), Reach::One, &plan.attr)
}

fn attach_hierarchy(folder: &OwnedFd, name: &str, cgroup: &Path, attr: &MountAttr) -> Result<(), Errno> {
    let tree = mount::clone_of(cgroup, false)?;
    mount_attr::set(tree.as_fd(), Reach::One, attr)?;
    mkdirat(folder, name, Mode::from_raw_mode(0o755))?;
    let point = openat(folder, name, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    mount::attach(&tree, &point)?;
    // `cpu,cpuacct` is known as `cpu` and as `cpuacct` too.
    for alias in name.split(',').filter(|alias| *alias != name) {
        symlinkat(name, folder, alias)?;
    }
    Ok(())
}
