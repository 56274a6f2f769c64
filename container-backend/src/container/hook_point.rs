//! The moment at which hooks see a container that is mounted and not yet entered: before pivot_root.
//!
//! Hooks are written for runtimes whose containers are made in a copy of the host's mounts: they expect the host's files, and the
//! container's root at `root.path` of the bundle, in the mount namespace of the container's process. The agent's root has none of
//! this. So for the time of the hooks a copy of the host's mounts is the root of the container's mount namespace, with the
//! container's own root attached below. It is private: what hooks mount there stays there, and goes when the container enters its root;
//! what they mount below the container's root is the container's.

use std::fs::File;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags};
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{chdir, fchdir, pivot_root};

use super::root::Root;
use crate::errno::Errno;
use crate::failure::Failure;
use crate::mount;
use crate::pod::private_root::{EMPTY, ROOTFS};
use crate::report::Reporter;
use crate::sys::mount_attr::{self, MountAttr, Reach};

/// Where a container's root is in its bundle; the same as its spec's `root.path`.
const ROOT: &str = "rootfs";

fn step<E: Into<Errno>>(step: &'static str) -> impl FnOnce(E) -> Failure {
    move |e| Failure::Step { step: step.into(), errno: e.into() }
}

/// Copies all of the host's mounts. Call it in the host's mount namespace.
pub(crate) fn collect_host() -> Result<OwnedFd, Failure> {
    let host = mount::clone_of("/", true).map_err(step("copy the host's mounts for hooks"))?;
    let private = MountAttr { propagation: libc::MS_PRIVATE, ..MountAttr::default() };
    mount_attr::set(host.as_fd(), Reach::Tree, &private)
        .map_err(step("make the mounts for hooks private"))?;
    Ok(host)
}

/// Shows the container to its hooks, tells the agent, and waits until they have run. The container's root is the working folder afterwards.
pub(crate) fn pass(
    host: &OwnedFd,
    bundle: &Path,
    reporter: &mut Reporter,
    gate: &File,
) -> Result<(), Failure> {
    let rootfs = move_root(host, bundle)?;
    enter_host()?;
    reporter.at_hooks().map_err(step("report"))?;
    super::create::wait_at(gate)?;
    fchdir(rootfs).map_err(step("enter the root file system"))
}

/// Attaches the host's mounts, and the container's root in the bundle there. A reference to that root.
fn move_root(host: &OwnedFd, bundle: &Path) -> Result<OwnedFd, Failure> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let open = |path: &str| rustix::fs::open(path, flags, Mode::empty());
    let rootfs = open(ROOTFS).map_err(step("open the root file system"))?;
    let point = open(EMPTY).map_err(step("open a mount point for hooks"))?;
    mount::attach(host, &point).map_err(step("attach the mounts for hooks"))?;
    let place = bundle.join(ROOT);
    let point = Root::open(EMPTY).and_then(|root| root.resolve(&place));
    let failed = |errno| Failure::Path { what: "root of the bundle".into(), path: place.clone(), errno };
    mount::attach(&rootfs, point.map_err(failed)?).map_err(failed)?;
    Ok(rootfs)
}

/// The host's mounts become the root of this namespace, the agent's go.
fn enter_host() -> Result<(), Failure> {
    chdir(EMPTY).map_err(step("enter the mounts for hooks"))?;
    pivot_root(".", ".").map_err(step("pivot_root for hooks"))?;
    unmount(".", UnmountFlags::DETACH).map_err(step("unmount the agent's mounts"))?;
    chdir("/").map_err(step("enter the mounts for hooks"))
}
