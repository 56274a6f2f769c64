//! WebSocket (RFC 6455) with binary messages, and SPDY in it.

use anyhow::{Result, bail, ensure};
use bytes::Bytes;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream, duplex};
use tokio::net::TcpStream;

use super::link::Event;
use super::wire::{Sink, Source};

const CONTINUATION: u8 = 0;
const BINARY: u8 = 2;
const CLOSE: u8 = 8;
const PING: u8 = 9;
const PONG: u8 = 10;
/// In v5, a channel whose messages name another that is closed.
const CLOSE_CHANNEL: u32 = 255;
/// Bytes between a tunnel's two sides.
const TUNNEL: usize = 256 << 10;

#[derive(Debug)]
pub(super) struct Reader {
    source: Source,
    /// What is still to come of a data frame.
    left: usize,
    /// Of the message that is read.
    channel: u32,
}

#[derive(Debug)]
pub(super) struct Writer(Sink);

/// A piece of what came.
enum Piece {
    /// Starts a message if it says so.
    Data {
        start: bool,
        length: usize,
    },
    Pong,
}

impl Reader {
    pub(super) fn new(source: Source) -> Self {
        Self { source, left: 0, channel: 0 }
    }

    /// The next piece of a message, the first byte of which is its channel; none once the server is done.
    pub(super) async fn next(&mut self) -> Result<Option<Event>> {
        while self.left == 0 {
            match self.frame().await? {
                None => return Ok(None),
                Some(Piece::Pong) => return Ok(Some(Event::Pong)),
                Some(Piece::Data { start, length }) if start && length > 0 => {
                    self.channel = u32::from(self.source.must(1).await?[0]);
                    self.left = length - 1;
                }
                Some(Piece::Data { length, .. }) => self.left = length,
            }
        }
        let bytes = self.source.some(self.left).await?;
        self.left -= bytes.len();
        Ok(Some(Event::Data { stream: self.channel, bytes, fin: false }))
    }

    /// The next piece of a connection whose messages have no channels.
    async fn bare(&mut self) -> Result<Option<Bytes>> {
        while self.left == 0 {
            match self.frame().await? {
                None => return Ok(None),
                Some(Piece::Pong) => {}
                Some(Piece::Data { length, .. }) => self.left = length,
            }
        }
        let bytes = self.source.some(self.left).await?;
        self.left -= bytes.len();
        Ok(Some(bytes))
    }

    /// The head of the next frame. Control frames are read to their ends.
    async fn frame(&mut self) -> Result<Option<Piece>> {
        let Some(head) = self.source.take(2).await? else { return Ok(None) };
        ensure!(head[1] & 0x80 == 0, "the server masks");
        let length = match head[1] {
            126 => u64::from(
                self.source.must(2).await?.iter().fold(0_u16, |sum, byte| sum << 8 | u16::from(*byte)),
            ),
            127 => self.source.must(8).await?.iter().fold(0, |sum, byte| sum << 8 | u64::from(*byte)),
            short => u64::from(short),
        };
        let length = usize::try_from(length)?;
        match head[0] & 0x0f {
            code @ (CONTINUATION | BINARY) => Ok(Some(Piece::Data { start: code == BINARY, length })),
            PONG => self.source.must(length).await.map(|_| Some(Piece::Pong)),
            CLOSE => Ok(None),
            code => bail!("a frame of opcode {code}"),
        }
    }
}

impl Writer {
    pub(super) fn new(sink: Sink) -> Self {
        Self(sink)
    }

    /// Sends one message.
    pub(super) async fn data(&mut self, channel: u32, bytes: &[u8]) -> Result<()> {
        let head = head(BINARY, bytes.len() + 1);
        self.0.write(&[&[&head[..], &[u8::try_from(channel)?]].concat(), bytes]).await
    }

    /// Closes our half of a channel, as only v5 can.
    pub(super) async fn end(&mut self, channel: u32) -> Result<()> {
        self.data(CLOSE_CHANNEL, &[u8::try_from(channel)?]).await
    }

    pub(super) async fn ping(&mut self) -> Result<()> {
        self.0.write(&[&head(PING, 4), b"ping"]).await
    }
}

/// The head of a client's frame. It masks with zeros, which changes nothing.
fn head(opcode: u8, length: usize) -> Vec<u8> {
    let mut head = vec![0x80 | opcode];
    match (u8::try_from(length), u16::try_from(length)) {
        (Ok(short @ ..126), _) => head.push(0x80 | short),
        (_, Ok(medium)) => {
            head.push(0x80 | 126);
            head.extend(medium.to_be_bytes());
        }
        _ => {
            head.push(0x80 | 127);
            head.extend((length as u64).to_be_bytes());
        }
    }
    head.extend([0; 4]);
    head
}

/// A connection inside of a WebSocket's messages. It ends when either side does.
pub(super) fn tunnel(stream: TcpStream) -> DuplexStream {
    let (mine, theirs) = duplex(TUNNEL);
    let (reader, writer) = stream.into_split();
    let (mut from_us, mut to_us) = tokio::io::split(theirs);
    let mut reader = Reader::new(Source::new(reader));
    let mut sink = Sink::new(writer);
    tokio::spawn(async move {
        // An error is the connection's end, which its user sees.
        while let Ok(Some(bytes)) = reader.bare().await {
            if to_us.write_all(&bytes).await.is_err() {
                return;
            }
        }
        let _ = to_us.shutdown().await;
    });
    tokio::spawn(async move {
        let mut buffer = vec![0; 64 << 10];
        while let Ok(count @ 1..) = from_us.read(&mut buffer).await {
            if sink.write(&[&head(BINARY, count), &buffer[..count]]).await.is_err() {
                return;
            }
        }
    });
    mine
}
