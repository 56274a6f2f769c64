//! SPDY.

use bytes::{Bytes, BytesMut};

use crate::spdy::StreamId;
use crate::spdy::decoder::{Decoder, Event};
use crate::spdy::frame::kind;
use crate::spdy::table::{Admission, DataFor, MOST_STREAMS, Table};
use crate::wire::Inbound;

/// What waits for the rest of its frame: a control frame at most.
const MOST_WAITING: usize = 16 * 1024 + 8;

/// Bytes as they are: the shape of the pieces in which they come is in their first byte.
///
/// # Panics
/// On a fault.
pub fn spdy(data: &[u8]) {
    let Some((&pieces, stream)) = data.split_first() else { return };
    play(stream, usize::from(pieces).max(1));
}

/// Frames that are well enough formed to get further than noise does: each byte string picks types, numbers, flags and payloads.
///
/// # Panics
/// On a fault.
pub fn spdy_frames(data: &[u8]) {
    let mut stream = Vec::new();
    let mut rest = data;
    while let Some((&[pick, id, length], more)) = rest.split_first_chunk() {
        let (payload, more) = more.split_at_checked(usize::from(length)).unwrap_or((more, &[]));
        rest = more;
        let id = u32::from(id % 16).to_be_bytes();
        match pick % 10 {
            0 => stream.extend(data_frame(id, pick, payload)),
            // An opened stream that needs no headers: an empty block, stored.
            1 => stream.extend(control(kind::SYN_STREAM, pick, &[&id[..], &[0; 6], STORED].concat())),
            other => stream.extend(control(u16::from(other), pick >> 4, &[&id[..], payload].concat())),
        }
    }
    play(&stream, 7);
}

/// A zlib stream with a block that has nothing in it, flushed.
const STORED: &[u8] = &[0x78, 0x01, 0, 4, 0, 0xfb, 0xff, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff];

fn control(kind: u16, flags: u8, payload: &[u8]) -> Vec<u8> {
    let [.., e, f, g] = payload.len().to_be_bytes();
    [&[0x80, 3][..], &kind.to_be_bytes(), &[flags & 1, e, f, g], payload].concat()
}

fn data_frame(id: [u8; 4], flags: u8, payload: &[u8]) -> Vec<u8> {
    let [.., e, f, g] = payload.len().to_be_bytes();
    [&id[..], &[flags >> 4 & 1, e, f, g], payload].concat()
}

/// Plays a connection, whose bytes come in pieces: as a connection's reader does it, without a socket.
fn play(stream: &[u8], piece: usize) {
    let (mut decoder, mut table) = (Decoder::new(), Table::default());
    let mut input = BytesMut::new();
    // What a session holds, and what it was given.
    let mut streams: Vec<(StreamId, Inbound)> = Vec::new();
    let mut given = 0;
    for piece in stream.chunks(piece) {
        input.extend_from_slice(piece);
        loop {
            let before = input.len();
            let Ok(next) = decoder.next(&mut input) else { return };
            assert!(input.len() <= before, "input grows");
            let Some(event) = next else { break };
            match event {
                Event::Open { id, headers, fin } => match table.open(id, headers, fin) {
                    Ok(Admission::Opened(opened)) => {
                        assert!(id.0 % 2 == 1, "an even number");
                        assert!(table.reply(id).is_some());
                        streams.push((id, opened.inbound));
                    }
                    Ok(Admission::Refused(answer)) => assert!(answer.len() == 16),
                    Ok(Admission::Ignored) => {}
                    Err(_) => return,
                },
                Event::Data { id, bytes, fin } => {
                    given += bytes.len();
                    data(&mut table, id, &bytes, fin);
                }
                Event::Reset(id) => {
                    table.end(id);
                    assert!(!table.is_outbound_open(id) && table.finish(id).is_none());
                }
                Event::Ping(_) => {}
                Event::GoAway => table.go_away(),
                Event::Ignored => {}
            }
        }
        assert!(input.len() <= piece.len() + MOST_WAITING, "{} bytes wait", input.len());
    }
    assert!(given <= stream.len(), "more data than there was");
    assert!(streams.len() <= stream.len() && streams.len() <= MOST_STREAMS);
    for (id, _) in &streams {
        let was_open = table.is_outbound_open(*id);
        assert_eq!(table.finish(*id).is_some(), was_open);
        assert!(table.finish(*id).is_none(), "finished twice");
    }
}

fn data(table: &mut Table, id: StreamId, bytes: &Bytes, fin: bool) {
    if !bytes.is_empty() {
        if let DataFor::Refused(answer) = table.data_for(id) {
            assert!(answer.len() == 16 && !table.is_outbound_open(id));
        }
    }
    if fin {
        table.end_inbound(id);
    }
}

#[cfg(test)]
mod tests {
    use crate::fuzz_entry::test_random::run;

    #[test]
    fn random_bytes_do_no_harm() {
        run("spdy", 5000, super::spdy);
    }

    #[test]
    fn random_frames_do_no_harm() {
        run("spdy_frames", 5000, super::spdy_frames);
    }
}
