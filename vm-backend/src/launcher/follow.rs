//! What becomes of a guest, from its status file and its VMM's pidfd.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify;

use super::STATUS_FILE;
use crate::status::{Event, Exit, ExitReason, MAX_DETAIL};

/// Bytes of the longest line in a status file: every byte of a detail is \u00XX.
pub const MAX_STATUS_LINE: usize = 256 + 6 * MAX_DETAIL;

/// Why a guest cannot be followed.
#[derive(Debug, thiserror::Error)]
pub enum FollowError {
    #[error("watch {}", .path.display())]
    Watch {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("read {}", .path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

/// Reads the events of a guest, from the first one on however often one begins: the file stays.
#[derive(Debug)]
pub struct Follower {
    path: PathBuf,
    file: File,
    changes: OwnedFd,
    pidfd: OwnedFd,
    unread: Vec<u8>,
    exited: bool,
}

impl Follower {
    /// Follows the guest whose folder is `dir` and whose VMM `pidfd` is.
    ///
    /// # Errors
    /// There is no status file, or there are no inotify watches left.
    pub fn new(dir: &Path, pidfd: BorrowedFd<'_>) -> Result<Self, FollowError> {
        let path = dir.join(STATUS_FILE);
        let watch = |source: io::Error| FollowError::Watch { path: path.clone(), source };
        let changes = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)
            .map_err(|e| watch(e.into()))?;
        inotify::add_watch(&changes, &path, inotify::WatchFlags::MODIFY).map_err(|e| watch(e.into()))?;
        let pidfd = pidfd.try_clone_to_owned().map_err(watch)?;
        let file = File::open(&path).map_err(watch)?;
        Ok(Self { file, changes, pidfd, unread: Vec::new(), exited: false, path })
    }

    /// The next event; `None` when `patience` is over without one, and after `exited`. A VMM that died without a word gives
    /// `exited` with the reason `killed`.
    ///
    /// Blocks for as long as that.
    ///
    /// # Errors
    /// The status file cannot be read.
    pub fn next_blocking(&mut self, patience: Duration) -> Result<Option<Event>, FollowError> {
        let deadline = Instant::now() + patience;
        while !self.exited {
            // Asked before the file is read: what a VMM wrote last is there when it has gone.
            let gone = self.wait(Duration::ZERO)?;
            if let Some(event) = self.read()? {
                self.exited = matches!(event, Event::Exited(_));
                return Ok(Some(event));
            }
            if gone {
                self.exited = true;
                let killed = Exit::new(ExitReason::Killed, "the VMM ended without a word");
                return Ok(Some(Event::Exited(killed)));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.wait(left)?;
        }
        Ok(None)
    }

    /// Until something may have happened; whether the VMM has gone.
    fn wait(&self, patience: Duration) -> Result<bool, FollowError> {
        let mut fds = [PollFd::new(&self.pidfd, PollFlags::IN), PollFd::new(&self.changes, PollFlags::IN)];
        let timeout = Timespec::try_from(patience).ok();
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(self.failed(e.into())),
        }
        let gone = !fds[0].revents().is_empty();
        // What it says of the file is in the file; only the wake-up counts. Once: a VMM that never ends to write must not hold this up.
        let _ = rustix::io::read(&self.changes, &mut [0; 4096]);
        Ok(gone)
    }

    /// A whole line, if there is one.
    fn read(&mut self) -> Result<Option<Event>, FollowError> {
        let mut chunk = [0; 4096];
        loop {
            if let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.unread.drain(..=end).collect();
                let event = serde_json::from_slice(&line).map_err(|e| self.failed(e.into()))?;
                return Ok(Some(match event {
                    // As the VMM cuts it, if the guest has not taken it over.
                    Event::Exited(exit) => Event::Exited(Exit::new(exit.reason, &exit.detail)),
                    event => event,
                }));
            }
            if self.unread.len() > MAX_STATUS_LINE {
                return Err(self.failed(io::ErrorKind::InvalidData.into()));
            }
            match self.file.read(&mut chunk) {
                Ok(0) => return Ok(None),
                Ok(read) => self.unread.extend(&chunk[..read]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(self.failed(e)),
            }
        }
    }

    fn failed(&self, source: io::Error) -> FollowError {
        FollowError::Read { path: self.path.clone(), source }
    }
}

/// Readable once the VMM has gone.
impl AsFd for Follower {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}
