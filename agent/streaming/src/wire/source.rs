//! The way from the client.

use std::fmt;
use std::io;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::task::yield_now;

use super::{Activity, End, Sender};
use crate::websocket::{self, Event, Opcode};

/// What a read asks for at first, and at most once reads come back full.
const FIRST_READ: usize = 8 * 1024;
const LARGEST_READ: usize = 64 * 1024;

/// Reads what a client sends, for a decoder to take frames out of.
pub(crate) struct Source {
    reader: Box<dyn AsyncRead + Send + Unpin>,
    /// What was read and not taken yet.
    pub(crate) buffer: BytesMut,
    ask: usize,
    activity: Activity,
    tunnel: Option<Tunnel>,
}

/// WebSocket around the bytes of another protocol. Where its messages begin and end means nothing.
#[derive(Debug)]
pub(crate) struct Tunnel {
    raw: BytesMut,
    decoder: websocket::Decoder,
    /// For what WebSocket itself wants answered.
    sender: Arc<Sender>,
}

impl Tunnel {
    pub(crate) fn new(sender: Arc<Sender>) -> Self {
        Self { raw: BytesMut::new(), decoder: websocket::Decoder::default(), sender }
    }

    /// Moves payload from `raw` to `inner`. `false` when the client has closed the tunnel.
    fn unwrap_into(&mut self, inner: &mut BytesMut) -> Result<bool, End> {
        while let Some(event) = self.decoder.next(&mut self.raw)? {
            match event {
                Event::Data { bytes, .. } => inner.extend_from_slice(&bytes),
                Event::Ping(payload) => self.sender.control(Opcode::Pong, &payload)?,
                Event::Pong => {}
                Event::Close => return Ok(false),
            }
        }
        Ok(true)
    }
}

impl Source {
    pub(crate) fn new(
        reader: Box<dyn AsyncRead + Send + Unpin>,
        early: &Bytes,
        activity: Activity,
        tunnel: Option<Tunnel>,
    ) -> Result<Self, End> {
        let mut source = Self { reader, buffer: BytesMut::new(), ask: FIRST_READ, activity, tunnel };
        match &mut source.tunnel {
            Some(tunnel) => {
                tunnel.raw.extend_from_slice(early);
                tunnel.unwrap_into(&mut source.buffer)?;
            }
            None => source.buffer.extend_from_slice(early),
        }
        Ok(source)
    }

    /// Reads more into the buffer.
    pub(crate) async fn fill(&mut self) -> Result<(), End> {
        let Some(tunnel) = &mut self.tunnel else {
            return read_more(&mut self.reader, &mut self.buffer, &mut self.ask, &self.activity).await;
        };
        let before = self.buffer.len();
        while self.buffer.len() == before {
            read_more(&mut self.reader, &mut tunnel.raw, &mut self.ask, &self.activity).await?;
            if !tunnel.unwrap_into(&mut self.buffer)? {
                return Err(End::Closed);
            }
            if self.buffer.len() == before {
                // Pings and the like, by the thousand perhaps.
                yield_now().await;
            }
        }
        Ok(())
    }

    /// Throws away what comes until the client closes the connection.
    pub(crate) async fn discard(&mut self) -> io::Result<()> {
        let mut nothing = vec![0; LARGEST_READ];
        while self.reader.read(&mut nothing).await? > 0 {}
        Ok(())
    }
}

async fn read_more(
    reader: &mut (dyn AsyncRead + Send + Unpin),
    buffer: &mut BytesMut,
    ask: &mut usize,
    activity: &Activity,
) -> Result<(), End> {
    buffer.reserve(*ask);
    let count = reader.read_buf(buffer).await?;
    if count == 0 {
        return Err(End::Closed);
    }
    *ask = if count >= *ask { LARGEST_READ } else { (*ask).min((2 * count).max(FIRST_READ)) };
    activity.note();
    Ok(())
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source").field("buffered", &self.buffer.len()).finish_non_exhaustive()
    }
}
