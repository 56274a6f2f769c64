//! A TCP port in the network of a pod.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use hartpod_streaming::{BoxError, Connection};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use crate::agent_client::Token;
use crate::node::Node;

/// A pod whose agent cannot be asked.
#[derive(Debug, thiserror::Error)]
#[error("pod sandbox {0} is not ready")]
struct NotReady(String);

pub(super) async fn open(node: &Arc<Node>, sandbox: String, port: u16) -> Result<Connection, BoxError> {
    let pod = node.registry.pod(&sandbox)?.snapshot();
    let agent = pod.agent.as_ref().ok_or(NotReady(sandbox))?.client.clone();
    let token = Token::new()?;
    agent.connect_port(port, &token).await?;
    Ok(halves(agent.open_stream(&token).await?))
}

/// Waits until a pod has no agent: one that is gone is not followed by another.
pub(super) async fn gone(node: &Arc<Node>, sandbox: String) {
    // A pod that is not known is gone.
    let Ok(pod) = node.registry.pod(&sandbox) else { return };
    let mut snapshot = pod.snapshot;
    // An error is the end of the pod, too.
    let _ = snapshot.wait_for(|pod| pod.agent.is_none()).await;
}

/// The two ways of a stream to a port. An agent whose pod breaks its end off closes the stream: an end of both ways at once, though only one of
/// them was said to have ended. Reading tells that as the reset that it is.
fn halves(stream: UnixStream) -> Connection {
    let (from, to) = stream.into_split();
    let ended = Arc::new(AtomicBool::new(false));
    let to_pod = ToPod { stream: to, ended: ended.clone() };
    Connection { to_pod: Box::new(to_pod), from_pod: Box::new(FromPod { stream: from, ended }) }
}

struct ToPod {
    stream: OwnedWriteHalf,
    /// The client has ended its half.
    ended: Arc<AtomicBool>,
}

struct FromPod {
    stream: OwnedReadHalf,
    /// Of the other half.
    ended: Arc<AtomicBool>,
}

impl FromPod {
    fn is_closed(&self) -> bool {
        let mut polled = [PollFd::new(self.stream.as_ref(), PollFlags::empty())];
        let _ = poll(&mut polled, Some(&Timespec::default()));
        let [polled] = polled;
        polled.revents().contains(PollFlags::HUP)
    }
}

impl AsyncRead for FromPod {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buf.remaining();
        ready!(Pin::new(&mut self.stream).poll_read(context, buf))?;
        let is_end = before > 0 && buf.remaining() == before;
        if is_end && !self.ended.load(Ordering::Relaxed) && self.is_closed() {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for ToPod {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.ended.store(true, Ordering::Relaxed);
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    /// What is read to the end of a stream whose agent does this.
    async fn read(connection: &mut Connection) -> (String, io::Result<usize>) {
        let mut heard = String::new();
        let outcome = connection.from_pod.read_to_string(&mut heard).await;
        (heard, outcome)
    }

    #[tokio::test]
    async fn an_agent_that_closes_both_ways_at_once_has_broken_off() {
        let (ours, mut agent) = UnixStream::pair().unwrap();
        let mut connection = halves(ours);
        agent.write_all(b"part").await.unwrap();
        drop(agent);
        let mut part = [0; 4];
        connection.from_pod.read_exact(&mut part).await.unwrap();
        assert_eq!(&part, b"part");
        let (_, outcome) = read(&mut connection).await;
        assert_eq!(outcome.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    }

    #[tokio::test]
    async fn ways_that_end_one_after_the_other_end_well() {
        let (ours, mut agent) = UnixStream::pair().unwrap();
        let mut connection = halves(ours);
        agent.shutdown().await.unwrap();
        assert_eq!(read(&mut connection).await.1.unwrap(), 0);
        connection.to_pod.write_all(b"still").await.unwrap();

        let (ours, mut agent) = UnixStream::pair().unwrap();
        let mut connection = halves(ours);
        connection.to_pod.shutdown().await.unwrap();
        agent.write_all(b"answer").await.unwrap();
        drop(agent);
        let (heard, outcome) = read(&mut connection).await;
        assert_eq!((heard.as_str(), outcome.unwrap()), ("answer", 6));
    }
}
