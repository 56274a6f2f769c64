//! A container's log writer as the agent holds it.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

use hartpod_container::{Child, HostMounts, fork_role};
use tokio::sync::{oneshot, watch};
use tokio::time::timeout;
use tracing::warn;

use super::settle::DRAIN_WAIT;
use crate::children::Children;
use crate::log_writer::{LogError, LogHandle, LogPlace, NAME, Sources, become_log_writer};

/// A log writer that runs.
#[derive(Debug)]
pub(crate) struct Log {
    pub(crate) handle: LogHandle,
    child: Child,
    ended: watch::Receiver<bool>,
}

/// How the opening of a log went, once that is known.
pub(crate) type Opening = oneshot::Receiver<Result<(), LogError>>;

impl Log {
    /// Forks the writer, which opens the log at `place` among the host's mounts.
    pub(crate) fn start(
        host: &HostMounts,
        children: &Children,
        sources: Sources<'_>,
        place: Option<&LogPlace>,
    ) -> io::Result<(Self, Opening)> {
        let (ours, theirs) = UnixStream::pair()?;
        let keep: Vec<BorrowedFd<'_>> =
            [sources.stdout, sources.stderr, Some(theirs.as_fd()), Some(host.as_fd())]
                .into_iter()
                .flatten()
                .collect();
        let child = fork_role(NAME, &keep, || become_log_writer(host, sources, place, &theirs))?;
        let exit = children.own(&child);
        let (end, ended) = watch::channel(false);
        tokio::spawn(async move {
            let exit = exit.await;
            if exit.code != 0 {
                warn!(code = exit.code, "a log writer did not end by itself");
            }
            let _ = end.send(true);
        });
        let (handle, opening) = LogHandle::new(ours)?;
        Ok((Self { handle, child, ended }, opening))
    }

    /// Becomes ready when the writer has ended: both streams were written to their end.
    pub(crate) fn ended(&self) -> impl Future<Output = ()> + Send + use<> {
        let mut ended = self.ended.clone();
        async move {
            let _ = ended.wait_for(|ended| *ended).await;
        }
    }

    /// Waits until the writer has ended, and ends it when it has had its time; one that hangs on its disk goes when the disk
    /// lets it.
    pub(crate) async fn finish(self) {
        if timeout(DRAIN_WAIT, self.ended()).await.is_err() {
            warn!(pid = self.child.pid(), "killing a log writer that does not end");
            let _ = self.child.signal(libc::SIGKILL);
        }
    }
}
