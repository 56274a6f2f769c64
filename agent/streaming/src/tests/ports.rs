//! Port-forwarding.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, DuplexStream};

use super::spdy_client::{self, Client, Frame};
use super::websocket_client::{self, masked};
use super::{Lab, eventually, noise, soon};
use crate::Config;

const PORTS: &str = "portforward.k8s.io";

/// Makes the two streams of a connection, as Go's client does: the error stream first, and its own half of that closed.
async fn forward<S: AsyncRead + AsyncWrite>(client: &mut Client<S>, port: &str, request: &str) -> (u32, u32) {
    let headers = |kind| [("streamtype", kind), ("port", port), ("requestid", request)];
    let error = client.writer.open(&headers("error")).await;
    assert_eq!(client.reader.frame().await, Some(Frame::Reply(error)));
    client.writer.data(error, b"", true).await;
    let data = client.writer.open(&headers("data")).await;
    assert_eq!(client.reader.frame().await, Some(Frame::Reply(data)));
    (error, data)
}

/// All that comes on a connection's streams, until both are closed.
async fn both<S: AsyncRead + AsyncWrite>(
    client: &mut Client<S>,
    error: u32,
    data: u32,
) -> (Vec<u8>, Vec<u8>) {
    let (mut errors, mut bytes, mut open) = (Vec::new(), Vec::new(), 2);
    while open > 0 {
        match client.reader.frame().await {
            Some(Frame::Data { id, bytes: more, fin }) => {
                if id == error {
                    errors.extend(more)
                } else {
                    bytes.extend(more)
                }
                open -= usize::from(fin);
            }
            Some(Frame::Reset { id, .. }) if id == data => open -= 1,
            other => panic!("{other:?}"),
        }
    }
    (errors, bytes)
}

#[tokio::test]
async fn half_close_is_passed_on_both_ways() {
    let lab = Lab::new().await;
    let mut client = Client::connect(&lab.port_forward(&[]), PORTS).await;
    // Says how much it heard, after the end of that.
    let (error, data) = forward(&mut client, "8", "0").await;
    client.writer.data(data, &noise(12_345), false).await;
    client.writer.data(data, b"", true).await;
    assert_eq!(both(&mut client, error, data).await, (vec![], b"12345".to_vec()));
    // Closes first. The client then resets what it has not closed.
    let (error, data) = forward(&mut client, "19", "1").await;
    let hello = Frame::Data { id: data, bytes: b"hello".to_vec(), fin: false };
    assert_eq!(client.reader.frame().await, Some(hello));
    assert_eq!(client.reader.frame().await, Some(Frame::Data { id: data, bytes: vec![], fin: true }));
    client.writer.reset(data).await;
    assert_eq!(client.reader.frame().await, Some(Frame::Data { id: error, bytes: vec![], fin: true }));
}

#[tokio::test]
async fn a_port_that_is_closed_is_told_on_the_error_stream_and_the_others_live_on() {
    let lab = Lab::new().await;
    let mut client = Client::connect(&lab.port_forward(&[]), PORTS).await;
    let (echo_error, echo) = forward(&mut client, "7", "0").await;
    let (error, data) = forward(&mut client, "81", "1").await;
    let (told, bytes) = both(&mut client, error, data).await;
    assert_eq!(String::from_utf8(told).unwrap(), "error forwarding port 81 to pod pod: connection refused");
    assert!(bytes.is_empty());
    client.writer.data(echo, b"still there", true).await;
    assert_eq!(both(&mut client, echo_error, echo).await, (vec![], b"still there".to_vec()));
}

/// At a word on an error stream Go's client ends all that it forwards.
#[tokio::test]
async fn a_pod_that_breaks_a_connection_off_resets_it_without_words() {
    let lab = Lab::new().await;
    let mut client = Client::connect(&lab.port_forward(&[]), PORTS).await;
    let (error, data) = forward(&mut client, "11", "0").await;
    assert_eq!(client.reader.frame().await, Some(Frame::Reset { id: data, status: 5 }));
    assert_eq!(client.reader.frame().await, Some(Frame::Data { id: error, bytes: vec![], fin: true }));
}

/// A pod that no longer reads may still speak.
#[tokio::test]
async fn what_a_pod_does_not_take_is_dropped() {
    let lab = Lab::new().await;
    let mut client = Client::connect(&lab.port_forward(&[]), PORTS).await;
    let (error, data) = forward(&mut client, "19", "0").await;
    for piece in noise(3 << 20).chunks(64 * 1024) {
        client.writer.data(data, piece, false).await;
    }
    client.writer.data(data, b"", true).await;
    assert_eq!(both(&mut client, error, data).await, (vec![], b"hello".to_vec()));
}

#[tokio::test]
async fn clients_that_number_no_requests_are_understood() {
    let lab = Lab::new().await;
    let mut client = Client::connect(&lab.port_forward(&[]), PORTS).await;
    let error = client.writer.open(&[("streamtype", "error"), ("port", "7")]).await;
    let data = client.writer.open(&[("streamtype", "data"), ("port", "7")]).await;
    for id in [error, data] {
        assert_eq!(client.reader.frame().await, Some(Frame::Reply(id)));
    }
    client.writer.data(data, b"old", true).await;
    assert_eq!(both(&mut client, error, data).await, (vec![], b"old".to_vec()));
}

#[tokio::test]
async fn streams_without_sense_are_refused_and_the_connection_lives_on() {
    let lab = Lab::new().await;
    let mut client = Client::connect(&lab.port_forward(&[]), PORTS).await;
    for headers in [
        &[("streamtype", "data"), ("port", "0"), ("requestid", "0")][..],
        &[("streamtype", "data"), ("port", "65536"), ("requestid", "0")],
        &[("streamtype", "data"), ("requestid", "0")],
        &[("streamtype", "stdin"), ("port", "7"), ("requestid", "0")],
        &[("port", "7")],
        &[],
    ] {
        let id = client.writer.open(headers).await;
        assert_eq!(client.reader.frame().await, Some(Frame::Reset { id, status: 5 }), "{headers:?}");
    }
    let headers = [("streamtype", "error"), ("port", "7"), ("requestid", "9")];
    let first = client.writer.open(&headers).await;
    assert_eq!(client.reader.frame().await, Some(Frame::Reply(first)));
    let again = client.writer.open(&headers).await;
    assert_eq!(client.reader.frame().await, Some(Frame::Reset { id: again, status: 1 }));
}

#[tokio::test]
async fn halves_that_stay_alone_are_given_up() {
    let config = Config { creation_timeout: Duration::from_secs(1), ..Config::default() };
    let lab = Lab::with(config).await;
    let mut client = Client::connect(&lab.port_forward(&[]), PORTS).await;
    for kind in ["error", "data"] {
        let headers = [("streamtype", kind), ("port", "7"), ("requestid", kind)];
        let id = client.writer.open(&headers).await;
        assert_eq!(client.reader.frame().await, Some(Frame::Reply(id)));
        assert_eq!(client.reader.frame().await, Some(Frame::Reset { id, status: 5 }));
    }
    let (error, data) = forward(&mut client, "7", "1").await;
    client.writer.data(data, b"x", true).await;
    assert_eq!(both(&mut client, error, data).await, (vec![], b"x".to_vec()));
}

#[tokio::test]
async fn a_client_that_resets_or_vanishes_ends_its_connections() {
    let lab = Lab::new().await;
    let mut client = Client::connect(&lab.port_forward(&[]), PORTS).await;
    let connections = || lab.machine.seen.connections.load(Ordering::Relaxed);
    let (_, first) = forward(&mut client, "7", "0").await;
    forward(&mut client, "7", "1").await;
    eventually("both are there", || connections() == 2).await;
    client.writer.reset(first).await;
    eventually("one is gone", || connections() == 1).await;
    drop(client);
    eventually("both are gone", || connections() == 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_connections_at_once_and_one_after_another() {
    let lab = Lab::new().await;
    let mut client = Client::connect(&lab.port_forward(&[]), PORTS).await;
    let mut open = Vec::new();
    for request in 0..200 {
        open.push(forward(&mut client, "7", &request.to_string()).await);
    }
    for (n, (_, data)) in open.iter().enumerate() {
        client.writer.data(*data, n.to_string().as_bytes(), true).await;
    }
    let (mut said, mut fins) = (std::collections::BTreeMap::<u32, Vec<u8>>::new(), 0);
    while fins < 2 * open.len() {
        let Some(Frame::Data { id, bytes, fin }) = client.reader.frame().await else { panic!() };
        said.entry(id).or_default().extend(bytes);
        fins += usize::from(fin);
    }
    for (n, (error, data)) in open.iter().enumerate() {
        assert_eq!((&said[error], &said[data]), (&vec![], &n.to_string().into_bytes()));
    }
    // More than may be open at one time.
    for request in 1000..2200 {
        let (error, data) = forward(&mut client, "7", &request.to_string()).await;
        client.writer.data(data, b"x", true).await;
        assert_eq!(both(&mut client, error, data).await, (vec![], b"x".to_vec()));
    }
}

/// More of them than a client may have streams.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn error_streams_that_a_client_leaves_open_do_not_add_up() {
    let lab = Lab::new().await;
    let mut client = Client::connect(&lab.port_forward(&[]), PORTS).await;
    for request in 0..2100 {
        // Refused and made in turn.
        let (request, port) = (request.to_string(), if request % 2 == 0 { "7" } else { "81" });
        let headers = |kind| [("streamtype", kind), ("port", port), ("requestid", request.as_str())];
        let error = client.writer.open(&headers("error")).await;
        let data = client.writer.open(&headers("data")).await;
        client.writer.data(data, b"x", true).await;
        for id in [error, data] {
            assert_eq!(client.reader.frame().await, Some(Frame::Reply(id)), "request {request}");
        }
        let (told, bytes) = both(&mut client, error, data).await;
        assert_eq!((told.is_empty(), bytes.is_empty()), (port == "7", port != "7"));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_that_are_given_up_while_they_are_made_have_a_limit() {
    let lab = Lab::new().await;
    let mut client = Client::connect(&lab.port_forward(&[]), PORTS).await;
    let mut refused = 0;
    for request in 0..1100 {
        // Port 1 is never through.
        let request = request.to_string();
        let headers = |kind| [("streamtype", kind), ("port", "1"), ("requestid", request.as_str())];
        let error = client.writer.open(&headers("error")).await;
        let data = client.writer.open(&headers("data")).await;
        for id in [error, data] {
            match client.reader.frame().await {
                Some(Frame::Reply(replied)) => {
                    assert_eq!(replied, id);
                    client.writer.reset(id).await;
                }
                Some(Frame::Reset { id: reset, status: 3 }) => {
                    assert_eq!(reset, id);
                    refused += 1;
                }
                other => panic!("{other:?}"),
            }
        }
    }
    assert_eq!(refused, 2 * (1100 - 1024));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn halves_that_are_given_up_have_a_limit() {
    let lab = Lab::new().await;
    let mut client = Client::connect(&lab.port_forward(&[]), PORTS).await;
    let mut refused = 0;
    for request in 0..1100 {
        let headers = [("streamtype", "data"), ("port", "7"), ("requestid", &request.to_string())];
        let id = client.writer.open(&headers).await;
        match client.reader.frame().await {
            Some(Frame::Reply(_)) => client.writer.reset(id).await,
            Some(Frame::Reset { status: 3, .. }) => refused += 1,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(refused, 1100 - 1024);
}

#[tokio::test]
async fn a_megabyte_goes_through_a_port_and_back() {
    let lab = Lab::new().await;
    let client = Client::connect(&lab.port_forward(&[]), PORTS).await;
    echo_a_megabyte(client).await;
}

async fn echo_a_megabyte<S: AsyncRead + AsyncWrite>(mut client: Client<S>) {
    let (_, data) = forward(&mut client, "7", "0").await;
    let input = noise(1 << 20);
    let Client { mut reader, mut writer } = client;
    let send = async {
        for piece in input.chunks(10_000) {
            writer.data(data, piece, false).await;
        }
        writer.data(data, b"", true).await;
    };
    let read = async {
        let mut received = Vec::new();
        while let Some(Frame::Data { id, bytes, fin }) = reader.frame().await {
            received.extend(bytes);
            if id == data && fin {
                return received;
            }
        }
        panic!("it ended early");
    };
    let ((), received) = soon(async { tokio::join!(send, read) }).await;
    assert!(received == input);
}

/// SPDY's bytes in WebSocket messages; `Client` takes the other end for its connection.
async fn tunnel(lab: &Lab) -> Client<DuplexStream> {
    let url = lab.port_forward(&[]);
    let client = websocket_client::Client::connect(&url, Some("SPDY/3.1+portforward.k8s.io")).await;
    let (inner, ours) = tokio::io::duplex(4096);
    let (mut from, mut to) = client.stream.into_split();
    let (mut plain_from, mut plain_to) = tokio::io::split(ours);
    tokio::spawn(async move {
        let mut piece = vec![0; 1000];
        loop {
            match plain_from.read(&mut piece).await.unwrap() {
                0 => return to.write_all(&masked(0x88, b"\x03\xe8")).await,
                count => to.write_all(&masked(0x82, &piece[..count])).await?,
            }
            to.write_all(&masked(0x89, b"")).await?;
        }
    });
    tokio::spawn(async move {
        loop {
            let (first, length) = (from.read_u8().await?, from.read_u8().await?);
            let length = match length {
                126 => usize::from(from.read_u16().await?),
                127 => usize::try_from(from.read_u64().await?).unwrap(),
                short => usize::from(short),
            };
            let mut payload = vec![0; length];
            from.read_exact(&mut payload).await?;
            match first {
                0x82 => plain_to.write_all(&payload).await?,
                0x8a => assert!(payload.is_empty()),
                0x88 => return plain_to.shutdown().await,
                other => panic!("frame {other:#x}"),
            }
        }
    });
    Client::over(inner)
}

#[tokio::test]
async fn spdy_goes_through_websocket() {
    let lab = Lab::new().await;
    echo_a_megabyte(tunnel(&lab).await).await;
    let mut client = tunnel(&lab).await;
    client.writer.ping(1).await;
    assert_eq!(client.reader.frame().await, Some(Frame::Ping(1)));
    let (error, data) = forward(&mut client, "81", "0").await;
    let (told, _) = both(&mut client, error, data).await;
    assert!(!told.is_empty());
    // A frame that is none ends the connection, inside and outside.
    client.writer.raw(&spdy_client::control(6, 0, b"")).await;
    assert_eq!(client.reader.rest().await.go_away, Some(1));
}

#[tokio::test]
async fn a_client_is_let_go_when_its_pod_is_gone() {
    let lab = Lab::new().await;
    let mut client = Client::connect(&lab.port_forward(&[]), PORTS).await;
    // Says nothing more, and does not end.
    let (_, data) = forward(&mut client, "7", "0").await;
    client.writer.data(data, b"last", false).await;
    eventually("it is connected", || lab.machine.seen.connections.load(Ordering::Relaxed) == 1).await;
    lab.machine.seen.end.notify_waiters();
    let received = client.reader.rest().await;
    assert_eq!((received.text(data).as_str(), received.go_away), ("last", Some(0)));

    let mut client =
        websocket_client::Client::connect(&lab.port_forward(&[7]), Some("v4.channel.k8s.io")).await;
    for channel in [0, 1] {
        assert_eq!(client.frame().await, Some(websocket_client::Frame::Binary(vec![channel, 7, 0])));
    }
    eventually("it is connected", || lab.machine.seen.connections.load(Ordering::Relaxed) == 1).await;
    lab.machine.seen.end.notify_waiters();
    assert_eq!(client.frame().await, Some(websocket_client::Frame::Close(1001)));
}

#[tokio::test]
async fn websocket_has_two_channels_for_each_port() {
    let lab = Lab::new().await;
    for protocol in [Some("v4.channel.k8s.io"), None] {
        let mut client = websocket_client::Client::connect(&lab.port_forward(&[7, 81]), protocol).await;
        for (channel, port) in [(0, 7), (1, 7), (2, 81), (3, 81)] {
            let first = websocket_client::Frame::Binary(vec![channel, port, 0]);
            assert_eq!(client.frame().await, Some(first));
        }
        let told = b"\x03error forwarding port 81 to pod pod: connection refused".to_vec();
        assert_eq!(client.frame().await, Some(websocket_client::Frame::Binary(told)));
        client.binary(b"\x00echo").await;
        let echo = websocket_client::Frame::Binary(b"\x00echo".to_vec());
        assert_eq!(client.frame().await, Some(echo));
    }
}

#[tokio::test]
async fn websocket_ends_with_its_last_port() {
    let lab = Lab::new().await;
    // Ports may also stand in the URL.
    let url = lab.port_forward(&[]);
    let url = url.as_str().strip_prefix("http://").unwrap();
    let (address, path) = url.split_once('/').unwrap();
    let stream = tokio::net::TcpStream::connect(address).await.unwrap();
    let headers = websocket_client::upgrade(Some("v4.base64.channel.k8s.io"));
    let path = format!("/{path}?port=19%2C81&x=y&port=19");
    let (head, mut stream) = spdy_client::request_over(stream, "GET", &path, &headers).await;
    assert!(head.starts_with("http/1.1 101 "), "{head}");
    let mut all = Vec::new();
    let read = async {
        let mut piece = [0; 1000];
        while !all.ends_with(b"\x88\x02\x03\xe8") {
            let count = stream.read(&mut piece).await.unwrap();
            assert!(count > 0);
            all.extend(&piece[..count]);
        }
    };
    soon(read).await;
    let all = String::from_utf8_lossy(&all);
    // Port 19 in little-endian, and "hello".
    for part in ["0EwA=", "1EwA=", "2UQA=", "3UQA=", "4EwA=", "0aGVsbG8=", "4aGVsbG8="] {
        assert!(all.contains(part), "{part} in {all}");
    }
}

#[tokio::test]
async fn ports_that_are_none_are_refused() {
    let lab = Lab::new().await;
    for query in ["", "?port=0", "?port=65536", "?port=http", "?port=", "?port=1,,2"] {
        let url = lab.port_forward(&[]);
        let (_, path) = url.as_str().strip_prefix("http://").unwrap().split_once('/').unwrap();
        let stream = tokio::net::TcpStream::connect(lab.server.address()).await.unwrap();
        let headers = websocket_client::upgrade(Some("v4.channel.k8s.io"));
        let path = format!("/{path}{query}");
        let (head, _) = spdy_client::request_over(stream, "GET", &path, &headers).await;
        assert!(head.starts_with("http/1.1 400 "), "{query}: {head}");
    }
}
