//! Logs of containers in guests: written by the VMM, into files that the daemon opens.
//!
//! The VMM outlives the daemon, so no line is lost while there is none. Only what needs the host's paths is done here.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hartpod_logs::{InvalidPlace, LogPlace};
use hartpod_proto::ContainerId;
use hartpod_vm::launcher::{self, Control};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::{ControlError, VmmControl};
use crate::agent_client::Token;

/// For a container's last lines to be in its file, once it has ended: their way is through the guest's memory and a disk.
const LAST_LINES: Duration = Duration::from_secs(10);
/// For the VMM to say that it will tell of the last line.
const AWAIT: Duration = Duration::from_secs(3);

/// A log is not written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LogError {
    #[error("log path")]
    Place(#[from] InvalidPlace),
    #[error("open the log {}", path.display())]
    Open { path: PathBuf, source: Errno },
    #[error("have the log written")]
    Vmm(#[from] ControlError),
    #[error("no random token")]
    Token(#[source] io::Error),
    #[error("work of the daemon broke off")]
    BrokenOff(#[from] tokio::task::JoinError),
}

/// What the streams of a container are opened with.
#[derive(Debug)]
pub(crate) struct LogTokens {
    pub(crate) stdout: Token,
    /// A terminal has one stream.
    pub(crate) stderr: Option<Token>,
}

impl LogTokens {
    pub(crate) fn new(tty: bool) -> Result<Self, LogError> {
        let stderr = if tty { None } else { Some(Token::new().map_err(LogError::Token)?) };
        Ok(Self { stdout: Token::new().map_err(LogError::Token)?, stderr })
    }
}

/// A container's log in a guest.
#[derive(Debug, Clone)]
pub(crate) struct GuestLog {
    pub(crate) vmm: VmmControl,
    pub(crate) container: ContainerId,
    pub(crate) place: LogPlace,
}

impl GuestLog {
    /// `path` is below `directory`.
    pub(crate) fn new(
        vmm: VmmControl,
        container: ContainerId,
        directory: &str,
        path: &Path,
    ) -> Result<Self, LogError> {
        Ok(Self { vmm, container, place: LogPlace::new(Path::new(directory), path)? })
    }

    /// Its file, made if need be.
    pub(crate) async fn open(&self) -> Result<OwnedFd, LogError> {
        let place = self.place.clone();
        let opened = tokio::task::spawn_blocking(move || {
            let path = || place.directory().join(place.path());
            place.open_blocking().map_err(|source| LogError::Open { path: path(), source })
        });
        opened.await?
    }

    /// Has the output that the tokens stand for written into its [`open`](Self::open) file.
    pub(crate) async fn begin(self, file: OwnedFd, tokens: LogTokens) -> Result<(), LogError> {
        let begin = move |control: &Control| {
            let streams = launcher::LogTokens {
                stdout: Some(tokens.stdout.as_str()),
                stderr: tokens.stderr.as_ref().map(Token::as_str),
            };
            control.log(self.container.as_str(), streams, file.as_fd())
        };
        Ok(self.vmm.ask(Control::PATIENCE, begin).await?)
    }

    /// Goes on in a new file at the same path; returns after the switch.
    pub(crate) async fn reopen(self) -> Result<(), LogError> {
        let file = self.open().await?;
        let reopen = move |control: &Control| control.reopen_log(self.container.as_str(), file.as_fd());
        Ok(self.vmm.ask(Control::PATIENCE, reopen).await?)
    }
}

/// Waits until what a container said is in its log, or that takes too long.
pub(crate) async fn last_lines(vmm: VmmControl, container: ContainerId) {
    match tokio::time::timeout(LAST_LINES, end_of_log(vmm, container.clone())).await {
        Ok(Ok(())) => {}
        // The VMM has ended too: whatever it had is written.
        Ok(Err(error)) => tracing::debug!(%container, %error, "the end of a log is not known"),
        Err(_) => tracing::warn!(%container, "the last lines of a container are still not in its log"),
    }
}

async fn end_of_log(vmm: VmmControl, container: ContainerId) -> io::Result<()> {
    let (ended, writer) = pipe_with(PipeFlags::CLOEXEC).map_err(io::Error::from)?;
    let wait = move |control: &Control| control.await_log(container.as_str(), writer.as_fd());
    vmm.ask(AWAIT, wait).await.map_err(io::Error::other)?;
    // Deprecated because a type's `as_raw_fd` could name a descriptor that it does not own; an OwnedFd's cannot.
    #[allow(deprecated)]
    let ended = AsyncFd::with_interest(ended, Interest::READABLE)?;
    ended.readable().await.map(drop)
}
