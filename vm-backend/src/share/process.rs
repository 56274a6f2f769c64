//! `hartpod-fs`: the file server of one guest as a process. It is the VMM's program under another name, and gets everything over its standard
//! input, as the VMM does.

use std::collections::HashMap;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, recv, send};
use serde::{Deserialize, Serialize};

use super::control;
use super::fuse::{self, Header};
use super::pool::Pool;
use super::server::{Limits, Server};
use super::wire::{ANSWER_HEADER, MAX_ANSWER, MAX_REQUEST, REQUEST_HEADER, Request};
use crate::boot::{ClaimError, Claims, Fd};
use crate::channel;
use crate::jail::{self, JailError};

/// How the program is called for this role.
pub const NAME: &str = "hartpod-fs";

/// What it gets: a packet, as the VMM's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootMessage {
    /// The VMM's requests: see [`wire`](super::wire).
    pub requests: Fd,
    /// A listening `SOCK_SEQPACKET` socket for the daemon: see [`control`].
    pub control: Fd,
}

/// Why there is no file server.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("receive what to serve")]
    Receive(#[source] io::Error),
    #[error("the parent closed the socket without saying what to serve")]
    Closed,
    #[error("read what to serve")]
    Parse(#[source] serde_json::Error),
    #[error("the descriptors that came")]
    Claim(#[from] ClaimError),
    #[error("the jail")]
    Jail(#[from] JailError),
    #[error("start a thread")]
    Thread(#[source] io::Error),
    #[error("hear the VMM")]
    Hear(#[source] io::Error),
}

/// Serves until the VMM has gone.
///
/// # Errors
/// See [`ServeError`].
pub fn run(parent: BorrowedFd<'_>) -> Result<(), ServeError> {
    let packet = channel::receive(parent).map_err(ServeError::Receive)?.ok_or(ServeError::Closed)?;
    let message: BootMessage = serde_json::from_slice(&packet.bytes).map_err(ServeError::Parse)?;
    let mut claims = Claims::new(packet.fds);
    let requests = Arc::new(claims.take(message.requests, "requests")?);
    let control = claims.take(message.control, "control")?;
    claims.finish()?;
    let own_files = jail::enter_file_server()?;
    serve(requests, control, own_files)
}

/// The part behind the jail.
fn serve(requests: Arc<OwnedFd>, control: OwnedFd, own_files: &str) -> Result<(), ServeError> {
    let server = Server::with_own_files(Limits::default(), own_files);
    let service = Arc::new(Service { server, pools: Mutex::default(), requests });
    let other = service.clone();
    let controlled = move || control::serve(&control, &other.server, |gone| other.forget_pools(gone));
    thread::Builder::new()
        .name("control".to_owned())
        .stack_size(256 << 10)
        .spawn(controlled)
        .map_err(ServeError::Thread)?;
    service.hear()
}

/// What all threads share.
struct Service {
    server: Server,
    pools: Mutex<HashMap<u64, Arc<Pool>>>,
    requests: Arc<OwnedFd>,
}

impl Service {
    /// Hands requests to the threads of their volumes, until the other side has gone.
    fn hear(self: Arc<Self>) -> Result<(), ServeError> {
        let mut buffer = vec![0; REQUEST_HEADER + MAX_REQUEST + 1];
        loop {
            let count = match recv(&self.requests, &mut buffer, RecvFlags::empty()) {
                Ok((0, _)) | Err(Errno::CONNRESET) => return Ok(()),
                Ok((count, _)) => count,
                Err(Errno::INTR) => continue,
                Err(error) => return Err(ServeError::Hear(error.into())),
            };
            self.take(&buffer[..count]);
        }
    }

    /// A packet. One that is none is of a VMM that was taken over, and not answered.
    fn take(self: &Arc<Self>, packet: &[u8]) {
        let Some((Request { number, room }, request)) = Request::parse(packet) else { return };
        if request.len() > MAX_REQUEST {
            return;
        }
        let room = usize::try_from(room).unwrap_or(usize::MAX).min(MAX_ANSWER);
        let Some(volume) = self.server.volume_of(request) else {
            return self.answer(number, request, room);
        };
        let pool = self.pools().entry(volume).or_default().clone();
        let (service, owned) = (self.clone(), request.to_vec());
        let unanswered = Unanswered::new(self, number, request);
        let job = move || {
            service.answer(number, &owned, room);
            unanswered.forget();
        };
        // One that is refused is dropped, and that answers.
        let _ = pool.run(Box::new(job));
    }

    fn answer(&self, number: u64, request: &[u8], room: usize) {
        let mut answer = Vec::with_capacity(512);
        answer.extend(number.to_ne_bytes());
        self.server.handle(request, room, &mut answer);
        if answer.len() > ANSWER_HEADER {
            self.send(&answer);
        }
    }

    fn send(&self, answer: &[u8]) {
        // Without the other side the process ends anyway.
        let _ = rustix::io::retry_on_intr(|| send(&self.requests, answer, SendFlags::NOSIGNAL));
    }

    fn forget_pools(&self, volumes: &[u64]) {
        let mut pools = self.pools();
        for volume in volumes {
            pools.remove(volume);
        }
    }

    fn pools(&self) -> MutexGuard<'_, HashMap<u64, Arc<Pool>>> {
        self.pools.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request that nobody has answered yet: dropped, it is answered with EIO.
struct Unanswered {
    service: Option<Arc<Service>>,
    number: u64,
    unique: u64,
}

impl Unanswered {
    fn new(service: &Arc<Service>, number: u64, request: &[u8]) -> Self {
        let unique = Header::parse(request).map_or(0, |(header, _)| header.unique);
        Self { service: Some(service.clone()), number, unique }
    }

    fn forget(mut self) {
        self.service = None;
    }
}

impl Drop for Unanswered {
    fn drop(&mut self) {
        if let Some(service) = &self.service {
            let mut answer = self.number.to_ne_bytes().to_vec();
            answer.extend(fuse::error_answer(self.unique, Errno::IO));
            service.send(&answer);
        }
    }
}

#[cfg(test)]
mod tests;
