//! Clients in the VMM itself. They are clients like any other, with the same greeting, limits and credit, but for how they come: over a
//! list instead of the listener, since a jailed VMM reaches no socket by its path.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::{EventfdFlags, eventfd};
use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType, send, socketpair, sockopt};

/// Bytes that may be on their way in a socket. What is more waits in the guest: a disk that hangs costs no more than this and the
/// stream's room.
const SOCKET_ROOM: usize = 64 << 10;

/// Opens streams to ports of the guest. Clones share everything.
#[derive(Debug, Clone)]
pub struct Dialer {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    /// Guards the list alone, for a push or a take at a time.
    calls: Mutex<Calls>,
    /// Written to after each change of the list.
    event: OwnedFd,
}

#[derive(Debug, Default)]
struct Calls {
    /// Ends that nobody has taken yet.
    waiting: VecDeque<OwnedFd>,
    /// The guest runs no more.
    hung_up: bool,
}

impl Dialer {
    pub(crate) fn new() -> io::Result<Self> {
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self { shared: Arc::new(Shared { calls: Mutex::default(), event }) })
    }

    /// A stream to a port of the guest, with `first`, a few bytes, on their way to it. What is read begins with `OK <port>\n` once the
    /// guest has accepted; a stream that it refuses ends without a byte. Reading blocks.
    ///
    /// # Errors
    /// The guest has ended (`NotConnected`), or there are no descriptors.
    pub fn dial(&self, port: u32, first: &[u8]) -> io::Result<OwnedFd> {
        let (ours, theirs) = socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
        sockopt::set_socket_send_buffer_size(&theirs, SOCKET_ROOM)?;
        rustix::io::ioctl_fionbio(&theirs, true)?;
        let greeting = [format!("CONNECT {port}\n").as_bytes(), first].concat();
        if send(&ours, &greeting, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)? != greeting.len() {
            return Err(io::ErrorKind::WriteZero.into());
        }
        {
            let mut calls = self.calls();
            if calls.hung_up {
                return Err(io::ErrorKind::NotConnected.into());
            }
            calls.waiting.push_back(theirs);
        }
        self.wake();
        Ok(ours)
    }

    /// The guest runs no more: what it has sent goes to the clients, and then all streams end.
    pub fn hang_up(&self) {
        let left = {
            let mut calls = self.calls();
            calls.hung_up = true;
            std::mem::take(&mut calls.waiting)
        };
        drop(left);
        self.wake();
    }

    /// What the device is to take over next.
    pub(crate) fn next(&self) -> Option<OwnedFd> {
        self.calls().waiting.pop_front()
    }

    pub(super) fn has_hung_up(&self) -> bool {
        self.calls().hung_up
    }

    fn calls(&self) -> MutexGuard<'_, Calls> {
        self.shared.calls.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wake(&self) {
        // It fails only when the counter is full, and then the event is there already.
        let _ = rustix::io::write(&self.shared.event, &1_u64.to_ne_bytes());
    }
}

/// Readable when there is something to be taken.
impl AsFd for Dialer {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.shared.event.as_fd()
    }
}
