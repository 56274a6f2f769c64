//! SPDY that no client of Kubernetes would speak.

use std::sync::atomic::Ordering;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::spdy_client::{Client, Frame, VERSIONS, control, request, upgrade};
use super::{ALL, Lab, OUTPUT, eventually, noise, soon};

/// What a session of `deaf` gets, and that it ends by it.
async fn ends(lab: &Lab, bad: &[u8]) -> Option<u32> {
    let before = lab.machine.seen.abandoned.load(Ordering::Relaxed);
    let started = lab.machine.seen.started.load(Ordering::Relaxed);
    let mut client = Client::connect(&lab.exec(&["deaf"], OUTPUT), VERSIONS).await;
    client.open_all(&["error", "stdout"]).await;
    eventually("it runs", || lab.machine.seen.started.load(Ordering::Relaxed) == started + 1).await;
    client.writer.raw(bad).await;
    let received = client.reader.rest().await;
    drop(client);
    eventually("it ends", || lab.machine.seen.abandoned.load(Ordering::Relaxed) == before + 1).await;
    received.go_away
}

#[tokio::test]
async fn frames_that_break_the_protocol_end_the_session() {
    let lab = Lab::new().await;
    let long = [&[0x80, 3, 0, 1, 0, 0xff, 0xff, 0xff][..], &[0; 64]].concat();
    let words = |words: &[u32]| words.iter().flat_map(|word| word.to_be_bytes()).collect::<Vec<_>>();
    for (what, bad) in [
        ("another version", vec![0x80, 2, 0, 6, 0, 0, 0, 4, 0, 0, 0, 1]),
        ("too long a frame", long),
        ("data of no stream", vec![0, 0, 0, 0, 0, 0, 0, 1, b'x']),
        ("a stream without a number", control(1, 0, &[0; 20])),
        ("no headers at all", control(1, 0, &words(&[5]))),
        ("headers that are not packed", control(1, 0, &[&words(&[5, 0])[..], &[0; 30]].concat())),
        ("a short reset", control(3, 0, &words(&[1]))),
        ("a reset of nothing", control(3, 0, &words(&[0, 5]))),
        ("a long ping", control(6, 0, &words(&[1, 1]))),
        ("a short goodbye", control(7, 0, &words(&[1]))),
        ("a short window", control(9, 0, &words(&[1]))),
        ("settings that are cut off", control(4, 0, &words(&[2, 1, 1]))),
        ("settings without end", control(4, 0, &words(&[u32::MAX]))),
    ] {
        assert_eq!(ends(&lab, &bad).await, Some(1), "{what}");
    }
}

#[tokio::test]
async fn numbers_that_were_used_end_the_session() {
    let lab = Lab::new().await;
    for id in [1, 3, 4] {
        let mut client = Client::connect(&lab.exec(&["deaf"], OUTPUT), VERSIONS).await;
        client.open_all(&["error", "stdout"]).await;
        let frame = client.writer.syn_stream(id, &[("streamtype", "stdin")]);
        client.writer.raw(&frame).await;
        assert_eq!(client.reader.rest().await.go_away, Some(1), "stream {id}");
    }
}

#[tokio::test]
async fn what_may_be_ignored_is() {
    let lab = Lab::new().await;
    let mut client = Client::connect(&lab.exec(&["cat"], ALL), VERSIONS).await;
    let ids = client.open_all(&["error", "stdin", "stdout", "stderr"]).await;
    let settings = [1_u32, 0x0100_0004, 100].map(u32::to_be_bytes).concat();
    let window = [1_u32, 65536].map(u32::to_be_bytes).concat();
    let unknown = control(77, 0, &noise(100_000));
    for frame in [control(4, 0, &settings), control(9, 0, &window), unknown, control(5, 0, b"")] {
        client.writer.raw(&frame).await;
    }
    // Input to an output, to a stream that is over and to one that never was.
    client.writer.data(ids[2], b"?", false).await;
    client.writer.data(ids[0], b"", true).await;
    client.writer.data(ids[0], b"?", false).await;
    assert_eq!(client.reader.frame().await, Some(Frame::Reset { id: ids[0], status: 9 }));
    client.writer.data(99, b"?", false).await;
    assert_eq!(client.reader.frame().await, Some(Frame::Reset { id: 99, status: 2 }));
    client.writer.reset(77).await;
    client.writer.data(ids[1], b"x", true).await;
    assert_eq!(client.reader.rest().await.text(ids[2]), "x");
}

#[tokio::test]
async fn streams_of_unknown_types_are_refused_and_the_session_goes_on() {
    let lab = Lab::new().await;
    let mut client = Client::connect(&lab.exec(&["say", "fine"], OUTPUT), VERSIONS).await;
    let error = client.writer.open(&[("streamtype", "error")]).await;
    let refused = [
        (client.writer.open(&[("streamtype", "stdlog")]).await, 3),
        (client.writer.open(&[]).await, 3),
        (client.writer.open(&[("streamtype", "error")]).await, 1),
        (client.writer.open(&[("a", "1"), ("a", "2")]).await, 1),
    ];
    let stdout = client.writer.open(&[("streamtype", "stdout")]).await;
    let received = client.reader.rest().await;
    assert_eq!(received.replies, [error, stdout]);
    for (id, status) in refused {
        assert_eq!(received.resets.get(&id), Some(&status), "stream {id}");
    }
    assert_eq!(received.text(stdout), "fine");
    assert_eq!(received.exit_code(error), 0);
}

#[tokio::test]
async fn headers_that_unpack_to_more_than_anybody_needs_end_the_session() {
    let lab = Lab::new().await;
    let mut client = Client::connect(&lab.exec(&["deaf"], OUTPUT), VERSIONS).await;
    client.open_all(&["error", "stdout"]).await;
    let filler = "a".repeat(4 << 20);
    let bomb = client.writer.syn_stream(5, &[("filler", &filler)]);
    assert!(bomb.len() < 16 * 1024, "the bomb itself must be small");
    client.writer.raw(&bomb).await;
    assert_eq!(client.reader.rest().await.go_away, Some(1));
}

#[tokio::test]
async fn a_client_that_asks_and_never_reads_is_cut_off() {
    let lab = Lab::new().await;
    let mut client = Client::connect(&lab.exec(&["deaf"], OUTPUT), VERSIONS).await;
    client.open_all(&["error", "stdout"]).await;
    let pings = control(6, 0, &1_u32.to_be_bytes()).repeat(10_000);
    let flood = async { while client.writer.wire.write_all(&pings).await.is_ok() {} };
    soon(flood).await;
    eventually("it ends", || lab.machine.seen.abandoned.load(Ordering::Relaxed) == 1).await;
}

#[tokio::test]
async fn a_client_that_ends_in_the_middle_of_a_frame_is_gone() {
    let lab = Lab::new().await;
    for cut in [&b"\x80"[..], &[0x80, 3, 0, 1, 0, 0, 0, 100, 0], &[0, 0, 0, 1, 0, 0, 1, 0, b'x']] {
        let before = lab.machine.seen.abandoned.load(Ordering::Relaxed);
        let mut client = Client::connect(&lab.exec(&["deaf"], ALL), VERSIONS).await;
        client.open_all(&["error", "stdin", "stdout", "stderr"]).await;
        client.writer.raw(cut).await;
        client.writer.wire.shutdown().await.unwrap();
        eventually("it ends", || lab.machine.seen.abandoned.load(Ordering::Relaxed) == before + 1).await;
    }
}

#[tokio::test]
async fn what_comes_with_the_request_is_not_lost() {
    let lab = Lab::new().await;
    let url = lab.exec(&["say", "early"], OUTPUT);
    let (address, path) = url.as_str().strip_prefix("http://").unwrap().split_once('/').unwrap();
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let mut client = Client::over(stream);
    let mut all = format!("POST /{path} HTTP/1.1\r\nHost: node\r\nContent-Length: 0\r\n").into_bytes();
    for (name, value) in upgrade(VERSIONS) {
        all.extend(format!("{name}: {value}\r\n").bytes());
    }
    all.extend(b"\r\n");
    all.extend(client.writer.syn_stream(1, &[("streamtype", "error")]));
    all.extend(client.writer.syn_stream(3, &[("streamtype", "stdout")]));
    client.writer.raw(&all).await;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(soon(client.reader.wire.read_u8()).await.unwrap());
    }
    assert_eq!(client.reader.rest().await.text(3), "early");
}

#[tokio::test]
async fn noise_is_survived() {
    let lab = Lab::new().await;
    for length in [1, 100, 10_000, 1_000_000] {
        let (_, mut stream) = request(&lab.exec(&["deaf"], ALL), "POST", &upgrade(VERSIONS)).await;
        // It may be cut off before its end.
        let _ = stream.write_all(&noise(length)).await;
        drop(stream);
    }
    let mut client = Client::connect(&lab.exec(&["exit", "0"], OUTPUT), VERSIONS).await;
    let ids = client.open_all(&["error", "stdout"]).await;
    assert_eq!(client.reader.rest().await.exit_code(ids[0]), 0);
}
