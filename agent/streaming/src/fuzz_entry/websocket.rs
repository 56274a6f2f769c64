//! WebSocket.

use bytes::BytesMut;

use crate::websocket::{Decoder, Event};

/// What waits for the rest of its frame: a header, or a control frame.
const MOST_WAITING: usize = 14 + 125;

/// Bytes as they are, in pieces whose length is the first of them: as a connection's reader plays them, without a socket.
///
/// # Panics
/// On a fault.
pub fn websocket(data: &[u8]) {
    let Some((&piece, stream)) = data.split_first() else { return };
    let (mut decoder, mut input) = (Decoder::default(), BytesMut::new());
    let (mut given, mut in_message) = (0, false);
    for piece in stream.chunks(usize::from(piece).max(1)) {
        input.extend_from_slice(piece);
        loop {
            let Ok(next) = decoder.next(&mut input) else { return };
            match next {
                Some(Event::Data { bytes, start, end }) => {
                    assert_eq!(start, !in_message, "a message has one start");
                    in_message = !end;
                    given += bytes.len();
                }
                Some(Event::Ping(payload)) => assert!(payload.len() <= 125),
                Some(Event::Pong) => {}
                Some(Event::Close) => return,
                None => break,
            }
        }
        assert!(input.len() <= MOST_WAITING, "{} bytes wait", input.len());
    }
    assert!(given <= stream.len(), "more data than there was");
}

#[cfg(test)]
mod tests {
    use crate::fuzz_entry::test_random::run;

    #[test]
    fn random_bytes_do_no_harm() {
        run("websocket", 5000, super::websocket);
    }

    #[test]
    fn random_frames_do_no_harm() {
        // Noise is seldom masked, so here it is always.
        run("websocket frames", 5000, |data| {
            let mut frames = vec![data.first().copied().unwrap_or_default()];
            for piece in data.chunks(16) {
                let (first, length) = (piece[0] & 0x8f, u8::try_from(piece.len() - 1).unwrap());
                frames.extend([first, 0x80 | length, 0, 0, 0, 0]);
                frames.extend(&piece[1..]);
            }
            super::websocket(&frames);
        });
    }
}
