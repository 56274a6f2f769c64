//! Waiting for what happens in a container's cgroup leaf.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use hartpod_container::cgroup::{Leaf, Readiness, is_populated};
use rustix::io::Errno;
use tokio::io::Interest;

use crate::sys::Watched;

/// Returns once no live process is in the cgroup whose `cgroup.events` is given, or it is gone.
pub(crate) async fn emptied(events: OwnedFd) -> io::Result<()> {
    let reader = events.try_clone()?;
    let watched = Watched::new(events, Interest::PRIORITY)?;
    if !populated(&reader)? {
        return Ok(());
    }
    let is_empty = |_: BorrowedFd<'_>| {
        if populated(&reader)? { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
    };
    watched.io(Interest::PRIORITY, is_empty).await
}

fn populated(events: &OwnedFd) -> io::Result<bool> {
    match is_populated(events) {
        // Removed meanwhile.
        Err(error) if error.raw_os_error() == Some(Errno::NODEV.raw_os_error()) => Ok(false),
        outcome => outcome,
    }
}

/// Returns once the kernel has killed a process of the leaf for want of memory; never, where that cannot be told.
pub(crate) async fn oom_killed(leaf: &Leaf) {
    if let Err(error) = watch_oom(leaf).await {
        tracing::debug!(%error, leaf = leaf.cgroup_path(), "no watch for memory kills");
        std::future::pending::<()>().await;
    }
}

async fn watch_oom(leaf: &Leaf) -> io::Result<()> {
    let oom = leaf.oom_watch().map_err(io::Error::other)?;
    let interest = match oom.readiness() {
        Readiness::Readable => Interest::READABLE,
        Readiness::Priority => Interest::PRIORITY,
    };
    let watched = Watched::duplicate(oom.as_fd(), interest)?;
    let happened = |_: BorrowedFd<'_>| {
        oom.clear()?;
        let kills = leaf.oom_kills().map_err(io::Error::other)?;
        if kills == 0 { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
    };
    watched.io(interest, happened).await
}
