//! Takes frames out of what a client sends.

use bytes::{Buf as _, Bytes, BytesMut};

/// What a client may not do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Violation {
    #[error("a frame that is not masked")]
    Unmasked,
    #[error("reserved bits in {0:#04x}")]
    ReservedBits(u8),
    #[error("opcode {0} is unknown")]
    Opcode(u8),
    #[error("a control frame in pieces or with more than 125 bytes")]
    Control,
    #[error("a message within another")]
    Interleaved,
    #[error("a continuation of nothing")]
    Continuation,
    #[error("a frame of {0} bytes")]
    Length(u64),
    #[error("a channel is not closed by its number alone")]
    ChannelClose,
    #[error("not base64")]
    Base64,
}

/// What a client sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// Some of a message, text or binary.
    Data {
        bytes: Bytes,
        /// Nothing of this message came before.
        start: bool,
        /// Nothing of it follows.
        end: bool,
    },
    Ping(Bytes),
    Pong,
    Close,
}

/// Where in a stream of frames it is. Holds nothing but numbers: payload stays in the input until it is given out.
#[derive(Debug, Default)]
pub(crate) struct Decoder {
    /// The frame of data whose payload is not all given out.
    frame: Option<Payload>,
    message: Message,
}

/// Which part of a message comes next.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Message {
    #[default]
    None,
    /// Its first bytes.
    Begun,
    /// Others.
    Continued,
}

#[derive(Debug)]
struct Payload {
    left: u64,
    /// Begins with the byte that masks the next.
    mask: [u8; 4],
    fin: bool,
}

/// A parsed header.
struct Head {
    fin: bool,
    opcode: u8,
    mask: [u8; 4],
    payload: u64,
    /// Its own bytes.
    length: usize,
}

impl Decoder {
    /// What comes next in `input`, whose bytes it takes. `None` where more is needed.
    pub(crate) fn next(&mut self, input: &mut BytesMut) -> Result<Option<Event>, Violation> {
        if self.frame.is_none() {
            let Some(head) = Head::parse(input)? else { return Ok(None) };
            if head.opcode >= 8 {
                return control(&head, input);
            }
            self.begin(&head)?;
            input.advance(head.length);
        }
        Ok(self.data(input))
    }

    fn begin(&mut self, head: &Head) -> Result<(), Violation> {
        self.message = match (head.opcode, self.message) {
            (0, Message::None) => return Err(Violation::Continuation),
            (0, part) => part,
            (1 | 2, Message::None) => Message::Begun,
            (1 | 2, _) => return Err(Violation::Interleaved),
            (opcode, _) => return Err(Violation::Opcode(opcode)),
        };
        self.frame = Some(Payload { left: head.payload, mask: head.mask, fin: head.fin });
        Ok(())
    }

    fn data(&mut self, input: &mut BytesMut) -> Option<Event> {
        let frame = self.frame.as_mut()?;
        if frame.left > 0 && input.is_empty() {
            return None;
        }
        let count = usize::try_from(frame.left).unwrap_or(usize::MAX).min(input.len());
        let mut bytes = input.split_to(count);
        unmask(&mut bytes, frame.mask);
        frame.mask.rotate_left(count % 4);
        frame.left -= count as u64;
        let (whole, end) = (frame.left == 0, frame.left == 0 && frame.fin);
        let start = self.message == Message::Begun;
        if whole {
            self.frame = None;
        }
        self.message = if end { Message::None } else { Message::Continued };
        Some(Event::Data { bytes: bytes.freeze(), start, end })
    }
}

impl Head {
    fn parse(input: &[u8]) -> Result<Option<Self>, Violation> {
        let [first, second, rest @ ..] = input else { return Ok(None) };
        if first & 0x70 != 0 {
            return Err(Violation::ReservedBits(*first));
        }
        if second & 0x80 == 0 {
            return Err(Violation::Unmasked);
        }
        let (payload, rest) = match (second & 0x7f, rest) {
            (126, [a, b, rest @ ..]) => (u64::from(u16::from_be_bytes([*a, *b])), rest),
            (127, [a, b, c, d, e, f, g, h, rest @ ..]) => {
                (u64::from_be_bytes([*a, *b, *c, *d, *e, *f, *g, *h]), rest)
            }
            (126 | 127, _) => return Ok(None),
            (short, rest) => (u64::from(short), rest),
        };
        if payload >> 63 != 0 {
            return Err(Violation::Length(payload));
        }
        let [a, b, c, d, rest @ ..] = rest else { return Ok(None) };
        let (mask, length) = ([*a, *b, *c, *d], input.len() - rest.len());
        Ok(Some(Self { fin: first & 0x80 != 0, opcode: first & 0x0f, mask, payload, length }))
    }
}

fn control(head: &Head, input: &mut BytesMut) -> Result<Option<Event>, Violation> {
    let payload = match usize::try_from(head.payload) {
        Ok(payload @ ..=125) if head.fin => payload,
        _ => return Err(Violation::Control),
    };
    if !matches!(head.opcode, 8..=10) {
        return Err(Violation::Opcode(head.opcode));
    }
    if input.len() < head.length + payload {
        return Ok(None);
    }
    input.advance(head.length);
    let mut bytes = input.split_to(payload);
    unmask(&mut bytes, head.mask);
    Ok(Some(match head.opcode {
        8 => Event::Close,
        9 => Event::Ping(bytes.freeze()),
        _ => Event::Pong,
    }))
}

fn unmask(bytes: &mut [u8], mask: [u8; 4]) {
    let [a, b, c, d] = mask;
    let wide = u64::from_ne_bytes([a, b, c, d, a, b, c, d]);
    let mut words = bytes.chunks_exact_mut(8);
    for word in &mut words {
        let mut masked = [0; 8];
        masked.copy_from_slice(word);
        word.copy_from_slice(&(u64::from_ne_bytes(masked) ^ wide).to_ne_bytes());
    }
    for (byte, mask) in words.into_remainder().iter_mut().zip(mask.iter().cycle()) {
        *byte ^= mask;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A client's frame.
    fn frame(first: u8, payload: &[u8]) -> Vec<u8> {
        let mask = [0xde, 0xad, 0xbe, 0xef];
        let mut frame = super::super::header(super::super::Opcode::Binary, payload.len()).to_vec();
        frame[0] = first;
        frame[1] |= 0x80;
        frame.extend_from_slice(&mask);
        frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        frame
    }

    fn decode(input: &[u8]) -> Result<Vec<Event>, Violation> {
        let (mut decoder, mut buffer) = (Decoder::default(), BytesMut::from(input));
        std::iter::from_fn(|| decoder.next(&mut buffer).transpose()).collect()
    }

    fn data(bytes: &'static [u8], start: bool, end: bool) -> Event {
        Event::Data { bytes: Bytes::from_static(bytes), start, end }
    }

    #[test]
    fn messages_in_pieces_have_one_start_and_one_end() {
        let input = [
            frame(0x02, b"one "),
            frame(0x89, b"?"),
            frame(0x00, b""),
            frame(0x80, b"two"),
            frame(0x81, b""),
        ];
        let expected = vec![
            data(b"one ", true, false),
            Event::Ping(Bytes::from_static(b"?")),
            data(b"", false, false),
            data(b"two", false, true),
            data(b"", true, true),
        ];
        assert_eq!(decode(&input.concat()), Ok(expected));
    }

    #[test]
    fn payload_is_the_same_however_it_is_cut() {
        let payload = (0..70_000_u32).map(|n| n.to_le_bytes()[0]).collect::<Vec<_>>();
        let input = [frame(0x82, &payload), frame(0x88, b"\x03\xe8")].concat();
        for piece in [1, 3, 7, 4096, input.len()] {
            let (mut decoder, mut buffer) = (Decoder::default(), BytesMut::new());
            let (mut received, mut starts, mut closed) = (Vec::new(), 0, false);
            for piece in input.chunks(piece) {
                buffer.extend_from_slice(piece);
                while let Some(event) = decoder.next(&mut buffer).unwrap() {
                    match event {
                        Event::Data { bytes, start, .. } => {
                            received.extend_from_slice(&bytes);
                            starts += usize::from(start);
                        }
                        event => closed = event == Event::Close,
                    }
                }
            }
            assert!(received == payload && starts == 1 && closed, "in pieces of {piece}");
        }
    }

    #[test]
    fn what_a_client_may_not_send_is_refused() {
        let long = |first: u8, length: u64| [&[first, 0xff][..], &length.to_be_bytes(), &[0; 4]].concat();
        for (input, expected) in [
            (vec![0x82, 0x01, b'x'], Violation::Unmasked),
            (frame(0xc2, b"x"), Violation::ReservedBits(0xc2)),
            (frame(0x83, b"x"), Violation::Opcode(3)),
            (frame(0x8b, b"x"), Violation::Opcode(11)),
            (frame(0x09, b"x"), Violation::Control),
            (frame(0x89, &[0; 126]), Violation::Control),
            (frame(0x80, b"x"), Violation::Continuation),
            ([frame(0x02, b"x"), frame(0x82, b"x")].concat(), Violation::Interleaved),
            (long(0x82, 1 << 63), Violation::Length(1 << 63)),
        ] {
            assert_eq!(decode(&input), Err(expected), "{input:x?}");
        }
    }

    #[test]
    fn a_frame_that_promises_more_than_there_is_memory_takes_none() {
        let input = [&[0x82, 0xff][..], &(u64::MAX >> 1).to_be_bytes(), &[0; 4], b"abc"].concat();
        assert_eq!(decode(&input), Ok(vec![data(b"abc", true, false)]));
    }
}
