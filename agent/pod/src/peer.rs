//! Who may talk to the agent: on a node root, on either unix socket; in a guest the host, over vsock.

use std::future::poll_fn;
use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};
use tokio_stream::Stream;
use tracing::warn;

use crate::guest;
use crate::sys::Watched;

/// A listening socket of the agent's.
#[derive(Debug)]
pub(crate) struct Listener(Kind);

#[derive(Debug)]
enum Kind {
    Unix(UnixListener),
    Vsock(Watched),
}

impl Listener {
    /// Needs a runtime, as does [`Listener::vsock`].
    pub(crate) fn unix(socket: std::os::unix::net::UnixListener) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        UnixListener::from_std(socket).map(|listener| Self(Kind::Unix(listener)))
    }

    /// A socket that does not block.
    pub(crate) fn vsock(socket: OwnedFd) -> io::Result<Self> {
        Watched::new(socket, Interest::READABLE).map(|listener| Self(Kind::Vsock(listener)))
    }

    /// Waits for the next connection of who may talk.
    pub(crate) async fn accept(&self) -> io::Result<UnixStream> {
        poll_fn(|cx| self.poll_accept(cx)).await
    }

    fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<UnixStream>> {
        loop {
            match &self.0 {
                Kind::Unix(listener) => {
                    let (connection, _) = ready!(listener.poll_accept(cx))?;
                    if is_root(&connection) {
                        return Poll::Ready(Ok(connection));
                    }
                }
                Kind::Vsock(listener) => {
                    if let Some(connection) = ready!(listener.poll_read(cx, guest::accept))? {
                        return Poll::Ready(UnixStream::from_std(connection));
                    }
                }
            }
        }
    }
}

/// Whether the other end was opened by root (`SO_PEERCRED`). The sockets' folder is root's already; this holds even if an fd of a
/// socket, or a path to it, ends up in a container.
fn is_root(connection: &UnixStream) -> bool {
    match connection.peer_cred() {
        Ok(peer) if peer.uid() == 0 => true,
        Ok(peer) => {
            warn!(uid = peer.uid(), pid = peer.pid(), "refused a connection of another user");
            false
        }
        Err(error) => {
            warn!(%error, "refused a connection of unknown origin");
            false
        }
    }
}

/// The connections of who may talk, for tonic.
#[derive(Debug)]
pub(crate) struct Incoming {
    listener: Listener,
}

impl Incoming {
    pub(crate) fn new(listener: Listener) -> Self {
        Self { listener }
    }
}

impl Stream for Incoming {
    type Item = io::Result<UnixStream>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.listener.poll_accept(cx).map(Some)
    }
}
