//! The way to the client, shared by all streams of a connection.

use std::convert::Infallible;
use std::fmt;
use std::io;
use std::sync::{Mutex, PoisonError};

use tokio::io::{AsyncWrite, AsyncWriteExt as _};
use tokio::sync::Notify;

use super::{Activity, End, Frame};
use crate::websocket::{self, Opcode};

/// Bytes of answers (pongs, replies, resets) that may wait for a client that does not read. A client that makes more is no client.
const MOST_QUEUED: usize = 64 * 1024;

/// What every frame is put into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    /// Frames are on the wire as they are.
    Bare,
    /// Each is a binary WebSocket message: SPDY in a tunnel.
    Messages,
}

/// Writes frames, one at a time and whole.
///
/// Large ones are written by the task that has them, which so waits for a slow client. Small answers are queued, since a reader that had to
/// wait for its client to read could no longer tell a process of a Ctrl-C.
pub(crate) struct Sender {
    framing: Framing,
    outgoing: tokio::sync::Mutex<Outgoing>,
    /// Guards the answers that wait for the writer.
    queued: Mutex<Vec<u8>>,
    some_queued: Notify,
    activity: Activity,
}

struct Outgoing {
    writer: Box<dyn AsyncWrite + Send + Unpin>,
    /// The frame that is being written, and how much of it is. Kept here, so that a task that is dropped in the middle of its frame
    /// does not cut it: the next one writes the rest.
    current: Frame,
    written: usize,
}

impl Sender {
    pub(crate) fn new(
        writer: Box<dyn AsyncWrite + Send + Unpin>,
        framing: Framing,
        activity: Activity,
    ) -> Self {
        let outgoing = Outgoing { writer, current: Frame::default(), written: 0 };
        Self {
            framing,
            outgoing: tokio::sync::Mutex::new(outgoing),
            queued: Mutex::default(),
            some_queued: Notify::new(),
            activity,
        }
    }

    /// Writes a frame, and what is queued before it. The frame comes back, to be filled again.
    pub(crate) async fn send(&self, frame: &mut Frame) -> io::Result<()> {
        if self.framing == Framing::Messages {
            frame.prepend(&websocket::header(Opcode::Binary, frame.bytes().len()));
        }
        let mut outgoing = self.outgoing.lock().await;
        self.write_queued(&mut outgoing).await?;
        std::mem::swap(&mut outgoing.current, frame);
        outgoing.finish().await?;
        std::mem::swap(&mut outgoing.current, frame);
        self.activity.note();
        Ok(())
    }

    /// Queues a small frame.
    pub(crate) fn answer(&self, frame: &[u8]) -> Result<(), End> {
        match self.framing {
            Framing::Bare => self.queue(&[], frame),
            Framing::Messages => self.queue(&websocket::header(Opcode::Binary, frame.len()), frame),
        }
    }

    /// Queues a control frame of WebSocket.
    pub(crate) fn control(&self, opcode: Opcode, payload: &[u8]) -> Result<(), End> {
        self.queue(&websocket::header(opcode, payload.len()), payload)
    }

    fn queue(&self, header: &[u8], frame: &[u8]) -> Result<(), End> {
        let mut queued = self.queued.lock().unwrap_or_else(PoisonError::into_inner);
        if queued.len() + header.len() + frame.len() > MOST_QUEUED {
            return Err(End::Flooded);
        }
        queued.extend_from_slice(header);
        queued.extend_from_slice(frame);
        self.some_queued.notify_one();
        Ok(())
    }

    /// Writes what gets queued, for as long as the connection lives.
    pub(crate) async fn write_answers(&self) -> io::Result<Infallible> {
        loop {
            self.some_queued.notified().await;
            self.write_queued(&mut *self.outgoing.lock().await).await?;
        }
    }

    async fn write_queued(&self, outgoing: &mut Outgoing) -> io::Result<()> {
        outgoing.finish().await?;
        let queued = std::mem::take(&mut *self.queued.lock().unwrap_or_else(PoisonError::into_inner));
        if queued.is_empty() {
            return Ok(());
        }
        outgoing.current = Frame::complete(queued);
        outgoing.finish().await?;
        outgoing.current = Frame::default();
        self.activity.note();
        Ok(())
    }

    /// Writes what is left, and tells the client that nothing follows.
    pub(crate) async fn close(&self) -> io::Result<()> {
        let mut outgoing = self.outgoing.lock().await;
        self.write_queued(&mut outgoing).await?;
        outgoing.writer.shutdown().await
    }
}

impl Outgoing {
    async fn finish(&mut self) -> io::Result<()> {
        while let Some(rest @ [_, ..]) = self.current.bytes().get(self.written..) {
            match self.writer.write(rest).await? {
                0 => return Err(io::ErrorKind::WriteZero.into()),
                count => self.written += count,
            }
        }
        // TLS has buffers of its own.
        self.writer.flush().await?;
        self.written = 0;
        self.current.empty();
        Ok(())
    }
}

impl fmt::Debug for Sender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender").field("framing", &self.framing).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::AsyncReadExt as _;

    use super::*;

    fn pair(framing: Framing, room: usize) -> (Sender, tokio::io::DuplexStream) {
        let (ours, theirs) = tokio::io::duplex(room);
        (Sender::new(Box::new(ours), framing, Activity::new()), theirs)
    }

    #[tokio::test(start_paused = true)]
    async fn a_frame_whose_task_is_dropped_is_still_written_whole() {
        let (sender, mut client) = pair(Framing::Bare, 100);
        let dropped =
            tokio::time::timeout(Duration::from_secs(1), sender.send(&mut Frame::of(&[b'1'; 300]))).await;
        assert!(dropped.is_err());
        sender.answer(b"answer").unwrap();
        let mut received = Vec::new();
        let send = async {
            sender.send(&mut Frame::of(b"next")).await.unwrap();
            sender.close().await.unwrap();
        };
        let (read, ()) = tokio::join!(client.read_to_end(&mut received), send);
        read.unwrap();
        assert_eq!(received, [&[b'1'; 300][..], b"answernext"].concat());
    }

    #[tokio::test]
    async fn a_client_that_wants_answers_and_reads_none_is_found_out() {
        let (sender, _client) = pair(Framing::Bare, 1);
        let pings = (0..).take_while(|_| sender.answer(&[0; 12]).is_ok()).count();
        assert_eq!(pings, MOST_QUEUED / 12);
    }

    #[tokio::test]
    async fn in_a_tunnel_every_frame_is_a_message() {
        let (sender, mut client) = pair(Framing::Messages, 4096);
        sender.answer(b"answer").unwrap();
        sender.control(Opcode::Pong, b"").unwrap();
        let mut frame = Frame::of(b"payload");
        frame.prepend(b"SPDY");
        sender.send(&mut frame).await.unwrap();
        sender.close().await.unwrap();
        let mut received = Vec::new();
        client.read_to_end(&mut received).await.unwrap();
        assert_eq!(received, b"\x82\x06answer\x8a\x00\x82\x0bSPDYpayload");
    }
}
