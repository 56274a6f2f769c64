//! Who may talk to the agent: root, on either socket.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::net::{UnixListener, UnixStream};
use tokio_stream::Stream;
use tracing::warn;

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

/// Waits for the next connection of root.
pub(crate) async fn accept(listener: &UnixListener) -> io::Result<UnixStream> {
    loop {
        let (connection, _) = listener.accept().await?;
        if is_root(&connection) {
            return Ok(connection);
        }
    }
}

/// The connections of root, for tonic.
#[derive(Debug)]
pub(crate) struct Incoming {
    listener: UnixListener,
}

impl Incoming {
    pub(crate) fn new(listener: UnixListener) -> Self {
        Self { listener }
    }
}

impl Stream for Incoming {
    type Item = io::Result<UnixStream>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            match ready!(self.listener.poll_accept(cx)) {
                Ok((connection, _)) if is_root(&connection) => return Poll::Ready(Some(Ok(connection))),
                Ok(_) => {}
                Err(error) => return Poll::Ready(Some(Err(error))),
            }
        }
    }
}
