//! Bytes on their way to the client.

use std::io;

use bytes::BufMut as _;
use tokio::io::AsyncReadExt as _;

use crate::runtime::Output;

/// Room for the headers in front of a payload: 8 bytes of SPDY, or 1 of a channel, and up to 10 of WebSocket.
const HEADROOM: usize = 24;

/// What a read of an output asks for at first: most sessions are people at a keyboard.
const FIRST_READ: usize = 4 * 1024;
/// And at most, once reads come back full. A unix socket holds a little more, and with its headers it is three whole segments of the
/// loopback interface, which is how the kubelet comes: one of a few bytes more would cost as much as a large one.
const LARGEST_READ: usize = 3 * LOOPBACK_SEGMENT - HEADROOM;
/// The longest packet of IPv4 without its header and TCP's, timestamps among it.
const LOOPBACK_SEGMENT: usize = 65_535 - 20 - 32;

/// A payload with room for headers in front, so that both leave in one write and the payload is never copied.
#[derive(Debug, Default)]
pub(crate) struct Frame {
    bytes: Vec<u8>,
    /// Where the first header begins.
    start: usize,
    /// What the next read asks for.
    ask: usize,
}

impl Frame {
    pub(crate) fn new() -> Self {
        Self { bytes: Vec::new(), start: HEADROOM, ask: FIRST_READ }
    }

    /// With a copy of `payload`.
    pub(crate) fn of(payload: &[u8]) -> Self {
        let mut frame = Self::new();
        frame.clear();
        frame.bytes.extend_from_slice(payload);
        frame
    }

    /// Bytes that have all the headers they need.
    pub(crate) fn complete(bytes: Vec<u8>) -> Self {
        Self { bytes, start: 0, ask: 0 }
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.resize(HEADROOM, 0);
        self.start = HEADROOM;
    }

    /// Without anything.
    pub(crate) fn empty(&mut self) {
        // Kept: the memory, for the next payload.
        self.bytes.clear();
        self.start = 0;
    }

    /// Replaces the payload by what one read of `output` gives. 0 is its end.
    pub(crate) async fn read_from(&mut self, output: &mut Output) -> io::Result<usize> {
        self.clear();
        self.bytes.reserve(self.ask);
        let count = output.read_buf(&mut (&mut self.bytes).limit(self.ask)).await?;
        if count == self.ask {
            self.ask = (2 * self.ask).min(LARGEST_READ);
        }
        Ok(count)
    }

    pub(crate) fn payload(&self) -> &[u8] {
        self.bytes.get(HEADROOM..).unwrap_or_default()
    }

    /// Puts a header in front of what is there.
    pub(crate) fn prepend(&mut self, header: &[u8]) {
        let start = self.start.saturating_sub(header.len());
        match self.bytes.get_mut(start..self.start) {
            Some(room) if room.len() == header.len() => room.copy_from_slice(header),
            // More headers than any protocol here has.
            _ => drop(self.bytes.splice(start..self.start, header.iter().copied())),
        }
        self.start = start;
    }

    /// All of it.
    pub(crate) fn bytes(&self) -> &[u8] {
        self.bytes.get(self.start..).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_go_in_front_in_any_number() {
        let mut frame = Frame::of(b"payload");
        assert_eq!(frame.bytes(), b"payload");
        frame.prepend(b"inner ");
        frame.prepend(b"outer ");
        assert_eq!(frame.bytes(), b"outer inner payload");
        assert_eq!(frame.payload(), b"payload");
        frame.prepend(&[b'x'; 30]);
        assert_eq!(frame.bytes(), [&[b'x'; 30][..], b"outer inner payload"].concat());
    }

    #[tokio::test]
    async fn reads_grow_with_what_comes() {
        let mut output: Output = Box::new(tokio::io::repeat(b'z').take(1 << 20));
        let mut frame = Frame::new();
        let mut counts = Vec::new();
        while frame.read_from(&mut output).await.unwrap() > 0 {
            counts.push(frame.payload().len());
            frame.prepend(b"header");
        }
        assert_eq!(counts[..8], [4096, 8192, 16384, 32768, 65536, 131_072, 196_425, 196_425]);
        assert_eq!(counts.iter().sum::<usize>(), 1 << 20);
    }
}
