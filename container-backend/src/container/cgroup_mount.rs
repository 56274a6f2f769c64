//! What a container sees as /sys/fs/cgroup.
//!
//! On v2, the tree as its cgroup namespace shows it. On v1 (hybrid hosts), as containerd and runc do it: a tmpfs with a folder
//! per hierarchy, on which the container's own cgroup is mounted, so that programs that look at /proc/self/cgroup and at
//! /sys/fs/cgroup/<controller>/ find their limits.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, mkdirat, openat, symlinkat};

use super::mount_plan::{MOUNT_ATTR_RDONLY, MountPlan};
use super::mounts::Context;
use super::root::PointKind;
use crate::errno::Errno;
use crate::mount;
use crate::sys::mount_attr::{self, MountAttr, Reach};

/// Where it comes from.
#[derive(Debug, Clone, Copy)]
pub(crate) enum CgroupTree<'a> {
    /// v2, from the container's leaf on: it has a cgroup namespace.
    Private,
    /// v2, all of it, which is mounted here. A mount of its own, made in the host's cgroup namespace, would take the node's mount
    /// its options (nsdelegate, memory_recursiveprot): they belong to the one superblock, and the last mount there sets them.
    Host(&'a Path),
    /// The container's folder in each v1 hierarchy, by the name of its mount point.
    V1(&'a [(String, PathBuf)]),
}

pub(super) fn attach(context: Context<'_>, plan: &MountPlan) -> Result<(), Errno> {
    let point = context.root.resolve_or_make(&plan.destination, PointKind::Folder)?;
    let tree = match context.cgroups {
        CgroupTree::Private => mount::new("cgroup2", "cgroup", &[])?,
        CgroupTree::Host(tree) => mount::clone_of(tree, false)?,
        CgroupTree::V1(hierarchies) => return attach_v1(context, plan, hierarchies, &point),
    };
    mount_attr::set(tree.as_fd(), Reach::One, &plan.attr)?;
    mount::attach(&tree, &point)
}

fn attach_v1(
    context: Context<'_>,
    plan: &MountPlan,
    hierarchies: &[(String, PathBuf)],
    point: &OwnedFd,
) -> Result<(), Errno> {
    let tmpfs = mount::new("tmpfs", "cgroup", &[("mode", Some("755"))])?;
    let writable = MountAttr { set: plan.attr.set & !MOUNT_ATTR_RDONLY, ..plan.attr };
    mount_attr::set(tmpfs.as_fd(), Reach::One, &writable)?;
    mount::attach(&tmpfs, point)?;
    let folder = context.root.resolve(&plan.destination)?;
    for (name, cgroup) in hierarchies {
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
