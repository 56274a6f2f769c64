//! What a VMM and its file server say to each other: packets on a `SOCK_SEQPACKET` socket pair. A request is a [`Request`] and what the guest
//! wrote; an answer is the request's number and what goes into the guest's buffers.

/// Bytes that one request reads or writes of a file.
pub const MAX_DATA: usize = 128 << 10;
/// Bytes of a request as the guest makes it: its header and arguments (a page), and data.
pub const MAX_REQUEST: usize = MAX_DATA + 4096;
/// Bytes of an answer: its header, and data.
pub const MAX_ANSWER: usize = MAX_DATA + super::fuse::OUT_HEADER;
/// Bytes before what the guest wrote, and before an answer.
pub const REQUEST_HEADER: usize = 16;
pub const ANSWER_HEADER: usize = 8;
/// For sockets to take a packet as a whole, and some more.
pub const SOCKET_BUFFER: usize = 1 << 20;

/// Of a packet to the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// The VMM's own; it comes back with the answer.
    pub number: u64,
    /// Bytes that the guest left for the answer.
    pub room: u32,
}

impl Request {
    #[must_use]
    pub fn to_bytes(self) -> [u8; REQUEST_HEADER] {
        let mut bytes = [0; REQUEST_HEADER];
        bytes[..8].copy_from_slice(&self.number.to_ne_bytes());
        bytes[8..12].copy_from_slice(&self.room.to_ne_bytes());
        bytes
    }

    /// Takes a packet apart.
    #[must_use]
    pub fn parse(packet: &[u8]) -> Option<(Self, &[u8])> {
        let (header, rest) = packet.split_first_chunk::<REQUEST_HEADER>()?;
        let (number, more) = header.split_first_chunk::<8>()?;
        let room = more.first_chunk::<4>()?;
        Some((Self { number: u64::from_ne_bytes(*number), room: u32::from_ne_bytes(*room) }, rest))
    }
}

/// Takes an answer's packet apart.
#[must_use]
pub fn answer(packet: &[u8]) -> Option<(u64, &[u8])> {
    let (number, answer) = packet.split_first_chunk::<ANSWER_HEADER>()?;
    Some((u64::from_ne_bytes(*number), answer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_comes_back_as_it_was() {
        let request = Request { number: 7 << 40, room: 4096 };
        let packet = [&request.to_bytes()[..], b"rest"].concat();
        assert_eq!(Request::parse(&packet), Some((request, &b"rest"[..])));
        assert_eq!(Request::parse(&packet[..15]), None);
        assert_eq!(answer(&packet[..7]), None);
        assert_eq!(answer(&packet[..8]), Some((7 << 40, &b""[..])));
    }
}
