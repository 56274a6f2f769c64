//! Takes frames out of what a client sends.

use bytes::{Buf as _, Bytes, BytesMut};

use super::StreamId;
use super::frame::{FIN, VERSION, kind};
use super::headers::{HeaderError, Headers};
use super::inflate::{InflateError, Inflater};

/// The payload of a control frame that is looked at. Kubernetes' have less than 200 bytes.
const MOST_CONTROL: usize = 16 * 1024;

/// What ends a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Violation {
    #[error("SPDY version {0}")]
    Version(u16),
    #[error("a control frame of type {kind} with {length} bytes")]
    Length { kind: u16, length: usize },
    #[error("a stream without a number")]
    NoStream,
    #[error("stream {0} is opened after one of the same or a higher number, or is even", id.0)]
    StreamId { id: StreamId },
    #[error("unpack headers")]
    Inflate(#[from] InflateError),
}

/// What a client sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    Open {
        id: StreamId,
        headers: Result<Headers, HeaderError>,
        fin: bool,
    },
    /// Some bytes of a stream, and whether they are its last.
    Data {
        id: StreamId,
        bytes: Bytes,
        fin: bool,
    },
    Reset(StreamId),
    Ping(u32),
    GoAway,
    /// A frame that says nothing of interest: an event, so that whoever reads can pause after it.
    Ignored,
}

/// Where in a stream of frames it is. Bytes of data stay in the input until they are given out, so a frame's length costs nothing.
#[derive(Debug)]
pub(crate) struct Decoder {
    part: Part,
    inflater: Inflater,
}

#[derive(Debug, Clone, Copy)]
enum Part {
    Header,
    /// A data frame's bytes.
    Data {
        id: StreamId,
        left: usize,
        fin: bool,
    },
    /// A frame of a type that nobody knows.
    Unknown {
        left: usize,
    },
}

/// A control frame of a type that is known.
struct Control<'a> {
    kind: u16,
    flags: u8,
    payload: &'a [u8],
}

impl Decoder {
    pub(crate) fn new() -> Self {
        Self { part: Part::Header, inflater: Inflater::new() }
    }

    /// What comes next in `input`, whose bytes it takes. `None` where more is needed.
    pub(crate) fn next(&mut self, input: &mut BytesMut) -> Result<Option<Event>, Violation> {
        loop {
            match self.part {
                Part::Header => {
                    let Some(event) = self.header(input)? else { return Ok(None) };
                    if event.is_some() {
                        return Ok(event);
                    }
                }
                Part::Data { left: 1.., .. } | Part::Unknown { left: 1.. } if input.is_empty() => {
                    return Ok(None);
                }
                Part::Data { id, left, fin } => {
                    let bytes = input.split_to(left.min(input.len())).freeze();
                    let left = left - bytes.len();
                    self.part = if left == 0 { Part::Header } else { Part::Data { id, left, fin } };
                    return Ok(Some(Event::Data { id, bytes, fin: fin && left == 0 }));
                }
                Part::Unknown { left } => {
                    let skipped = left.min(input.len());
                    input.advance(skipped);
                    let left = left - skipped;
                    self.part = if left == 0 { Part::Header } else { Part::Unknown { left } };
                    return Ok(Some(Event::Ignored));
                }
            }
        }
    }

    /// Takes a header, and with it a control frame. The outer `None` asks for more bytes; with the inner one, what follows is the payload.
    fn header(&mut self, input: &mut BytesMut) -> Result<Option<Option<Event>>, Violation> {
        let Some((&[a, b, c, d, flags, e, f, g], rest)) = input.split_first_chunk() else { return Ok(None) };
        // 24 bits.
        let length = usize::from(e) << 16 | usize::from(f) << 8 | usize::from(g);
        if a & 0x80 == 0 {
            let id = nonzero(u32::from_be_bytes([a, b, c, d]))?;
            input.advance(8);
            self.part = Part::Data { id, left: length, fin: flags & FIN != 0 };
            return Ok(Some(None));
        }
        let (version, kind) = (u16::from_be_bytes([a & 0x7f, b]), u16::from_be_bytes([c, d]));
        if version != VERSION {
            return Err(Violation::Version(version));
        }
        if !matches!(kind, kind::SYN_STREAM..=kind::SETTINGS | kind::PING..=kind::WINDOW_UPDATE) {
            // "Control frames with unknown types are to be ignored" (section 2.2.1).
            input.advance(8);
            self.part = Part::Unknown { left: length };
            return Ok(Some(None));
        }
        if length > MOST_CONTROL {
            return Err(Violation::Length { kind, length });
        }
        let Some(payload) = rest.get(..length) else { return Ok(None) };
        let event = control(&mut self.inflater, &Control { kind, flags, payload })?;
        input.advance(8 + length);
        Ok(Some(Some(event)))
    }
}

fn control(inflater: &mut Inflater, frame: &Control<'_>) -> Result<Event, Violation> {
    let fin = frame.flags & FIN != 0;
    match frame.kind {
        kind::SYN_STREAM => {
            // After the stream's number: the one it belongs to, a priority, a slot for credentials.
            let ([id, ..], rest) = frame.words::<2>()?;
            let packed = rest.get(2..).ok_or_else(|| frame.length())?;
            let headers = Headers::parse(&inflater.inflate(packed)?);
            Ok(Event::Open { id: nonzero(id)?, headers, fin })
        }
        // A reply to nothing: servers open no streams here. What it says must be unpacked, for the sake of what follows.
        kind::SYN_REPLY | kind::HEADERS => {
            let ([id], packed) = frame.words()?;
            inflater.inflate(packed)?;
            let id = nonzero(id)?;
            Ok(if fin { Event::Data { id, bytes: Bytes::new(), fin } } else { Event::Ignored })
        }
        kind::RST_STREAM => Ok(Event::Reset(nonzero(frame.exactly::<2>()?[0])?)),
        kind::PING => Ok(Event::Ping(frame.exactly::<1>()?[0])),
        kind::GOAWAY => frame.exactly::<2>().map(|_| Event::GoAway),
        kind::WINDOW_UPDATE => frame.exactly::<2>().map(|_| Event::Ignored),
        // SETTINGS: none that changes anything here.
        _ => {
            let ([count], rest) = frame.words()?;
            if u64::from(count) * 8 == rest.len() as u64 { Ok(Event::Ignored) } else { Err(frame.length()) }
        }
    }
}

impl Control<'_> {
    /// The first `N` words of the payload, and the rest.
    fn words<const N: usize>(&self) -> Result<([u32; N], &[u8]), Violation> {
        let (first, rest) = self.payload.split_at_checked(4 * N).ok_or_else(|| self.length())?;
        let mut words = [0; N];
        for (word, bytes) in words.iter_mut().zip(first.chunks_exact(4)) {
            *word = bytes.iter().fold(0, |word, byte| word << 8 | u32::from(*byte));
        }
        Ok((words, rest))
    }

    fn exactly<const N: usize>(&self) -> Result<[u32; N], Violation> {
        let (words, rest) = self.words()?;
        if rest.is_empty() { Ok(words) } else { Err(self.length()) }
    }

    fn length(&self) -> Violation {
        Violation::Length { kind: self.kind, length: self.payload.len() }
    }
}

fn nonzero(id: u32) -> Result<StreamId, Violation> {
    // The highest bit is reserved.
    match id & 0x7fff_ffff {
        0 => Err(Violation::NoStream),
        id => Ok(StreamId(id)),
    }
}

#[cfg(test)]
mod tests;
