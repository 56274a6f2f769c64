//! The epoll set of the device's thread.
//!
//! Everything is watched for edges: an event says that something has come, and who owns the descriptor remembers that until a call on it
//! says EAGAIN. So a busy stream costs no calls on the set, and eventfds need not be read.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use rustix::event::{Timespec, epoll};

/// Events that are taken at a time.
const BATCH: usize = 64;

/// Whom an event is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Token {
    /// The thread must end.
    Stop,
    /// The driver put something into a queue.
    Kick,
    Listener,
    /// A client of the VMM itself, or the end of the guest.
    Dialer,
    /// The client with this host port.
    Client(u32),
}

impl Token {
    fn to_number(self) -> u64 {
        match self {
            Self::Client(port) => port.into(),
            Self::Stop => 1 << 32,
            Self::Kick => 2 << 32,
            Self::Listener => 3 << 32,
            Self::Dialer => 4 << 32,
        }
    }

    fn from_number(number: u64) -> Self {
        match (u32::try_from(number), number >> 32) {
            (Ok(port), _) => Self::Client(port),
            (_, 1) => Self::Stop,
            (_, 2) => Self::Kick,
            (_, 4) => Self::Dialer,
            _ => Self::Listener,
        }
    }
}

/// What is watched for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Interest {
    Read,
    /// Room to write as well: every byte that a client takes wakes the thread then.
    ReadWrite,
}

impl Interest {
    fn flags(self) -> epoll::EventFlags {
        let read = epoll::EventFlags::IN | epoll::EventFlags::RDHUP | epoll::EventFlags::ET;
        match self {
            Self::Read => read,
            Self::ReadWrite => read | epoll::EventFlags::OUT,
        }
    }
}

/// What has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ready {
    pub(super) token: Token,
    pub(super) readable: bool,
    pub(super) writable: bool,
    pub(super) hangup: bool,
}

impl Ready {
    fn from_event(event: &epoll::Event) -> Self {
        let (flags, data) = (event.flags, event.data);
        let hangup = flags.intersects(epoll::EventFlags::HUP | epoll::EventFlags::ERR);
        Self {
            token: Token::from_number(data.u64()),
            readable: hangup || flags.intersects(epoll::EventFlags::IN | epoll::EventFlags::RDHUP),
            writable: flags.contains(epoll::EventFlags::OUT),
            hangup,
        }
    }
}

#[derive(Debug)]
pub(super) struct Poller {
    set: OwnedFd,
}

impl Poller {
    pub(super) fn new() -> io::Result<Self> {
        Ok(Self { set: epoll::create(epoll::CreateFlags::CLOEXEC)? })
    }

    /// Watches `fd` until it is closed. What it has already is an event.
    pub(super) fn watch(&self, fd: impl AsFd, token: Token) -> io::Result<()> {
        let data = epoll::EventData::new_u64(token.to_number());
        Ok(epoll::add(&self.set, fd, data, Interest::Read.flags())?)
    }

    /// Watches it for something else from now on. What it has already is an event again.
    pub(super) fn change(&self, fd: impl AsFd, token: Token, interest: Interest) -> io::Result<()> {
        let data = epoll::EventData::new_u64(token.to_number());
        Ok(epoll::modify(&self.set, fd, data, interest.flags())?)
    }

    /// Waits for events, for `patience` at most (`None`: as long as it takes).
    pub(super) fn wait(&self, patience: Option<Duration>) -> io::Result<Vec<Ready>> {
        let mut events = Vec::with_capacity(BATCH);
        let timeout = patience.and_then(|patience| Timespec::try_from(patience).ok());
        match epoll::wait(&self.set, rustix::buffer::spare_capacity(&mut events), timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        Ok(events.iter().map(Ready::from_event).collect())
    }
}
