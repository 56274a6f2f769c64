//! The agent's private root: a tmpfs with the little that containers are made from.
//!
//! It replaces the host's mounts rather than copying them: a copy costs time at each container start and pins what the host
//! has unmounted since. Only copies of single mounts come along, as private ones, so nothing propagates in or out.

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::fs::{CWD, Mode, OFlags, mkdirat};
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{chdir, fchdir, pivot_root};
use rustix::thread::UnshareFlags;

use crate::cgroup;
use crate::container::mount_plan::{
    MOUNT_ATTR_NODEV, MOUNT_ATTR_NOEXEC, MOUNT_ATTR_NOSUID, MOUNT_ATTR_RDONLY,
};
use crate::errno::Errno;
use crate::mount;
use crate::pod::{SetUpError, step};
use crate::request::{DEFAULT_SHM_SIZE, IpcMode, PodSetup};
use crate::sys::exec;
use crate::sys::mount_attr::{self, MountAttr, Reach};
use crate::user_namespace::UserNamespace;

/// The layer store, read-only.
pub(crate) const LAYERS: &str = "/layers";
/// A folder per container for what it writes.
pub(crate) const CONTAINERS: &str = "/containers";
/// The pod's /dev/shm.
pub(crate) const SHM: &str = "/shm";
/// Where a container's root file system is attached, in a namespace of its own.
pub(crate) const ROOTFS: &str = "/rootfs";
/// An empty read-only file system: masks folders, and is the root of the holder.
pub(crate) const EMPTY: &str = "/empty";
/// A procfs of the pod's shared pid namespace, made by the holder.
pub(crate) const POD_PROC: &str = "/pod-proc";
/// Masks files.
pub(crate) const NULL: &str = "/dev/null";
/// Where cgroups are, inside and outside.
pub(crate) const CGROUPS: &str = cgroup::ROOT;

const FOLDERS: [&str; 11] = [
    "layers",
    "containers",
    "shm",
    "rootfs",
    "empty",
    "pod-proc",
    "proc",
    "dev",
    "sys",
    "sys/fs",
    "sys/fs/cgroup",
];

/// Everything that will be in the new root, by the path there. Made in the host's mount namespace.
struct Parts(Vec<(&'static str, OwnedFd)>);

/// Leaves the host's mounts for a root of this process's own.
pub(crate) fn enter(setup: &PodSetup, users: Option<&UserNamespace>) -> Result<(), SetUpError> {
    let parts = collect(setup, users)?;
    exec::unshare(UnshareFlags::NEWNS).map_err(step("make a mount namespace"))?;
    let everything = rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .map_err(step("open the host's root"))?;
    let private = MountAttr { propagation: libc::MS_PRIVATE, ..MountAttr::default() };
    mount_attr::set(everything.as_fd(), Reach::Tree, &private).map_err(step("make the mounts private"))?;
    replace_root().map_err(step("replace the root"))?;
    fill(parts)
}

fn collect(setup: &PodSetup, users: Option<&UserNamespace>) -> Result<Parts, SetUpError> {
    let folder = |path: &Path| {
        mount::clone_of(path, false)
            .map_err(|errno| SetUpError::Folder { path: path.to_owned(), source: errno.into() })
    };
    let cgroups = mount::clone_of(CGROUPS, true).map_err(step("copy the cgroup mounts"))?;
    let mut parts = vec![
        ("/proc", folder(Path::new("/proc"))?),
        (NULL, mount::clone_of(NULL, false).map_err(step("copy /dev/null"))?),
        (CGROUPS, cgroups),
    ];
    // In a guest these are folders of the private root, for a container's disk to be mounted on.
    if !setup.is_guest() {
        let layers = folder(&setup.layers_dir)?;
        let read_only = MountAttr { set: MOUNT_ATTR_RDONLY, ..MountAttr::default() };
        mount_attr::set(layers.as_fd(), Reach::One, &read_only).map_err(step("make the layers read-only"))?;
        // All layers in one go: overlays of folders below it have its ids.
        if let Some(users) = users {
            mount_attr::map_ids(layers.as_fd(), Reach::One, users.as_fd())
                .map_err(|errno| SetUpError::Ids { path: setup.layers_dir.clone(), source: errno.into() })?;
        }
        parts.push((LAYERS, layers));
        parts.push((CONTAINERS, folder(&setup.containers_dir)?));
    }
    let private = MountAttr { propagation: libc::MS_PRIVATE, ..MountAttr::default() };
    for (_, part) in &parts {
        mount_attr::set(part.as_fd(), Reach::Tree, &private).map_err(step("make the mounts private"))?;
    }
    if setup.ipc == IpcMode::Pod {
        parts.push((SHM, new_shm(setup, users).map_err(step("make the pod's /dev/shm"))?));
    }
    parts.push((EMPTY, new_empty().map_err(step("make the empty file system"))?));
    Ok(Parts(parts))
}

fn new_shm(setup: &PodSetup, users: Option<&UserNamespace>) -> Result<OwnedFd, Errno> {
    let size = if setup.shm_size == 0 { DEFAULT_SHM_SIZE } else { setup.shm_size }.to_string();
    let (uid, gid) = users.map_or(Ok((0, 0)), UserNamespace::root)?;
    let (uid, gid) = (uid.to_string(), gid.to_string());
    let mut options =
        vec![("mode", Some("1777")), ("size", Some(&*size)), ("uid", Some(&*uid)), ("gid", Some(&*gid))];
    if !setup.mount_label.is_empty() {
        options.push(("context", Some(&*setup.mount_label)));
    }
    let shm = mount::new("tmpfs", "shm", &options)?;
    let set = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC;
    mount_attr::set(shm.as_fd(), Reach::One, &MountAttr { set, ..MountAttr::default() })?;
    Ok(shm)
}

/// Read-only as a whole, not only this mount of it: containers get copies of the mount.
fn new_empty() -> Result<OwnedFd, Errno> {
    let empty = mount::new("tmpfs", "empty", &[("mode", Some("755")), ("size", Some("0")), ("ro", None)])?;
    let set = MOUNT_ATTR_RDONLY | MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | MOUNT_ATTR_NOEXEC;
    mount_attr::set(empty.as_fd(), Reach::One, &MountAttr { set, ..MountAttr::default() })?;
    Ok(empty)
}

/// A tmpfs becomes the root, the host's mounts go.
fn replace_root() -> Result<(), Errno> {
    let root = mount::new("tmpfs", "hartpod", &[("mode", Some("755"))])?;
    // Any folder will do: what it hides is gone in a moment, and only in this namespace.
    let point = rustix::fs::open("/proc", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    mount::attach(&root, &point)?;
    fchdir(&root)?;
    pivot_root(".", ".")?;
    unmount(".", UnmountFlags::DETACH)?;
    Ok(chdir("/")?)
}

fn fill(parts: Parts) -> Result<(), SetUpError> {
    for folder in FOLDERS {
        mkdirat(CWD, folder, Mode::from_raw_mode(0o755)).map_err(step("fill the root"))?;
    }
    fs::write(NULL, "").map_err(step("fill the root"))?;
    for (path, part) in parts.0 {
        let point = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
            .map_err(step("fill the root"))?;
        mount::attach(&part, &point).map_err(step("fill the root"))?;
    }
    Ok(())
}
