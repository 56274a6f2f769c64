//! What the daemon asks of a file server: packets of JSON with descriptors, as of a VMM.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, Builder};
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{SocketFlags, accept_with};
use serde::{Deserialize, Serialize};

use super::server::{Server, Share};
use crate::boot::{Claims, Fd};
use crate::channel;
use crate::status::cut;

/// For the daemon to go on with what it has begun.
const PATIENCE: Duration = Duration::from_secs(10);
/// Conversations at a time; more wait. Each is about one container, and waits for the storage of one volume at a time.
const CONVERSATIONS: usize = 32;
/// Bytes of the stack of a conversation's thread.
const STACK: usize = 128 << 10;
/// Bytes of an identity and of an owner's name.
const MAX_NAME: usize = 8192;

/// What the daemon may ask for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Show this file or folder to the guest. The same identity again is the same volume.
    Share { root: Fd, read_only: bool, identity: String, owner: String },
    /// What this owner alone uses is not shown any more, and closed. Success where it uses nothing.
    Release { owner: String },
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Response {
    /// The entry of the guest's file system that is the volume.
    Shared(u64),
    Released {},
    Error(String),
}

/// Places for conversations.
#[derive(Default)]
struct Places {
    taken: Mutex<usize>,
    freed: Condvar,
}

/// One of them.
struct Place<'a>(&'a Places);

impl Places {
    fn take(&self) -> Place<'_> {
        let full = |taken: &mut usize| *taken >= CONVERSATIONS;
        let taken = self.freed.wait_while(self.taken(), full);
        *taken.unwrap_or_else(PoisonError::into_inner) += 1;
        Place(self)
    }

    fn taken(&self) -> MutexGuard<'_, usize> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        *self.0.taken() -= 1;
        self.0.freed.notify_one();
    }
}

/// Answers requests until the process ends, each conversation in a thread of its own: one that waits for slow storage holds up no other.
/// `released` hears of volumes that are gone.
pub(super) fn serve(listener: &OwnedFd, server: &Server, released: impl Fn(&[u64]) + Sync) {
    let (places, released) = (Places::default(), &released);
    thread::scope(|scope| {
        loop {
            let place = places.take();
            match accept_with(listener, SocketFlags::CLOEXEC) {
                Ok(connection) => {
                    let thread = Builder::new().name("daemon".to_owned()).stack_size(STACK);
                    // Without a thread the daemon sees the end of its connection.
                    let _ = thread.spawn_scoped(scope, move || {
                        converse(connection.as_fd(), server, released);
                        drop(place);
                    });
                }
                Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNABORTED) => {}
                // Without descriptors nobody can be heard for now.
                Err(_) => thread::sleep(Duration::from_millis(100)),
            }
        }
    });
}

fn converse(connection: BorrowedFd<'_>, server: &Server, released: &impl Fn(&[u64])) {
    for side in [Timeout::Recv, Timeout::Send] {
        if set_socket_timeout(connection, side, Some(PATIENCE)).is_err() {
            return;
        }
    }
    while let Ok(Some(packet)) = channel::receive(connection) {
        let response = handle(&packet.bytes, packet.fds, server, released);
        let response = response.unwrap_or_else(|error| Response::Error(cut(&error.to_string()).to_owned()));
        let sent =
            serde_json::to_vec(&response).is_ok_and(|text| channel::send(connection, &text, &[]).is_ok());
        if !sent {
            return;
        }
    }
}

fn handle(
    message: &[u8],
    fds: Vec<OwnedFd>,
    server: &Server,
    released: &impl Fn(&[u64]),
) -> Result<Response, Box<dyn std::error::Error>> {
    let mut claims = Claims::new(fds);
    match serde_json::from_slice(message)? {
        Request::Share { root, read_only, identity, owner } => {
            let root = claims.take(root, "the volume")?;
            claims.finish()?;
            if identity.len() > MAX_NAME || owner.len() > MAX_NAME {
                return Err("a name is too long".into());
            }
            Ok(Response::Shared(server.share(Share { root, read_only, identity, owner })?))
        }
        Request::Release { owner } => {
            claims.finish()?;
            released(&server.release(&owner));
            Ok(Response::Released {})
        }
    }
}
