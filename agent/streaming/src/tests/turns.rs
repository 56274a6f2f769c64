//! What a client that never pauses can keep waiting, and what it can have kept.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use tokio::io::{AsyncRead, ReadBuf};

use super::spdy_client::control;
use super::websocket_client::masked;
use crate::spdy::{Connection, ResetStatus};
use crate::websocket::{Channels, Codec};
use crate::wire::{End, Framing, Peer, Wire};

/// Says the same again and again, and always has more: unlike a socket it lets whoever reads go on for ever.
struct Endless {
    bytes: Vec<u8>,
    at: usize,
    reads: Arc<AtomicUsize>,
}

/// Reads after which it ends all the same.
const MOST_READS: usize = 1000;

impl AsyncRead for Endless {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.reads.fetch_add(1, Ordering::Relaxed) == MOST_READS {
            return Poll::Ready(Ok(()));
        }
        while buf.remaining() > 0 {
            let rest = &self.bytes[self.at..];
            let count = rest.len().min(buf.remaining());
            buf.put_slice(&rest[..count]);
            self.at = (self.at + count) % self.bytes.len();
        }
        Poll::Ready(Ok(()))
    }
}

fn wire(reader: impl AsyncRead + Send + Unpin + 'static) -> Wire {
    let (reader, writer) = (Box::new(reader), Box::new(tokio::io::sink()));
    Wire { reader, writer, peer: Peer::default(), early: Bytes::new() }
}

#[tokio::test]
async fn a_client_that_never_pauses_gets_turns_and_no_more() {
    let unknown = control(77, 0, b"");
    let pong = control(6, 0, &2_u32.to_be_bytes());
    let empty = masked(0x82, b"");
    let reads_in_a_turn = |bytes: &[u8], framing: Option<Framing>| {
        let reads = Arc::<AtomicUsize>::default();
        let wire = wire(Endless { bytes: bytes.to_vec(), at: 0, reads: Arc::clone(&reads) });
        let end = match framing {
            Some(framing) => Connection::new(wire, framing).unwrap().0.read().now_or_never(),
            None => Channels::new(wire, Codec::Binary, vec![]).unwrap().read().now_or_never(),
        };
        assert!(end.is_none(), "it reads to the end in one turn: {end:?}");
        reads.load(Ordering::Relaxed)
    };
    for (what, bytes, framing) in [
        ("frames of unknown types", &unknown, Some(Framing::Bare)),
        ("answers to nothing", &pong, Some(Framing::Bare)),
        ("empty messages in a tunnel", &empty, Some(Framing::Messages)),
        ("empty messages", &empty, None),
    ] {
        // The first is of 8 KiB.
        assert!(reads_in_a_turn(bytes, framing) <= 2, "{what}");
    }
}

/// Streams, each of which is reset as soon as it is opened. Headers: none, which a stored block of zlib says.
fn opened_and_reset(count: u32) -> Vec<u8> {
    let mut frames = Vec::new();
    for id in (1..).step_by(2).take(usize::try_from(count).unwrap()) {
        let zlib: &[u8] = if id == 1 { &[0x78, 0x01] } else { &[] };
        let none = [zlib, &[0, 4, 0, 0xfb, 0xff, 0, 0, 0, 0]].concat();
        frames.extend(control(1, 0, &[&u32::to_be_bytes(id)[..], &[0; 6], &none].concat()));
        frames.extend(control(3, 0, &[id, 5].map(u32::to_be_bytes).concat()));
    }
    frames
}

#[tokio::test(start_paused = true)]
async fn streams_that_are_given_up_at_once_wait_in_a_number_that_is_bounded() {
    let (mut connection, mut opened) =
        Connection::new(wire(io::Cursor::new(opened_and_reset(5000))), Framing::Bare).unwrap();
    let mut reading = Box::pin(connection.read());
    let all = tokio::time::timeout(Duration::from_secs(1), &mut reading).await;
    assert!(all.is_err(), "it reads on though nobody takes what it has");
    assert!(opened.len() < 100, "{} streams wait", opened.len());
    let taken = async {
        for _ in 0..5000 {
            opened.recv().await.unwrap().refuse(ResetStatus::RefusedStream).unwrap();
        }
    };
    let ((), end) = tokio::join!(taken, reading);
    assert!(matches!(end, End::Closed), "{end:?}");
}
