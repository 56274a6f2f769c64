//! A client's TCP connection.

use std::fmt;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use rustix::net::sockopt;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use super::sys;

/// A silent client is asked after this long whether its machine still exists, as Go's servers do it, and is gone after three
/// questions.
const KEEPALIVE: Duration = Duration::from_secs(15);
const KEEPALIVE_QUESTIONS: u32 = 3;

/// A TCP connection that several hold: its reader, its writer, and whoever wants to know whether the client is still there.
#[derive(Debug, Clone)]
pub(crate) struct Socket(Arc<TcpStream>);

/// Tells whether a client is still there without reading from it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Peer(Option<Arc<TcpStream>>);

/// A connection after its upgrade.
pub(crate) struct Wire {
    pub(crate) reader: Box<dyn AsyncRead + Send + Unpin>,
    pub(crate) writer: Box<dyn AsyncWrite + Send + Unpin>,
    pub(crate) peer: Peer,
    /// What the client sent behind its request.
    pub(crate) early: Bytes,
}

/// What a connection is after TLS or without.
pub(crate) trait Halves: AsyncRead + AsyncWrite + Send + Unpin + Sized + 'static {
    fn halves(self) -> (Box<dyn AsyncRead + Send + Unpin>, Box<dyn AsyncWrite + Send + Unpin>);

    fn peer(&self) -> Peer;

    fn wire(self, early: Bytes) -> Wire {
        let peer = self.peer();
        let (reader, writer) = self.halves();
        Wire { reader, writer, peer, early }
    }
}

impl Socket {
    pub(crate) fn new(stream: TcpStream) -> io::Result<Self> {
        // Keystrokes are to be seen at once.
        stream.set_nodelay(true)?;
        sockopt::set_socket_keepalive(&stream, true)?;
        sockopt::set_tcp_keepidle(&stream, KEEPALIVE)?;
        sockopt::set_tcp_keepintvl(&stream, KEEPALIVE)?;
        sockopt::set_tcp_keepcnt(&stream, KEEPALIVE_QUESTIONS)?;
        Ok(Self(Arc::new(stream)))
    }
}

impl Peer {
    /// Whether the client has closed its connection, or it broke. No client of Kubernetes closes half of one.
    pub(crate) fn hung_up(&self) -> bool {
        let Some(stream) = &self.0 else { return false };
        match stream.ready(Interest::READABLE).now_or_never() {
            Some(Ok(ready)) => ready.is_read_closed(),
            Some(Err(_)) => true,
            None => false,
        }
    }

    /// Bytes that were sent to the client and that its machine has not taken. 0 where that cannot be told.
    pub(crate) fn unacknowledged(&self) -> usize {
        self.0.as_ref().and_then(|stream| sys::unacknowledged(stream).ok()).unwrap_or(0)
    }
}

impl Halves for Socket {
    fn halves(self) -> (Box<dyn AsyncRead + Send + Unpin>, Box<dyn AsyncWrite + Send + Unpin>) {
        (Box::new(self.clone()), Box::new(self))
    }

    fn peer(&self) -> Peer {
        Peer(Some(Arc::clone(&self.0)))
    }
}

impl Halves for TlsStream<Socket> {
    fn halves(self) -> (Box<dyn AsyncRead + Send + Unpin>, Box<dyn AsyncWrite + Send + Unpin>) {
        let (reader, writer) = tokio::io::split(self);
        (Box::new(reader), Box::new(writer))
    }

    fn peer(&self) -> Peer {
        self.get_ref().0.peer()
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        loop {
            ready!(self.0.poll_read_ready(cx))?;
            match self.0.try_read_buf(buf) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                read => return Poll::Ready(read.map(drop)),
            }
        }
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(cx))?;
            match self.0.try_write(bytes) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        pieces: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.0.poll_write_ready(cx))?;
            match self.0.try_write_vectored(pieces) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                written => return Poll::Ready(written),
            }
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(rustix::net::shutdown(&*self.0, rustix::net::Shutdown::Write).map_err(io::Error::from))
    }
}

impl fmt::Debug for Wire {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Wire").field("peer", &self.peer).finish_non_exhaustive()
    }
}
