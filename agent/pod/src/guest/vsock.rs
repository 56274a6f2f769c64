//! The guest's way to its host: vsock, on which only the host connects.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use nix::sys::socket::{
    AddressFamily, Backlog, SockFlag, SockType, VsockAddr, bind, connect, getpeername,
    listen as start_listening, socket,
};
use rustix::net::{SocketFlags, accept_with};
use tokio::io::Interest;
use tokio::time::timeout;
use tracing::{debug, warn};

use crate::sys::Watched;

/// pod/v1
pub(super) const CONTROL: u32 = 1024;
/// Raw streams, each of which begins with its token.
pub(super) const STREAMS: u32 = 1025;
/// Echoes what it is sent.
pub(super) const HEARTBEAT: u32 = 1026;

/// The port of the host to which a connect means that the guest is ready. It is refused: the VMM takes it as the sign.
const READY: u32 = 1024;

/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;

/// How long the VMM may take to refuse.
const READY_WAIT: Duration = Duration::from_secs(5);

fn new_socket() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    Ok(socket(AddressFamily::Vsock, SockType::Stream, flags, None)?)
}

/// A listening socket, for any of the guest's addresses.
pub(super) fn listen(port: u32) -> io::Result<OwnedFd> {
    let socket = new_socket()?;
    bind(socket.as_raw_fd(), &VsockAddr::new(libc::VMADDR_CID_ANY, port))?;
    start_listening(&socket, Backlog::new(BACKLOG)?)?;
    Ok(socket)
}

/// The next connection, if it is of the host. A container can open vsock sockets too (they are in no namespace), and must not be heard.
///
/// The connection is held as a unix socket: reading, writing and half-closing a stream socket is the same whatever its family.
pub(crate) fn accept(listener: BorrowedFd<'_>) -> io::Result<Option<UnixStream>> {
    let connection = accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
    let peer = getpeername::<VsockAddr>(connection.as_raw_fd());
    match peer {
        Ok(peer) if peer.cid() == libc::VMADDR_CID_HOST => Ok(Some(connection.into())),
        Ok(peer) => {
            warn!(cid = peer.cid(), "refused a connection that is not of the host");
            Ok(None)
        }
        // It ended before it was looked at.
        Err(error) => {
            debug!(%error, "a connection of unknown origin");
            Ok(None)
        }
    }
}

/// Tells the host that the agent listens.
pub(super) async fn tell_ready() {
    if let Err(error) = knock().await {
        warn!(%error, "cannot tell the host that the agent is ready");
    }
}

async fn knock() -> io::Result<()> {
    let socket = new_socket()?;
    match connect(socket.as_raw_fd(), &VsockAddr::new(libc::VMADDR_CID_HOST, READY)) {
        Ok(()) => return Ok(()),
        Err(nix::errno::Errno::EINPROGRESS) => {}
        Err(error) => return Err(error.into()),
    }
    let watched = Watched::new(socket, Interest::WRITABLE)?;
    // The refusal, which says that the sign was seen.
    let refused = watched.io(Interest::WRITABLE, |socket| {
        let error = rustix::net::sockopt::socket_error(socket)?;
        debug!(refusal = ?error, "the host knows that the agent is ready");
        Ok(())
    });
    timeout(READY_WAIT, refused).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn a_port_is_listened_on_once() {
        // None of the agent's own, so that it does not matter where this runs.
        const PORT: u32 = 0x6861_7274;
        let Ok(first) = listen(PORT) else { return eprintln!("skipped: needs vsock in the kernel") };
        assert_eq!(listen(PORT).unwrap_err().kind(), io::ErrorKind::AddrInUse);
        assert_eq!(accept(first.as_fd()).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    }
}
