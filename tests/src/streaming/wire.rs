//! Bytes of a connection.

use std::time::Duration;
use std::{fmt, io};

use anyhow::{Context, Result, bail};
use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::timeout;

use crate::eventually::patient;

/// No single read or write takes longer: a command that is silent for that long is none of a test's.
const DEADLINE: Duration = Duration::from_secs(60);
/// Bytes that are asked for at once.
const CHUNK: usize = 256 << 10;

/// The reading half.
pub(super) struct Source {
    wire: Box<dyn AsyncRead + Send + Unpin>,
    buffer: BytesMut,
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Source").field("buffered", &self.buffer.len()).finish_non_exhaustive()
    }
}

impl Source {
    pub(super) fn new(wire: impl AsyncRead + Send + Unpin + 'static) -> Self {
        Self { wire: Box::new(wire), buffer: BytesMut::new() }
    }

    /// Reads what there is; false at the end.
    async fn fill(&mut self) -> Result<bool> {
        if self.buffer.capacity() - self.buffer.len() < CHUNK / 4 {
            self.buffer.reserve(CHUNK);
        }
        let read = self.wire.read_buf(&mut self.buffer);
        match timeout(patient(DEADLINE), read).await.context("the server sends nothing")? {
            Ok(count) => Ok(count > 0),
            // A server that has been told enough may be gone before it has read all of ours.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(false),
            Err(error) => Err(error).context("read from the server"),
        }
    }

    /// The next `count` bytes; none at the end.
    pub(super) async fn take(&mut self, count: usize) -> Result<Option<Bytes>> {
        while self.buffer.len() < count {
            if !self.fill().await? {
                match self.buffer.len() {
                    0 => return Ok(None),
                    some => bail!("the connection ends after {some} of {count} bytes"),
                }
            }
        }
        Ok(Some(self.buffer.split_to(count).freeze()))
    }

    /// [`Self::take`] where an end is none of the protocol's.
    pub(super) async fn must(&mut self, count: usize) -> Result<Bytes> {
        self.take(count).await?.with_context(|| format!("the connection ends before {count} bytes"))
    }

    /// What there is of the next `most` bytes.
    pub(super) async fn some(&mut self, most: usize) -> Result<Bytes> {
        if self.buffer.is_empty() && !self.fill().await? {
            bail!("the connection ends in a message, before {most} bytes");
        }
        let count = most.min(self.buffer.len());
        Ok(self.buffer.split_to(count).freeze())
    }
}

/// The writing half.
pub(super) struct Sink(Box<dyn AsyncWrite + Send + Unpin>);

impl fmt::Debug for Sink {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Sink")
    }
}

impl Sink {
    pub(super) fn new(wire: impl AsyncWrite + Send + Unpin + 'static) -> Self {
        Self(Box::new(wire))
    }

    /// Writes the pieces one by one, as Go's client does.
    pub(super) async fn write(&mut self, pieces: &[&[u8]]) -> Result<()> {
        for piece in pieces {
            let write = self.0.write_all(piece);
            timeout(patient(DEADLINE), write)
                .await
                .context("the server takes nothing")?
                .context("write to the server")?;
        }
        Ok(())
    }
}
