//! The frames that a server sends.

use super::{StreamId, dictionary};

pub(crate) const VERSION: u16 = 3;
pub(crate) const FIN: u8 = 1;

/// Types of control frames.
pub(crate) mod kind {
    pub(crate) const SYN_STREAM: u16 = 1;
    pub(crate) const SYN_REPLY: u16 = 2;
    pub(crate) const RST_STREAM: u16 = 3;
    pub(crate) const SETTINGS: u16 = 4;
    pub(crate) const PING: u16 = 6;
    pub(crate) const GOAWAY: u16 = 7;
    pub(crate) const HEADERS: u16 = 8;
    pub(crate) const WINDOW_UPDATE: u16 = 9;
}

/// Why a stream ends at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum ResetStatus {
    ProtocolError = 1,
    InvalidStream = 2,
    RefusedStream = 3,
    /// Nothing is wrong; it is no longer wanted.
    Cancel = 5,
    StreamAlreadyClosed = 9,
}

/// Why a connection ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum GoAway {
    Ok = 0,
    ProtocolError = 1,
}

/// An empty block of headers: in stored blocks, so that it is the same bytes each time and needs no context of 256 KiB. The second block
/// is the mark of a sync flush, without which Go's reader would wait for more.
const NO_HEADERS: [u8; 14] = [0, 4, 0, 0xfb, 0xff, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];

/// Begins a zlib stream: deflate with a window of 32 KiB, and a dictionary, whose Adler-32 follows.
const ZLIB_WITH_DICTIONARY: [u8; 2] = [0x78, 0xbb];

/// Makes the SYN_REPLYs of a connection.
#[derive(Debug, Default)]
pub(crate) struct Replies {
    begun: bool,
}

impl Replies {
    /// One without headers. They have to leave in the order in which they are made: their headers are one zlib stream.
    pub(crate) fn next(&mut self, id: StreamId) -> Vec<u8> {
        let mut payload = id.0.to_be_bytes().to_vec();
        if !std::mem::replace(&mut self.begun, true) {
            payload.extend_from_slice(&ZLIB_WITH_DICTIONARY);
            payload.extend_from_slice(&dictionary::ADLER32.to_be_bytes());
        }
        payload.extend_from_slice(&NO_HEADERS);
        control(kind::SYN_REPLY, &payload)
    }
}

/// The header of a data frame; none here is as long as 16 MiB.
pub(crate) fn data_header(id: StreamId, flags: u8, length: usize) -> [u8; 8] {
    let [a, b, c, d] = id.0.to_be_bytes();
    let [.., e, f, g] = length.to_be_bytes();
    [a, b, c, d, flags, e, f, g]
}

pub(crate) fn reset(id: StreamId, status: ResetStatus) -> Vec<u8> {
    control(kind::RST_STREAM, &[id.0.to_be_bytes(), (status as u32).to_be_bytes()].concat())
}

pub(crate) fn ping(number: u32) -> Vec<u8> {
    control(kind::PING, &number.to_be_bytes())
}

/// `last` is the last stream that was looked at.
pub(crate) fn go_away(last: StreamId, status: GoAway) -> Vec<u8> {
    control(kind::GOAWAY, &[last.0.to_be_bytes(), (status as u32).to_be_bytes()].concat())
}

fn control(kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = (VERSION | 0x8000).to_be_bytes().to_vec();
    frame.extend_from_slice(&kind.to_be_bytes());
    // No flags: lengths here fit into the lowest of three bytes.
    let [.., length] = payload.len().to_be_bytes();
    frame.extend_from_slice(&[0, 0, 0, length]);
    frame.extend_from_slice(payload);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::spdy::{headers::Headers, inflate::Inflater};

    #[test]
    fn replies_are_one_zlib_stream() {
        let (mut replies, mut inflater) = (Replies::default(), Inflater::new());
        for id in [1, 3, 5] {
            let reply = replies.next(StreamId(id));
            assert_eq!(reply[..4], [0x80, 3, 0, 2]);
            assert_eq!(usize::from(reply[7]), reply.len() - 8);
            assert_eq!(Headers::parse(&inflater.inflate(&reply[12..]).unwrap()), Ok(Headers::default()));
        }
    }

    #[test]
    fn frames_are_as_the_draft_draws_them() {
        assert_eq!(data_header(StreamId(7), FIN, 0x0001_0203), [0, 0, 0, 7, 1, 1, 2, 3]);
        assert_eq!(ping(9), [0x80, 3, 0, 6, 0, 0, 0, 4, 0, 0, 0, 9]);
        assert_eq!(
            reset(StreamId(3), ResetStatus::Cancel),
            [0x80, 3, 0, 3, 0, 0, 0, 8, 0, 0, 0, 3, 0, 0, 0, 5]
        );
        assert_eq!(go_away(StreamId(5), GoAway::Ok), [0x80, 3, 0, 7, 0, 0, 0, 8, 0, 0, 0, 5, 0, 0, 0, 0]);
    }
}
