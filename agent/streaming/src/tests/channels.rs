//! Exec and attach over WebSocket.

use std::sync::atomic::Ordering;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use tokio::io::AsyncWriteExt as _;

use super::spdy_client::exit_code;
use super::websocket_client::{Client, Frame, masked};
use super::{ALL, Lab, OUTPUT, TERMINAL, eventually, noise, soon};
use crate::Streams;

const V5: Option<&str> = Some("v5.channel.k8s.io");
const BINARY: [Option<&str>; 4] = [V5, Some("v4.channel.k8s.io"), Some("channel.k8s.io"), None];

#[tokio::test]
async fn outputs_are_channels_and_an_empty_message_comes_first() {
    let lab = Lab::new().await;
    for protocol in BINARY {
        let mut client = Client::connect(&lab.exec(&["both"], ALL), protocol).await;
        assert_eq!(client.frame().await, Some(Frame::Binary(vec![1])));
        let (channels, code) = client.rest().await;
        assert_eq!(channels[1], b"\x00out\xff");
        assert_eq!(channels[2], b"\xfeerr\x00");
        let status = String::from_utf8(channels[3].clone()).unwrap();
        match protocol {
            Some("v5.channel.k8s.io" | "v4.channel.k8s.io") => assert_eq!(exit_code(&status), 3),
            _ => assert_eq!(status, "command terminated with non-zero exit code: exit status 3"),
        }
        assert_eq!(code, 1000);
    }
}

#[tokio::test]
async fn the_first_message_is_on_the_first_output() {
    let lab = Lab::new().await;
    let none = Streams::default();
    for (streams, channel) in [(Streams { stderr: true, ..none }, 2), (Streams { stdin: true, ..none }, 3)] {
        let mut client = Client::connect(&lab.exec(&["exit", "0"], streams), V5).await;
        assert_eq!(client.frame().await, Some(Frame::Binary(vec![channel])));
    }
}

#[tokio::test]
async fn a_client_of_v5_can_end_its_input() {
    let lab = Lab::new().await;
    let mut client = Client::connect(&lab.exec(&["cat"], ALL), V5).await;
    let input = noise(700_000);
    // In messages of several lengths, and one of several frames.
    client.binary(&[&[0], &input[..100]].concat()).await;
    client.binary(&[&[0], &input[100..30_000]].concat()).await;
    client.binary(&[&[0], &input[30_000..]].concat()[..570_001]).await;
    let pieces = [(0x02, &[0][..]), (0x00, &input[600_000..650_000]), (0x00, b""), (0x80, &input[650_000..])];
    for (first, piece) in pieces {
        client.stream.write_all(&masked(first, piece)).await.unwrap();
    }
    client.binary(b"").await;
    client.binary(&[255, 5]).await;
    client.binary(&[255, 0]).await;
    // Already closed, an output, and none at all: no errors.
    for channel in [0, 1, 5, 254] {
        client.binary(&[255, channel]).await;
    }
    let (channels, code) = client.rest().await;
    assert!(channels[1] == input);
    assert_eq!((exit_code(&String::from_utf8_lossy(&channels[3])), code), (0, 1000));
}

#[tokio::test]
async fn in_older_versions_nothing_ends_input() {
    let lab = Lab::new().await;
    let mut client = Client::connect(&lab.exec(&["cat"], ALL), Some("v4.channel.k8s.io")).await;
    client.binary(&[255, 0]).await;
    client.binary(b"\x00still open").await;
    assert_eq!(client.frame().await, Some(Frame::Binary(vec![1])));
    assert_eq!(client.frame().await, Some(Frame::Binary(b"\x01still open".to_vec())));
}

#[tokio::test]
async fn base64_is_text_both_ways() {
    let lab = Lab::new().await;
    for (protocol, ends) in [("v4.base64.channel.k8s.io", true), ("base64.channel.k8s.io", false)] {
        let mut client = Client::connect(&lab.exec(&["sizes"], TERMINAL), Some(protocol)).await;
        assert_eq!(client.frame().await, Some(Frame::Text(b"1".to_vec())));
        client.text(&format!("4{}", BASE64_STANDARD.encode(r#"{"Width":80,"Height":24}"#))).await;
        let said = format!("1{}", BASE64_STANDARD.encode("80x24\n"));
        assert_eq!(client.frame().await, Some(Frame::Text(said.into_bytes())));
        client.text("0eA==").await;
        let ended = client.frame().await;
        if ends {
            let Some(Frame::Text(status)) = ended else { panic!("{ended:?}") };
            assert_eq!(status[0], b'3');
            let status = BASE64_STANDARD.decode(&status[1..]).unwrap();
            assert_eq!(exit_code(&String::from_utf8(status).unwrap()), 0);
            assert_eq!(client.frame().await, Some(Frame::Close(1000)));
        } else {
            assert_eq!(ended, Some(Frame::Close(1000)));
        }
    }
}

#[tokio::test]
async fn pings_are_answered_and_other_channels_are_dropped() {
    let lab = Lab::new().await;
    let mut client = Client::connect(&lab.exec(&["cat"], ALL), V5).await;
    assert_eq!(client.frame().await, Some(Frame::Binary(vec![1])));
    client.binary(b"\x01to an output").await;
    client.binary(b"\x09to nobody").await;
    client.stream.write_all(&masked(0x89, b"there?")).await.unwrap();
    assert_eq!(client.frame().await, Some(Frame::Pong(b"there?".to_vec())));
    client.stream.write_all(&masked(0x8a, b"")).await.unwrap();
    client.binary(b"\x00in").await;
    assert_eq!(client.frame().await, Some(Frame::Binary(b"\x01in".to_vec())));
    // Its own goodbye is answered.
    client.stream.write_all(&masked(0x88, b"\x03\xe8")).await.unwrap();
    assert_eq!(client.frame().await, Some(Frame::Close(1000)));
    eventually("its client is gone", || lab.machine.seen.abandoned.load(Ordering::Relaxed) == 1).await;
}

#[tokio::test]
async fn pings_behind_input_that_waits_are_answered_before_they_are_read() {
    let lab = Lab::new().await;
    let mut client = Client::connect(&lab.exec(&["deaf"], ALL), V5).await;
    assert_eq!(client.frame().await, Some(Frame::Binary(vec![1])));
    client.stream.write_all(&masked(0x89, b"1")).await.unwrap();
    assert_eq!(client.frame().await, Some(Frame::Pong(b"1".to_vec())));
    for piece in noise((1 << 20) + (100 << 10)).chunks(32 * 1024) {
        client.binary(&[&[0], piece].concat()).await;
    }
    assert_eq!(client.frame().await, Some(Frame::Pong(b"1".to_vec())));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_megabytes_go_both_ways_at_once() {
    let lab = Lab::new().await;
    let mut client = Client::connect(&lab.exec(&["cat"], ALL), V5).await;
    assert_eq!(client.frame().await, Some(Frame::Binary(vec![1])));
    let input = noise(20 << 20);
    let (sent, again) = (input.clone(), client.stream);
    let (reader, mut writer) = again.into_split();
    let send = tokio::spawn(async move {
        for piece in sent.chunks(32 * 1024) {
            writer.write_all(&masked(0x82, &[&[0], piece].concat())).await.unwrap();
        }
        writer.write_all(&masked(0x82, &[255, 0])).await.unwrap();
        writer
    });
    // The same bytes, taken apart by the decoder that the server has; it only wants a mask.
    let received = soon(read_channels(reader)).await;
    assert!(received[1] == input);
    assert_eq!(exit_code(&String::from_utf8_lossy(&received[3])), 0);
    drop(send.await.unwrap());
}

async fn read_channels(mut reader: tokio::net::tcp::OwnedReadHalf) -> [Vec<u8>; 4] {
    use tokio::io::AsyncReadExt as _;
    let mut channels: [Vec<u8>; 4] = Default::default();
    loop {
        let (first, length) = (reader.read_u8().await.unwrap(), reader.read_u8().await.unwrap());
        let length = match length {
            126 => usize::from(reader.read_u16().await.unwrap()),
            127 => usize::try_from(reader.read_u64().await.unwrap()).unwrap(),
            short => usize::from(short),
        };
        let mut payload = vec![0; length];
        reader.read_exact(&mut payload).await.unwrap();
        if first == 0x88 {
            return channels;
        }
        channels[usize::from(payload[0])].extend(&payload[1..]);
    }
}

#[tokio::test]
async fn what_breaks_the_protocol_ends_the_session() {
    let lab = Lab::new().await;
    for (protocol, bad, expected) in [
        (V5, vec![0x82, 0x01, 0x00], 1002),
        (V5, masked(0xf2, b"\x00x"), 1002),
        (V5, masked(0x80, b"\x00x"), 1002),
        (V5, masked(0x82, &[255]), 1002),
        (V5, masked(0x82, &[255, 0, 0]), 1002),
        (Some("v4.base64.channel.k8s.io"), masked(0x81, b"0not base64"), 1007),
        (Some("v4.base64.channel.k8s.io"), masked(0x81, b"0eA="), 1007),
    ] {
        let before = lab.machine.seen.abandoned.load(Ordering::Relaxed);
        let mut client = Client::connect(&lab.exec(&["deaf"], ALL), protocol).await;
        client.frame().await.unwrap();
        client.stream.write_all(&bad).await.unwrap();
        assert_eq!(client.frame().await, Some(Frame::Close(expected)), "{bad:x?}");
        drop(client);
        eventually("it ends", || lab.machine.seen.abandoned.load(Ordering::Relaxed) == before + 1).await;
    }
}

#[tokio::test]
async fn a_server_that_stops_says_that_it_goes() {
    let lab = Lab::new().await;
    let mut client = Client::connect(&lab.exec(&["deaf"], OUTPUT), V5).await;
    assert_eq!(client.frame().await, Some(Frame::Binary(vec![1])));
    let told = async {
        let told = client.frame().await;
        drop(client);
        told
    };
    let (told, ()) = tokio::join!(told, lab.server.stop());
    assert_eq!(told, Some(Frame::Close(1001)));
}
