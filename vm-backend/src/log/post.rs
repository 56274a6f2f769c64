//! What the thread of control leaves for the thread of a log, which may be busy for as long as a disk likes.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::{EventfdFlags, eventfd};

use super::LogRefused;

/// Files that may wait to be switched to.
pub(super) const MAX_SWITCHES: usize = 8;
/// Pipes that may wait for the end of a log.
pub(super) const MAX_AWAITING: usize = 16;

#[derive(Debug)]
pub(super) struct Post {
    /// Guards the content alone, for moments.
    content: Mutex<Content>,
    /// Readable once there is a switch, or the end is asked for.
    event: OwnedFd,
}

#[derive(Debug, Default)]
struct Content {
    switches: VecDeque<Switch>,
    /// Closed at the end.
    awaiting: Vec<Arc<OwnedFd>>,
    /// Asked for.
    end: bool,
    over: bool,
}

/// A file that the log is to go over to.
#[derive(Debug)]
pub(super) struct Switch {
    pub(super) file: OwnedFd,
    /// Closed afterwards.
    pub(super) done: Option<OwnedFd>,
}

impl Post {
    pub(super) fn new() -> io::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { content: Mutex::default(), event })
    }

    /// Nothing to do where the log is over.
    pub(super) fn switch(&self, switch: Switch) -> Result<(), LogRefused> {
        let mut content = self.content();
        if content.over {
            return Ok(());
        }
        if content.switches.len() >= MAX_SWITCHES {
            return Err(LogRefused::Stuck);
        }
        content.switches.push_back(switch);
        self.ring();
        Ok(())
    }

    /// Asks for the end.
    pub(super) fn end(&self) {
        self.content().end = true;
        self.ring();
    }

    fn ring(&self) {
        // It fails only when the counter is full, and then the event is there already.
        let _ = rustix::io::write(&self.event, &1_u64.to_ne_bytes());
    }

    /// Whether the end was asked for.
    pub(super) fn is_ending(&self) -> bool {
        self.content().end
    }

    /// Has `done` closed at the end, which may have been. Not where `most` wait for it already.
    pub(super) fn at_end(&self, done: Arc<OwnedFd>, most: usize) -> Result<(), LogRefused> {
        let mut content = self.content();
        if content.over {
            return Ok(());
        }
        if content.awaiting.len() >= most {
            return Err(LogRefused::Awaited);
        }
        content.awaiting.push(done);
        Ok(())
    }

    pub(super) fn is_over(&self) -> bool {
        self.content().over
    }

    /// All switches, for the thread of the log.
    pub(super) fn take(&self) -> VecDeque<Switch> {
        let _ = rustix::io::read(&self.event, &mut [0; 8]);
        std::mem::take(&mut self.content().switches)
    }

    /// The log is over; whoever awaited it is told.
    pub(super) fn close(&self) {
        let mut content = self.content();
        content.over = true;
        let left = (std::mem::take(&mut content.switches), std::mem::take(&mut content.awaiting));
        drop(content);
        // Not under the lock: closing a file may wait for its disk.
        drop(left);
    }

    fn content(&self) -> MutexGuard<'_, Content> {
        self.content.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsFd for Post {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
}
