//! A child process that is held by pidfd: it cannot be mistaken for another one that got its number.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use crate::sys::process::{self, Which};

/// A child of this process. Readable (poll, epoll) once it has exited; dropping it neither kills nor reaps.
#[derive(Debug)]
pub struct Child {
    pid: i32,
    pidfd: OwnedFd,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It called exit with this code.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
}

impl Exit {
    /// The shell's number for it: the code, or 128 + signal.
    #[must_use]
    pub fn code(self) -> i32 {
        match self {
            Self::Code(code) => code,
            Self::Signal(signal) => 128 + signal,
        }
    }
}

impl Child {
    pub(crate) fn new(pid: i32, pidfd: OwnedFd) -> Self {
        Self { pid, pidfd }
    }

    /// A child that another child made for us (CLONE_PARENT). The number is safe to use only for an unreaped child,
    /// so anything else is refused.
    pub(crate) fn adopt(pid: i32) -> io::Result<Self> {
        process::wait_exit(&Which::Pid(pid), false)?;
        let raw = rustix::process::Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidInput)?;
        let pidfd = rustix::process::pidfd_open(raw, rustix::process::PidfdFlags::empty())?;
        Ok(Self { pid, pidfd })
    }

    /// Its number in this process's pid namespace.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Sends a signal; a process that has exited already is success.
    ///
    /// # Errors
    /// The signal does not exist.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        match process::pidfd_signal(self.pidfd.as_fd(), signal) {
            Err(e) if e.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            other => other,
        }
    }

    /// Reaps it if it has exited. After that every call fails with ECHILD.
    ///
    /// # Errors
    /// It was reaped before.
    pub fn try_wait(&self) -> io::Result<Option<Exit>> {
        Ok(process::wait_exit(&Which::PidFd(self.pidfd.as_fd()), true)?.map(|(_, exit)| exit))
    }
}

impl AsFd for Child {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

impl AsRawFd for Child {
    fn as_raw_fd(&self) -> RawFd {
        self.pidfd.as_raw_fd()
    }
}

/// Reaps exited children that nobody waits for: orphans that a subreaper inherits, and helpers of this crate that have
/// done their work. `is_known` names the pids that somebody holds a [`Child`] of; those are left alone.
///
/// It matters for more than tidiness: the init of a pid namespace does not finish dying before every process in it is
/// reaped, and execs are children of this process, those that failed included.
///
/// Call it after SIGCHLD, but not while a `Starting` or an `Execing` is under way: the process it will report is a child
/// of this process before anybody knows its number.
///
/// # Errors
/// waitid failed; having no children is success.
pub fn reap_orphans(mut is_known: impl FnMut(i32) -> bool) -> io::Result<usize> {
    let mut reaped = 0;
    loop {
        match process::wait_exit(&Which::Any, false) {
            Err(e) if e.raw_os_error() == Some(libc::ECHILD) => return Ok(reaped),
            Err(e) => return Err(e),
            // A known one hides those behind it; its owner reaps it, and the next call goes on.
            Ok(None) => return Ok(reaped),
            Ok(Some((pid, _))) if is_known(pid) => return Ok(reaped),
            Ok(Some((pid, _))) => {
                process::wait_exit(&Which::Pid(pid), true)?;
                reaped += 1;
            }
        }
    }
}
