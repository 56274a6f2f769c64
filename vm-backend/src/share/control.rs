//! What the daemon asks of a file server: packets of JSON with descriptors, as of a VMM.

use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{SocketFlags, accept_with};
use serde::{Deserialize, Serialize};

use super::server::{Server, Share};
use crate::boot::{Claims, Fd};
use crate::channel;
use crate::status::cut;

/// For the daemon to go on with what it has begun: it is alone, and asks one thing at a time.
const PATIENCE: Duration = Duration::from_secs(10);
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

/// Answers requests until the process ends. `released` hears of volumes that are gone.
pub(super) fn serve(listener: &OwnedFd, server: &Server, released: impl Fn(&[u64])) {
    loop {
        match accept_with(listener, SocketFlags::CLOEXEC) {
            Ok(connection) => converse(connection.as_fd(), server, &released),
            Err(rustix::io::Errno::INTR | rustix::io::Errno::CONNABORTED) => {}
            // Without descriptors nobody can be heard for now.
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
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
