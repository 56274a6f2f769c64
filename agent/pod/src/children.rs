//! The agent's child processes: each is waited for through its pidfd by whoever made it, and what the kernel hands to the agent as a
//! subreaper is buried as soon as it dies.
//!
//! The two must not get into each other's way: a wait for *any* child would take a container's exit status from its
//! owner. So an orphan is looked at first (`WNOWAIT`) and left alone when it has an owner. While a start is under way, a
//! process may exist whose pid the agent has not been told yet; burying waits until that is over.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hartpod_container::{Child, reap_orphans};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::process::{WaitId, WaitIdOptions, WaitIdStatus, waitid};
use tokio::io::Interest;
use tracing::{debug, warn};

use crate::clock::now_nanos;
use crate::sys::Watched;

/// Exit code of a process whose status nobody can tell. Same as containerd's (`UnknownExitStatus`).
const UNKNOWN: i32 = 255;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exit {
    /// The exit code, or 128 + signal.
    pub(crate) code: i32,
    /// Nanoseconds since the epoch.
    pub(crate) at: i64,
}

#[derive(Debug, Default)]
struct Registry {
    owned: BTreeSet<i32>,
    starts: usize,
}

/// The children that have an owner. Clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Children {
    /// Guards the sets for one look-up at a time.
    registry: Arc<Mutex<Registry>>,
}

impl Children {
    fn registry(&self) -> MutexGuard<'_, Registry> {
        self.registry.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the caller the owner of a child, from this call on. The returned future waits for its end and reaps it; it must
    /// be run to its end.
    pub(crate) fn own(&self, child: &Child) -> impl Future<Output = Exit> + Send + use<> {
        let pid = child.pid();
        self.registry().owned.insert(pid);
        let watched = Watched::duplicate(child, Interest::READABLE);
        let children = self.clone();
        async move {
            let exit = match watched {
                Ok(watched) => wait(&watched).await,
                Err(error) => Err(error),
            };
            let exit = exit.unwrap_or_else(|error| {
                warn!(pid, %error, "cannot wait for a child");
                Exit { code: UNKNOWN, at: now_nanos() }
            });
            children.registry().owned.remove(&pid);
            // It may have hidden orphans that died after it.
            children.bury_orphans();
            exit
        }
    }

    /// Between this call and the drop of the returned value a child may exist whose pid is not known.
    pub(crate) fn starting(&self) -> Starting {
        self.registry().starts += 1;
        Starting { children: self.clone() }
    }

    /// Buries orphans for as long as the agent lives.
    ///
    /// SIGCHLD comes over a signalfd: tokio's signals would keep a channel for each signal that there is, which is half of the
    /// heap of an idle agent. Children that are cloned from here get an empty signal mask.
    pub(crate) async fn bury_forever(self) -> io::Result<()> {
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGCHLD);
        mask.thread_block()?;
        let deaths = SignalFd::with_flags(&mask, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        let watched = Watched::duplicate(&deaths, Interest::READABLE)?;
        loop {
            let read =
                |_: BorrowedFd<'_>| deaths.read_signal()?.ok_or_else(|| io::ErrorKind::WouldBlock.into());
            watched.io(Interest::READABLE, read).await?;
            self.bury_orphans();
        }
    }

    fn bury_orphans(&self) {
        let registry = self.registry();
        if registry.starts > 0 {
            return;
        }
        match reap_orphans(|pid| registry.owned.contains(&pid)) {
            Ok(0) => {}
            Ok(count) => debug!(count, "buried orphans"),
            Err(error) => warn!(%error, "cannot bury orphans"),
        }
    }
}

/// A start that is under way.
#[derive(Debug)]
pub(crate) struct Starting {
    children: Children,
}

impl Drop for Starting {
    fn drop(&mut self) {
        self.children.registry().starts -= 1;
        self.children.bury_orphans();
    }
}

async fn wait(pidfd: &Watched) -> io::Result<Exit> {
    let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
    let reap = |fd: BorrowedFd<'_>| {
        let status = waitid(WaitId::PidFd(fd.as_fd()), options)?;
        status.ok_or_else(|| io::ErrorKind::WouldBlock.into())
    };
    let status = pidfd.io(Interest::READABLE, reap).await?;
    Ok(Exit { code: exit_code(&status), at: now_nanos() })
}

/// What a shell's `$?` would be.
fn exit_code(status: &WaitIdStatus) -> i32 {
    let killed_by = status.terminating_signal().map(|signal| 128 + signal);
    status.exit_status().or(killed_by).unwrap_or(UNKNOWN)
}
