//! Stopping a process as its tracer.

use std::time::{Duration, Instant};

use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

/// A process that is stopped and traced by this one; it goes on when this is dropped.
#[derive(Debug)]
pub(crate) struct Traced(Pid);

impl Traced {
    /// `None` if it may not be traced, or is gone.
    pub(crate) fn start(pid: i32) -> Option<Self> {
        let pid = Pid::from_raw(pid);
        ptrace::seize(pid, ptrace::Options::empty()).ok()?;
        let traced = Self(pid);
        ptrace::interrupt(pid).ok()?;
        let end = Instant::now() + Duration::from_millis(20);
        while Instant::now() < end {
            match waitpid(pid, Some(WaitPidFlag::WNOHANG | WaitPidFlag::__WALL)) {
                Ok(WaitStatus::StillAlive) => std::thread::yield_now(),
                Ok(WaitStatus::Exited(..) | WaitStatus::Signaled(..)) | Err(_) => return None,
                Ok(_) => return Some(traced),
            }
        }
        Some(traced)
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        // It may have ended; then there is nothing to let go.
        let _ = ptrace::detach(self.0, None);
    }
}
