use flate2::{Compress, Compression, FlushCompress};

use super::*;
use crate::spdy::dictionary::dictionary;

fn control(kind: u16, flags: u8, payload: &[u8]) -> Vec<u8> {
    let [.., e, f, g] = payload.len().to_be_bytes();
    [&[0x80, 3][..], &kind.to_be_bytes(), &[flags, e, f, g], payload].concat()
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}

fn packed(context: &mut Compress, headers: &[(&str, &str)]) -> Vec<u8> {
    let mut block = words(&[u32::try_from(headers.len()).unwrap()]);
    for text in headers.iter().flat_map(|(name, value)| [name, value]) {
        block.extend(u32::try_from(text.len()).unwrap().to_be_bytes());
        block.extend_from_slice(text.as_bytes());
    }
    let mut packed = Vec::with_capacity(1000);
    context.compress_vec(&block, &mut packed, FlushCompress::Sync).unwrap();
    packed
}

fn context() -> Compress {
    let mut context = Compress::new(Compression::best(), true);
    context.set_dictionary(&dictionary()).unwrap();
    context
}

/// All events of a stream that comes in pieces of a length; neighbouring data put together, frames that say nothing left out.
fn decode(stream: &[u8], piece: usize) -> Result<Vec<Event>, Violation> {
    let (mut decoder, mut input, mut events) = (Decoder::new(), BytesMut::new(), Vec::new());
    for piece in stream.chunks(piece) {
        input.extend_from_slice(piece);
        while let Some(event) = decoder.next(&mut input)? {
            match (events.last_mut(), event) {
                (
                    Some(Event::Data { id: before, bytes, fin: fin_before @ false }),
                    Event::Data { id, bytes: more, fin },
                ) if *before == id => {
                    *bytes = [&bytes[..], &more[..]].concat().into();
                    *fin_before = fin;
                }
                (_, Event::Ignored) => {}
                (_, event) => events.push(event),
            }
        }
    }
    Ok(events)
}

#[test]
fn frames_are_the_same_however_they_are_cut() {
    let (id, mut context) = (StreamId(1), context());
    let open = [&words(&[1, 0])[..], &[0, 0], &packed(&mut context, &[("port", "80")])].concat();
    // Headers that come later share the context.
    let more = [&words(&[1])[..], &packed(&mut context, &[("port", "81")])].concat();
    let again = [&words(&[3, 0])[..], &[0, 0], &packed(&mut context, &[("port", "82")])].concat();
    let stream = [
        control(1, 0, &open),
        vec![0, 0, 0, 1, 0, 0, 0, 5, b'b', b'y', b't', b'e', b's'],
        control(6, 0, &words(&[7])),
        control(99, 0, b"nobody knows"),
        control(8, 0, &more),
        control(4, 0, &words(&[1, 4, 65536])),
        control(9, 0, &words(&[1, 65536])),
        control(1, 1, &again),
        vec![0, 0, 0, 1, 1, 0, 0, 0],
        control(3, 0, &words(&[3, 5])),
        control(7, 0, &words(&[3, 0])),
    ]
    .concat();
    let expected = vec![
        Event::Open { id, headers: Ok(Headers::of(&[("port", "80")])), fin: false },
        Event::Data { id, bytes: Bytes::from_static(b"bytes"), fin: false },
        Event::Ping(7),
        Event::Open { id: StreamId(3), headers: Ok(Headers::of(&[("port", "82")])), fin: true },
        Event::Data { id, bytes: Bytes::new(), fin: true },
        Event::Reset(StreamId(3)),
        Event::GoAway,
    ];
    for piece in [1, 2, 3, 5, 13, stream.len()] {
        assert_eq!(decode(&stream, piece), Ok(expected.clone()), "in pieces of {piece}");
    }
}

#[test]
fn data_is_given_out_as_it_comes_and_ends_once() {
    let (mut decoder, mut input) = (Decoder::new(), BytesMut::new());
    input.extend_from_slice(&[0, 0, 0, 1, 1, 0xff, 0xff, 0xff, b'x']);
    let first = Event::Data { id: StreamId(1), bytes: Bytes::from_static(b"x"), fin: false };
    assert_eq!(decoder.next(&mut input), Ok(Some(first)));
    assert_eq!(decoder.next(&mut input), Ok(None));
    input.extend_from_slice(&vec![0; 0x00ff_fffe]);
    let Ok(Some(Event::Data { fin: true, bytes, .. })) = decoder.next(&mut input) else { panic!() };
    assert_eq!(bytes.len(), 0x00ff_fffe);
    assert_eq!(decoder.next(&mut input), Ok(None));
}

#[test]
fn bad_headers_are_a_streams_and_broken_ones_the_connections() {
    let mut context = context();
    let twice = packed(&mut context, &[("port", "1"), ("Port", "2")]);
    let fine = packed(&mut context, &[]);
    let open = |id, packed: &[u8]| control(1, 0, &[&words(&[id, 0])[..], &[0, 0], packed].concat());
    let stream = [open(1, &twice), open(3, &fine)].concat();
    let expected = vec![
        Event::Open { id: StreamId(1), headers: Err(HeaderError::Twice), fin: false },
        Event::Open { id: StreamId(3), headers: Ok(Headers::default()), fin: false },
    ];
    assert_eq!(decode(&stream, stream.len()), Ok(expected));
    // The context begins in the middle.
    assert_eq!(decode(&open(1, &fine), 100), Err(Violation::Inflate(InflateError::Corrupt)));
}

#[test]
fn lengths_and_versions_are_checked() {
    let long = [&[0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff][..], &[0; 10]].concat();
    for (stream, expected) in [
        (vec![0x80, 2, 0, 6, 0, 0, 0, 4], Violation::Version(2)),
        (long, Violation::Length { kind: 1, length: 0x00ff_ffff }),
        (control(1, 0, &words(&[1, 0])), Violation::Length { kind: 1, length: 8 }),
        (control(3, 0, &words(&[1])), Violation::Length { kind: 3, length: 4 }),
        (control(3, 0, &words(&[0, 1])), Violation::NoStream),
        (control(4, 0, &words(&[1, 1])), Violation::Length { kind: 4, length: 8 }),
        (control(6, 0, b""), Violation::Length { kind: 6, length: 0 }),
        (control(7, 0, &words(&[1, 2, 3])), Violation::Length { kind: 7, length: 12 }),
        (control(9, 0, &words(&[1])), Violation::Length { kind: 9, length: 4 }),
        (vec![0, 0, 0, 0, 0, 0, 0, 0], Violation::NoStream),
    ] {
        assert_eq!(decode(&stream, stream.len()), Err(expected), "{stream:x?}");
    }
}
