//! WebSocket as clients speak it.

use bytes::BytesMut;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::soon;
use super::spdy_client::request;
use crate::Url;

/// A frame from the server.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Frame {
    Text(Vec<u8>),
    Binary(Vec<u8>),
    Pong(Vec<u8>),
    Close(u16),
}

pub(super) struct Client {
    pub(super) stream: TcpStream,
    read: BytesMut,
}

pub(super) fn upgrade(protocol: Option<&str>) -> Vec<(&'static str, &str)> {
    let mut headers = vec![
        ("Connection", "keep-alive, Upgrade"),
        ("Upgrade", "websocket"),
        ("Sec-WebSocket-Version", "13"),
        ("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ=="),
    ];
    headers.extend(protocol.map(|protocol| ("Sec-WebSocket-Protocol", protocol)));
    headers
}

impl Client {
    pub(super) async fn connect(url: &Url, protocol: Option<&str>) -> Self {
        let (head, stream) = request(url, "GET", &upgrade(protocol)).await;
        assert!(head.starts_with("http/1.1 101 "), "{head}");
        assert!(head.contains("\r\nsec-websocket-accept: s3pplmbitxaq9kygzzhzrbk+xoo=\r\n"), "{head}");
        let chosen =
            protocol.map(|protocol| format!("\r\nsec-websocket-protocol: {protocol}\r\n").to_lowercase());
        match chosen {
            Some(chosen) => assert!(head.contains(&chosen), "{head}"),
            None => assert!(!head.contains("sec-websocket-protocol"), "{head}"),
        }
        Self { stream, read: BytesMut::new() }
    }

    pub(super) async fn binary(&mut self, payload: &[u8]) {
        self.stream.write_all(&masked(0x82, payload)).await.unwrap();
    }

    pub(super) async fn text(&mut self, payload: &str) {
        self.stream.write_all(&masked(0x81, payload.as_bytes())).await.unwrap();
    }

    /// The next frame; `None` at the connection's end.
    pub(super) async fn frame(&mut self) -> Option<Frame> {
        soon(async {
            loop {
                if let Some(frame) = parse(&mut self.read) {
                    return Some(frame);
                }
                if self.stream.read_buf(&mut self.read).await.ok()? == 0 {
                    return None;
                }
            }
        })
        .await
    }

    /// Binary messages until the server closes, by their first byte; and why it did.
    pub(super) async fn rest(&mut self) -> ([Vec<u8>; 8], u16) {
        let mut channels: [Vec<u8>; 8] = Default::default();
        loop {
            match self.frame().await.expect("a close") {
                Frame::Binary(message) => channels[usize::from(message[0])].extend(&message[1..]),
                Frame::Close(code) => return (channels, code),
                other => panic!("{other:?}"),
            }
        }
    }
}

pub(super) fn masked(first: u8, payload: &[u8]) -> Vec<u8> {
    let mask = [0x12, 0x34, 0x56, 0x78];
    let mut frame = vec![first];
    match payload.len() {
        short @ ..=125 => frame.push(0x80 | u8::try_from(short).unwrap()),
        medium @ ..=65535 => {
            frame.push(0x80 | 126);
            frame.extend(u16::try_from(medium).unwrap().to_be_bytes());
        }
        long => {
            frame.push(0x80 | 127);
            frame.extend((long as u64).to_be_bytes());
        }
    }
    frame.extend(mask);
    frame.extend(payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
    frame
}

fn parse(read: &mut BytesMut) -> Option<Frame> {
    let (first, length) = (*read.first()?, usize::from(*read.get(1)?));
    let (length, head) = match length {
        126 => (usize::from(u16::from_be_bytes(read.get(2..4)?.try_into().unwrap())), 4),
        127 => (usize::try_from(u64::from_be_bytes(read.get(2..10)?.try_into().unwrap())).unwrap(), 10),
        short => (short, 2),
    };
    assert!(length < 1 << 24, "a masked frame from a server");
    if read.len() < head + length {
        return None;
    }
    let frame = read.split_to(head + length);
    let payload = frame[head..].to_vec();
    Some(match first {
        0x81 => Frame::Text(payload),
        0x82 => Frame::Binary(payload),
        0x88 => Frame::Close(u16::from_be_bytes(payload.as_slice().try_into().unwrap())),
        0x8a => Frame::Pong(payload),
        other => panic!("frame {other:#x}"),
    })
}
