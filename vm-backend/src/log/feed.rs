//! One stream of a container, as it comes out of the guest.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use hartpod_logs::{LogWriter, Stream};
use rustix::io::Errno;

use super::LogToken;
use crate::virtio::vsock::Dialer;

/// Streams of the agent's (pod.proto).
const STREAMS: u32 = 1025;
/// What a client reads first once the guest has accepted it.
const ACCEPTED: &[u8] = b"OK 1025\n";

/// Before a guest that refused is asked again.
const PAUSE: Duration = Duration::from_millis(200);

#[derive(Debug)]
pub(super) struct Feed {
    stream: Stream,
    token: Option<LogToken>,
    state: State,
    /// Until then a guest that refuses is asked again.
    patience: Instant,
}

#[derive(Debug)]
enum State {
    /// To be asked for at this time.
    Absent {
        at: Instant,
    },
    /// Asked for; so many bytes of the answer have come.
    Asked {
        socket: OwnedFd,
        heard: usize,
    },
    Open(OwnedFd),
    Ended,
}

impl Feed {
    /// Without a token there is no such stream.
    pub(super) fn new(stream: Stream, token: Option<LogToken>, patience: Duration) -> Self {
        let now = Instant::now();
        let state = if token.is_some() { State::Absent { at: now } } else { State::Ended };
        Self { stream, token, state, patience: now + patience }
    }

    /// Nothing comes any more.
    pub(super) fn has_ended(&self) -> bool {
        matches!(self.state, State::Ended)
    }

    /// What is readable when there is something to [`read`](Self::read).
    pub(super) fn socket(&self) -> Option<BorrowedFd<'_>> {
        match &self.state {
            State::Asked { socket, .. } | State::Open(socket) => Some(socket.as_fd()),
            State::Absent { .. } | State::Ended => None,
        }
    }

    /// When to [`ask`](Self::ask).
    pub(super) fn due(&self) -> Option<Instant> {
        match self.state {
            State::Absent { at } => Some(at),
            _ => None,
        }
    }

    /// Asks the guest for the stream, if it is time.
    pub(super) fn ask(&mut self, dialer: &Dialer, log: &mut LogWriter<'_>, now: Instant) {
        if self.due().is_none_or(|at| at > now) {
            return;
        }
        let token = self.token.as_ref().map_or("", LogToken::as_str);
        match dialer.dial(STREAMS, format!("{token}\n").as_bytes()) {
            Ok(socket) => self.state = State::Asked { socket, heard: 0 },
            Err(error) if error.kind() == io::ErrorKind::NotConnected => self.end(log),
            Err(_) => self.refused(log, now),
        }
    }

    /// One read of the socket, and what it completed to the log.
    pub(super) fn read(&mut self, log: &mut LogWriter<'_>) {
        match &mut self.state {
            State::Asked { socket, heard } => {
                let mut answer = [0; ACCEPTED.len()];
                let rest = ACCEPTED.get(*heard..).unwrap_or_default();
                match rustix::io::read(&*socket, &mut answer[..rest.len()]) {
                    Ok(count @ 1..) if rest.starts_with(&answer[..count]) => *heard += count,
                    Err(Errno::INTR) => return,
                    Ok(_) | Err(_) => return self.refused(log, Instant::now()),
                }
                if *heard == ACCEPTED.len() {
                    if let State::Asked { socket, .. } = std::mem::replace(&mut self.state, State::Ended) {
                        self.state = State::Open(socket);
                    }
                }
            }
            State::Open(socket) => match rustix::io::read(&*socket, log.spare(self.stream)) {
                Ok(count @ 1..) => log.filled_blocking(self.stream, count),
                Err(Errno::INTR) => {}
                Ok(_) | Err(_) => self.end(log),
            },
            State::Absent { .. } | State::Ended => {}
        }
    }

    /// The guest had no place for it, or nobody listens (yet).
    fn refused(&mut self, log: &mut LogWriter<'_>, now: Instant) {
        match now + PAUSE {
            at if at < self.patience => self.state = State::Absent { at },
            _ => self.end(log),
        }
    }

    pub(super) fn end(&mut self, log: &mut LogWriter<'_>) {
        self.state = State::Ended;
        log.ended_blocking(self.stream);
    }
}
