//! Nobody is faster than the slower side, and nothing piles up between them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpSocket;

use super::spdy_client::{Client, Frame, VERSIONS, request_over, upgrade};
use super::{ALL, Lab, OUTPUT, eventually, noise, soon};

/// What sockets of this machine may hold, and more.
const SOCKETS: u64 = 16 << 20;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_megabytes_go_both_ways_at_once() {
    let lab = Lab::new().await;
    let mut client = Client::connect(&lab.exec(&["cat"], ALL), VERSIONS).await;
    let ids = client.open_all(&["error", "stdin", "stdout", "stderr"]).await;
    let input = noise(20 << 20);
    let Client { mut reader, mut writer } = client;
    let send = async {
        for piece in input.chunks(32 * 1024) {
            writer.data(ids[1], piece, false).await;
        }
        writer.data(ids[1], b"", true).await;
        // Go's clients keep their half open.
        writer
    };
    let (received, _writer) = tokio::join!(reader.rest(), send);
    assert!(received.data[&ids[2]] == input);
    assert_eq!(received.exit_code(ids[0]), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_client_stops_the_producer() {
    let lab = Lab::new().await;
    let total = 256_u64 << 20;
    let url = lab.exec(&["zeros", &total.to_string()], OUTPUT);
    let mut client = Client::connect(&url, VERSIONS).await;
    let ids = client.open_all(&["error", "stdout"]).await;
    let produced = || lab.machine.seen.produced.load(Ordering::Relaxed);
    eventually("it runs", || produced() > 0).await;
    let ahead = settled(produced).await;
    assert!(ahead < SOCKETS, "{ahead} bytes ahead of a client that reads nothing");
    // And in time all of it comes.
    let mut count = 0;
    while let Some(frame) = client.reader.frame().await {
        if let Frame::Data { id, bytes, .. } = frame {
            count += if id == ids[1] { bytes.len() as u64 } else { 0 };
        }
    }
    assert_eq!(count, total);
}

#[tokio::test]
async fn a_process_that_does_not_read_stops_its_client() {
    let lab = Lab::new().await;
    let mut client = Client::connect(&lab.exec(&["deaf"], ALL), VERSIONS).await;
    let ids = client.open_all(&["error", "stdin", "stdout", "stderr"]).await;
    let sent = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&sent);
    let flood = tokio::spawn(async move {
        let piece = noise(32 * 1024);
        while count.load(Ordering::Relaxed) < 10 * SOCKETS {
            client.writer.data(ids[1], &piece, false).await;
            count.fetch_add(piece.len() as u64, Ordering::Relaxed);
        }
    });
    eventually("much was sent", || sent.load(Ordering::Relaxed) > 1 << 20).await;
    settled(|| sent.load(Ordering::Relaxed)).await;
    assert!(!flood.is_finished(), "nothing holds the client back");
    flood.abort();
}

/// What a number is once it changes no more.
async fn settled(number: impl Fn() -> u64) -> u64 {
    let mut last = number();
    loop {
        tokio::time::sleep(Duration::from_millis(200)).await;
        match number() {
            same if same == last => return same,
            more => last = more,
        }
    }
}

#[tokio::test]
async fn an_exit_is_told_while_input_is_still_coming() {
    let lab = Lab::new().await;
    let mut client = Client::connect(&lab.exec(&["deaf"], ALL), VERSIONS).await;
    let ids = client.open_all(&["error", "stdin", "stdout", "stderr"]).await;
    let Client { mut reader, mut writer } = client;
    // More than the process's pipe holds: the server waits in the middle of it.
    for piece in noise(600_000).chunks(32 * 1024) {
        writer.data(ids[1], piece, false).await;
    }
    writer.ping(1).await;
    assert_eq!(reader.frame().await, Some(Frame::Ping(1)), "input that waits is not in the way of a ping");
    lab.machine.seen.release.notify_one();
    let received = soon(async {
        let more = async {
            // As Go's client: it goes on until it hears of the end, and longer.
            let (piece, mut sent) = ([b'z'; 8192], 0);
            while sent < 200 && writer.wire.write_all(&[0, 0, 0, 3, 0, 0, 0x20, 0]).await.is_ok() {
                if writer.wire.write_all(&piece).await.is_err() {
                    break;
                }
                sent += 1;
            }
            writer.wire.shutdown().await
        };
        tokio::join!(reader.rest(), more).0
    });
    assert_eq!(received.await.exit_code(ids[0]), 5);
}

#[tokio::test]
async fn last_words_are_not_lost_on_a_client_whose_input_nobody_read() {
    let lab = Lab::new().await;
    let total = 3 << 20;
    let mut client = Client::connect(&lab.exec(&["zeros", &total.to_string()], ALL), VERSIONS).await;
    let ids = client.open_all(&["error", "stdin", "stdout", "stderr"]).await;
    // More than is read for a process that takes nothing: what is left in the socket makes the kernel reset a connection that is closed,
    // and drop what the client was still to get.
    for piece in noise((1 << 20) + (160 << 10)).chunks(32 * 1024) {
        client.writer.data(ids[1], piece, false).await;
    }
    // Until all of its output is in sockets, or waits for them.
    settled(|| lab.machine.seen.produced.load(Ordering::Relaxed)).await;
    let received = client.reader.rest().await;
    assert_eq!(received.data[&ids[2]].len(), total);
    assert_eq!(received.exit_code(ids[0]), 0);
}

#[tokio::test]
async fn a_client_that_vanishes_while_its_input_waits_is_missed() {
    let lab = Lab::new().await;
    let mut client = Client::connect(&lab.exec(&["deaf"], ALL), VERSIONS).await;
    let ids = client.open_all(&["error", "stdin", "stdout", "stderr"]).await;
    // What pipe, budget and reader take, and a little for the socket: more there, and the client's end would never come through to a
    // server that does not read.
    for piece in noise((1 << 20) + (160 << 10)).chunks(32 * 1024) {
        client.writer.data(ids[1], piece, false).await;
    }
    drop(client);
    eventually("its client is gone", || lab.machine.seen.abandoned.load(Ordering::Relaxed) == 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn output_without_end_does_not_keep_input_from_coming() {
    let lab = Lab::new().await;
    let url = lab.exec(&["zeros", &(1_u64 << 40).to_string()], ALL);
    let mut client = Client::connect(&url, VERSIONS).await;
    let ids = client.open_all(&["error", "stdin", "stdout", "stderr"]).await;
    let Client { mut reader, mut writer } = client;
    let (found, ping) = (tokio::sync::Notify::new(), async {
        for _ in 0..50 {
            writer.ping(7).await;
            tokio::task::yield_now().await;
        }
    });
    let read = async {
        let mut pings = 0;
        while pings < 50 {
            match reader.frame().await {
                Some(Frame::Ping(7)) => pings += 1,
                Some(Frame::Data { id, .. }) => assert_eq!(id, ids[2]),
                other => panic!("{other:?}"),
            }
        }
        found.notify_one();
    };
    soon(async { tokio::join!(ping, read) }).await;
}

/// As `crictl exec | slow`, which pings meanwhile: a ping that meets a closed socket has the kernel drop all that is still to be sent.
#[tokio::test]
async fn a_slow_client_gets_the_last_bytes_also_after_a_while() {
    let lab = Lab::new().await;
    let total = 1_000_000_usize;
    let url = lab.exec(&["zeros", &total.to_string()], OUTPUT);
    // Of what the client does not read, most is to wait on the server's side.
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(32 * 1024).unwrap();
    let stream = socket.connect(lab.server.address()).await.unwrap();
    let (_, path) = url.as_str().strip_prefix("http://").unwrap().split_once('/').unwrap();
    let (head, stream) = request_over(stream, "POST", &format!("/{path}"), &upgrade(VERSIONS)).await;
    assert!(head.starts_with("http/1.1 101 "), "{head}");
    let mut client = Client::over(stream);
    let ids = client.open_all(&["error", "stdout"]).await;
    eventually("all is said", || lab.machine.seen.produced.load(Ordering::Relaxed) == total as u64).await;
    // The clock goes on whenever nobody has anything to do: when it does, the session is over.
    tokio::time::pause();
    for _ in 0..4 {
        tokio::time::sleep(Duration::from_secs(6)).await;
        client.writer.ping(1).await;
    }
    tokio::time::resume();
    let received = client.reader.rest().await;
    assert_eq!(received.data[&ids[1]].len(), total);
    assert_eq!(received.exit_code(ids[0]), 0);
}
