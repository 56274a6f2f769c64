//! Headers of the frames that a server sends.

use std::ops::Deref;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Opcode {
    Text = 1,
    Binary = 2,
    Close = 8,
    Pong = 10,
}

/// A frame's header.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Header {
    bytes: [u8; 10],
    len: usize,
}

/// The header of an unmasked frame that is a whole message.
pub(crate) fn header(opcode: Opcode, payload: usize) -> Header {
    const FIN: u8 = 0x80;
    let mut bytes = [0; 10];
    let [first, second, rest @ ..] = &mut bytes;
    *first = FIN | opcode as u8;
    let len = match (u8::try_from(payload), u16::try_from(payload)) {
        (Ok(short @ ..=125), _) => {
            *second = short;
            2
        }
        (_, Ok(medium)) => {
            *second = 126;
            rest[..2].copy_from_slice(&medium.to_be_bytes());
            4
        }
        _ => {
            *second = 127;
            rest.copy_from_slice(&(payload as u64).to_be_bytes());
            10
        }
    };
    Header { bytes, len }
}

impl Deref for Header {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_take_the_shortest_form() {
        for (payload, expected) in [
            (0, &[0x82, 0][..]),
            (125, &[0x82, 125]),
            (126, &[0x82, 126, 0, 126]),
            (65535, &[0x82, 126, 0xff, 0xff]),
            (65536, &[0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]),
        ] {
            assert_eq!(&*header(Opcode::Binary, payload), expected);
        }
    }
}
