//! Work in another network namespace, by a thread that ends with it: whatever goes wrong, none of the daemon's threads is left in it.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::{panic, thread};

use nix::sched::{CloneFlags, unshare};
use rustix::fs::{Mode, OFlags};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::{TapError, step};

/// What ps shows of the thread.
const NAME: &str = "netns";

/// Does `work` in the network namespace `netns`.
pub(super) fn inside<T: Send>(
    netns: BorrowedFd<'_>,
    work: impl FnOnce() -> Result<T, TapError> + Send,
) -> Result<T, TapError> {
    on_a_thread(|| {
        move_into_link_name_space(netns, Some(LinkNameSpaceType::Network))
            .map_err(|errno| TapError::Enter(errno.into()))?;
        work()
    })
}

/// Does `work` in a new network namespace, which nothing else is in.
pub(super) fn apart<T: Send>(work: impl FnOnce() -> Result<T, TapError> + Send) -> Result<T, TapError> {
    on_a_thread(|| {
        unshare(CloneFlags::CLONE_NEWNET).map_err(step("make a network namespace"))?;
        work()
    })
}

/// The network namespace of this thread.
pub(super) fn current() -> Result<OwnedFd, TapError> {
    rustix::fs::open("/proc/thread-self/ns/net", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| TapError::Enter(errno.into()))
}

fn on_a_thread<T: Send>(work: impl FnOnce() -> Result<T, TapError> + Send) -> Result<T, TapError> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name(NAME.to_owned()).spawn_scoped(scope, work);
        let thread = thread.map_err(|error: io::Error| TapError::Enter(error))?;
        thread.join().unwrap_or_else(|panic| panic::resume_unwind(panic))
    })
}
