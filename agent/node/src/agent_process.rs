//! The process of a pod agent: its end is noticed, and reaped when it is the daemon's own child.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustix::process::{Signal, WaitId, WaitIdOptions, pidfd_send_signal, waitid};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

use crate::records::AgentRecord;

/// The process of one pod's agent. Dropping it lets the process run.
#[derive(Debug)]
pub(crate) struct AgentProcess {
    pub(crate) record: AgentRecord,
    pidfd: Arc<OwnedFd>,
    /// Why hartpod killed it, if it did so for a reason that others should know.
    why_killed: OnceLock<String>,
    /// How it ended, once it has.
    end: watch::Receiver<Option<String>>,
}

impl AgentProcess {
    /// Watches a process from now on. Needs a runtime.
    pub(crate) fn watch(record: AgentRecord, pidfd: OwnedFd) -> io::Result<Self> {
        let pidfd = Arc::new(pidfd);
        let (sender, end) = watch::channel(None);
        // Deprecated because a type's `as_raw_fd` could name a descriptor that it does not own; an OwnedFd's cannot. The
        // successor is unsafe.
        #[allow(deprecated)]
        let readable = AsyncFd::with_interest(pidfd.clone(), Interest::READABLE)?;
        tokio::spawn(async move {
            let how = match readable.ready(Interest::READABLE).await {
                Ok(_) => reap(readable.get_ref()),
                Err(error) => format!("it cannot be watched: {error}"),
            };
            let _ = sender.send(Some(how));
        });
        Ok(Self { record, pidfd, why_killed: OnceLock::new(), end })
    }

    /// Readable once it has ended.
    pub(crate) fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }

    /// It runs, as far as is known.
    pub(crate) fn is_alive(&self) -> bool {
        self.end.borrow().is_none()
    }

    /// Waits for its end and tells how it was.
    pub(crate) async fn ended(&self) -> String {
        let mut end = self.end.clone();
        match end.wait_for(Option::is_some).await {
            Ok(how) => how.clone().unwrap_or_default(),
            Err(_) => "nobody watches it".to_owned(),
        }
    }

    /// Waits for its end, at most so long; false when it still runs.
    pub(crate) async fn ends_within(&self, limit: Duration) -> bool {
        tokio::time::timeout(limit, self.ended()).await.is_ok()
    }

    /// Kills it, for a reason that is kept.
    pub(crate) fn kill_because(&self, why: &str) -> io::Result<()> {
        // The first reason is the one.
        let _ = self.why_killed.set(why.to_owned());
        self.kill()
    }

    /// See [`kill_because`](Self::kill_because).
    pub(crate) fn why_killed(&self) -> Option<&str> {
        self.why_killed.get().map(String::as_str)
    }

    /// Kills it. A process that has ended is success.
    pub(crate) fn kill(&self) -> io::Result<()> {
        match pidfd_send_signal(self.pidfd.as_fd(), Signal::KILL) {
            Err(rustix::io::Errno::SRCH) | Ok(()) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Agents that an earlier daemon started are children of init now: that one reaps them.
fn reap(pidfd: &OwnedFd) -> String {
    match waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED | WaitIdOptions::NOHANG) {
        Ok(Some(status)) => match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => format!("it exited with code {code}"),
            (None, Some(signal)) => format!("it was killed by signal {signal}"),
            (None, None) => "it ended".to_owned(),
        },
        _ => "it ended".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use rustix::process::{Pid, PidfdFlags, pidfd_open};

    use super::*;

    fn spawn(command: &str) -> AgentProcess {
        #[allow(clippy::zombie_processes)] // reaping is what is tested
        let child = std::process::Command::new("/bin/sh").args(["-c", command]).spawn().unwrap();
        let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).unwrap();
        AgentProcess::watch(AgentRecord { pid: child.id().try_into().unwrap(), start_time: 0 }, pidfd)
            .unwrap()
    }

    #[tokio::test]
    async fn the_end_of_a_child_is_noticed_and_reaped() {
        let process = spawn("exit 3");
        assert_eq!(process.ended().await, "it exited with code 3");
        assert!(!process.is_alive());
        assert!(!std::path::Path::new(&format!("/proc/{}", process.record.pid)).exists(), "still a zombie");
    }

    #[tokio::test]
    async fn killing_twice_succeeds() {
        let process = spawn("exec sleep 1000");
        assert!(process.is_alive());
        process.kill().unwrap();
        assert_eq!(process.ended().await, "it was killed by signal 9");
        process.kill().unwrap();
    }
}
