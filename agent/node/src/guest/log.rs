//! Logs of containers in guests: written by the VMM, into files that the daemon opens.
//!
//! The VMM outlives the daemon, so no line is lost while there is none. Only what needs the host's paths is done here.

use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hartpod_logs::{InvalidPlace, LogPlace};
use hartpod_proto::ContainerId;
use hartpod_vm::launcher::{self, ClientError, Control};
use rustix::io::Errno;
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::agent_client::Token;

/// For a container's last lines to be in its file, once it has ended: their way is through the guest's memory and a disk.
const LAST_LINES: Duration = Duration::from_secs(10);

/// A log is not written.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LogError {
    #[error("log path")]
    Place(#[from] InvalidPlace),
    #[error("open the log {}", path.display())]
    Open { path: PathBuf, source: Errno },
    #[error("have the log written")]
    Vmm(#[from] ClientError),
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

/// A container's log, in the guest whose VMM has the folder `dir`.
#[derive(Debug, Clone)]
pub(crate) struct GuestLog {
    pub(crate) dir: PathBuf,
    pub(crate) container: ContainerId,
    pub(crate) place: LogPlace,
}

impl GuestLog {
    /// `path` is below `directory`.
    pub(crate) fn new(
        dir: PathBuf,
        container: ContainerId,
        directory: &str,
        path: &Path,
    ) -> Result<Self, LogError> {
        Ok(Self { dir, container, place: LogPlace::new(Path::new(directory), path)? })
    }

    fn open_blocking(&self) -> Result<OwnedFd, LogError> {
        self.place
            .open_blocking()
            .map_err(|source| LogError::Open { path: self.place.directory().join(self.place.path()), source })
    }

    /// Has the output that the tokens stand for written.
    pub(crate) async fn begin(self, tokens: LogTokens) -> Result<(), LogError> {
        let begun = tokio::task::spawn_blocking(move || {
            let file = self.open_blocking()?;
            let streams = launcher::LogTokens {
                stdout: Some(tokens.stdout.as_str()),
                stderr: tokens.stderr.as_ref().map(Token::as_str),
            };
            Ok(Control::connect(&self.dir)?.log(self.container.as_str(), streams, file.as_fd())?)
        });
        begun.await?
    }

    /// Goes on in a new file at the same path; returns after the switch.
    pub(crate) async fn reopen(self) -> Result<(), LogError> {
        let reopened = tokio::task::spawn_blocking(move || {
            let file = self.open_blocking()?;
            Ok(Control::connect(&self.dir)?.reopen_log(self.container.as_str(), file.as_fd())?)
        });
        reopened.await?
    }
}

/// Waits until what a container said is in its log, or that takes too long.
pub(crate) async fn last_lines(dir: PathBuf, container: ContainerId) {
    let id = container.clone();
    let asked = tokio::task::spawn_blocking(move || {
        let (ended, writer) = pipe_with(PipeFlags::CLOEXEC).map_err(io::Error::from)?;
        let control = Control::connect(&dir).map_err(io::Error::other)?;
        control.await_log(id.as_str(), writer.as_fd()).map_err(io::Error::other)?;
        Ok::<_, io::Error>(ended)
    });
    let waited = async {
        let ended = asked.await.map_err(io::Error::other)??;
        // Deprecated because a type's `as_raw_fd` could name a descriptor that it does not own; an OwnedFd's cannot.
        #[allow(deprecated)]
        let ended = AsyncFd::with_interest(ended, Interest::READABLE)?;
        ended.readable().await.map(drop)
    };
    match tokio::time::timeout(LAST_LINES, waited).await {
        Ok(Ok(())) => {}
        // The VMM has ended too: whatever it had is written.
        Ok(Err(error)) => tracing::debug!(%container, %error, "the end of a log is not known"),
        Err(_) => tracing::warn!(%container, "the last lines of a container are still not in its log"),
    }
}
