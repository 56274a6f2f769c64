//! SPDY/3.1 as far as Go's client speaks it (github.com/moby/spdystream): no flow control, and headers that nobody reads on the way back.

use anyhow::{Context, Result, ensure};
use bytes::Bytes;
use flate2::{Compress, Compression, FlushCompress};

use super::link::Event;
use super::wire::{Sink, Source};

// A table of the protocol, not code; its checksum is compared below.
#[path = "../../../agent/streaming/src/spdy/dictionary.rs"]
mod dictionary;

/// Of control frames: their first bit, and version 3.
const CONTROL: [u8; 2] = [0x80, 3];
const SYN_STREAM: u16 = 1;
const SYN_REPLY: u16 = 2;
const RST_STREAM: u16 = 3;
const PING: u16 = 6;
const GOAWAY: u16 = 7;
const FIN: u8 = 1;

#[derive(Debug)]
pub(super) struct Reader {
    source: Source,
    /// What is still to come of a data frame.
    frame: Option<Frame>,
}

#[derive(Debug)]
struct Frame {
    stream: u32,
    left: usize,
    fin: bool,
}

#[derive(Debug)]
pub(super) struct Writer {
    sink: Sink,
    deflate: Compress,
    /// Of the next stream; a client's are odd.
    next: u32,
    pings: u32,
}

impl Reader {
    pub(super) fn new(source: Source) -> Self {
        Self { source, frame: None }
    }

    /// The next event; none at the connection's end.
    pub(super) async fn next(&mut self) -> Result<Option<Event>> {
        loop {
            if let Some(Frame { stream, left, fin }) = self.frame.take() {
                let bytes = if left == 0 { Bytes::new() } else { self.source.some(left).await? };
                let left = left - bytes.len();
                if left > 0 {
                    self.frame = Some(Frame { stream, left, fin });
                }
                return Ok(Some(Event::Data { stream, bytes, fin: fin && left == 0 }));
            }
            let Some(head) = self.source.take(8).await? else { return Ok(None) };
            let left = usize::try_from(word(&head, 4)? & 0x00ff_ffff)?;
            if head[0] & 0x80 == 0 {
                self.frame = Some(Frame { stream: word(&head, 0)?, left, fin: head[4] & FIN != 0 });
                continue;
            }
            ensure!(head[..2] == CONTROL, "a control frame begins with {:x?}", &head[..2]);
            let payload = self.source.must(left).await?;
            match u16::from_be_bytes([head[2], head[3]]) {
                SYN_REPLY => return Ok(Some(Event::Reply(word(&payload, 0)?))),
                RST_STREAM => return Ok(Some(Event::Reset(word(&payload, 0)?))),
                PING => return Ok(Some(Event::Pong)),
                // The end follows.
                GOAWAY => {}
                other => anyhow::bail!("a control frame of type {other}"),
            }
        }
    }
}

impl Writer {
    pub(super) fn new(sink: Sink) -> Result<Self> {
        let mut deflate = Compress::new(Compression::best(), true);
        let sum = deflate.set_dictionary(&dictionary::dictionary()).context("set SPDY's dictionary")?;
        ensure!(sum == dictionary::ADLER32, "SPDY's dictionary has the checksum {sum:x}");
        Ok(Self { sink, deflate, next: 1, pings: 1 })
    }

    /// The number of the stream that is opened next.
    pub(super) fn next(&self) -> u32 {
        self.next
    }

    /// Opens the next stream; the server replies with an event.
    pub(super) async fn open(&mut self, headers: &[(&str, &str)]) -> Result<u32> {
        let id = self.next;
        self.next += 2;
        let mut block = length(headers.len())?.to_vec();
        // Go's server gives up a connection with a capital in a name, and Go's client writes none.
        let headers = headers.iter().map(|(name, value)| [name.to_ascii_lowercase(), (*value).to_owned()]);
        for text in headers.flatten() {
            block.extend(length(text.len())?);
            block.extend(text.as_bytes());
        }
        let mut packed = Vec::with_capacity(block.len() + 1024);
        self.deflate.compress_vec(&block, &mut packed, FlushCompress::Sync).context("compress headers")?;
        // No associated stream, the highest priority.
        self.control(SYN_STREAM, &[&id.to_be_bytes(), &[0; 6][..], &packed].concat()).await?;
        Ok(id)
    }

    pub(super) async fn data(&mut self, stream: u32, bytes: &[u8], fin: bool) -> Result<()> {
        let mut head = [stream.to_be_bytes(), length(bytes.len())?].concat();
        head[4] = u8::from(fin) * FIN;
        self.sink.write(&[&head, bytes]).await
    }

    pub(super) async fn reset(&mut self, stream: u32) -> Result<()> {
        const CANCEL: u32 = 5;
        self.control(RST_STREAM, &[stream.to_be_bytes(), CANCEL.to_be_bytes()].concat()).await
    }

    pub(super) async fn ping(&mut self) -> Result<()> {
        let number = self.pings;
        self.pings += 2;
        self.control(PING, &number.to_be_bytes()).await
    }

    async fn control(&mut self, kind: u16, payload: &[u8]) -> Result<()> {
        let head = [&CONTROL[..], &kind.to_be_bytes(), &length(payload.len())?].concat();
        self.sink.write(&[&head, payload]).await
    }
}

/// The four bytes at `at`.
fn word(bytes: &[u8], at: usize) -> Result<u32> {
    let four = bytes.get(at..at + 4).and_then(|four| four.try_into().ok());
    Ok(u32::from_be_bytes(four.context("a frame is too short")?))
}

/// A length as frames (24 bits, after flags of 0) and header blocks have it.
fn length(count: usize) -> Result<[u8; 4]> {
    ensure!(count < 1 << 24, "{count} bytes are more than a frame's");
    Ok(u32::try_from(count)?.to_be_bytes())
}
