//! SPDY as Go's client speaks it.

use std::collections::BTreeMap;

use flate2::{Compress, Compression, Decompress, FlushCompress, FlushDecompress};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::soon;
use crate::Url;
use crate::spdy::dictionary::dictionary;

/// What client-go offers.
pub(super) const VERSIONS: &str =
    "v5.channel.k8s.io,v4.channel.k8s.io,v3.channel.k8s.io,v2.channel.k8s.io,channel.k8s.io";

/// The head of an answer, and the connection after it.
pub(super) async fn request(url: &Url, method: &str, headers: &[(&str, &str)]) -> (String, TcpStream) {
    let (address, path) = url.as_str().strip_prefix("http://").unwrap().split_once('/').unwrap();
    let stream = TcpStream::connect(address).await.unwrap();
    // As Go's do.
    stream.set_nodelay(true).unwrap();
    request_over(stream, method, &format!("/{path}"), headers).await
}

pub(super) async fn request_over<S: AsyncRead + AsyncWrite + Unpin>(
    mut stream: S,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
) -> (String, S) {
    let mut head = format!("{method} {path} HTTP/1.1\r\nHost: node\r\nContent-Length: 0\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str("\r\n");
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        answer.push(soon(stream.read_u8()).await.unwrap());
    }
    (String::from_utf8(answer).unwrap().to_lowercase(), stream)
}

pub(super) fn upgrade(versions: &str) -> [(&'static str, &str); 3] {
    [("Connection", "Upgrade"), ("Upgrade", "SPDY/3.1"), ("X-Stream-Protocol-Version", versions)]
}

/// A frame from the server.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Frame {
    Reply(u32),
    Data { id: u32, bytes: Vec<u8>, fin: bool },
    Reset { id: u32, status: u32 },
    Ping(u32),
    GoAway { last: u32, status: u32 },
}

pub(super) struct Client<S> {
    pub(super) reader: Reader<S>,
    pub(super) writer: Writer<S>,
}

pub(super) struct Writer<S> {
    pub(super) wire: tokio::io::WriteHalf<S>,
    deflate: Compress,
    next: u32,
}

pub(super) struct Reader<S> {
    pub(super) wire: tokio::io::ReadHalf<S>,
    inflate: Decompress,
}

/// What came on all streams until the connection's end.
#[derive(Debug, Default)]
pub(super) struct Received {
    pub(super) data: BTreeMap<u32, Vec<u8>>,
    pub(super) fins: Vec<u32>,
    pub(super) resets: BTreeMap<u32, u32>,
    pub(super) pings: Vec<u32>,
    pub(super) replies: Vec<u32>,
    pub(super) go_away: Option<u32>,
}

impl Client<TcpStream> {
    /// As crictl and the kubelet begin.
    pub(super) async fn connect(url: &Url, versions: &str) -> Self {
        let (head, stream) = request(url, "POST", &upgrade(versions)).await;
        assert!(head.starts_with("http/1.1 101 "), "{head}");
        Self::over(stream)
    }
}

impl<S: AsyncRead + AsyncWrite> Client<S> {
    pub(super) fn over(stream: S) -> Self {
        let (reader, writer) = tokio::io::split(stream);
        let mut deflate = Compress::new(Compression::best(), true);
        deflate.set_dictionary(&dictionary()).unwrap();
        Self {
            reader: Reader { wire: reader, inflate: Decompress::new(true) },
            writer: Writer { wire: writer, deflate, next: 1 },
        }
    }

    /// Makes the streams of an exec in Go's order, and waits for each reply as Go does.
    pub(super) async fn open_all(&mut self, kinds: &[&str]) -> Vec<u32> {
        let mut ids = Vec::new();
        for kind in kinds {
            let id = self.writer.open(&[("streamtype", kind)]).await;
            assert_eq!(self.reader.frame().await, Some(Frame::Reply(id)));
            ids.push(id);
        }
        ids
    }
}

impl<S: AsyncRead + AsyncWrite> Writer<S> {
    pub(super) async fn raw(&mut self, bytes: &[u8]) {
        self.wire.write_all(bytes).await.unwrap();
        self.wire.flush().await.unwrap();
    }

    pub(super) fn syn_stream(&mut self, id: u32, headers: &[(&str, &str)]) -> Vec<u8> {
        let mut block = u32::try_from(headers.len()).unwrap().to_be_bytes().to_vec();
        for (name, value) in headers {
            for text in [name, value] {
                block.extend_from_slice(&u32::try_from(text.len()).unwrap().to_be_bytes());
                block.extend_from_slice(text.as_bytes());
            }
        }
        let mut packed = Vec::with_capacity(block.len() + 1000);
        self.deflate.compress_vec(&block, &mut packed, FlushCompress::Sync).unwrap();
        control(1, 0, &[&id.to_be_bytes(), &[0; 6][..], &packed].concat())
    }

    /// Opens the next stream.
    pub(super) async fn open(&mut self, headers: &[(&str, &str)]) -> u32 {
        let id = self.next;
        self.next += 2;
        let frame = self.syn_stream(id, headers);
        self.raw(&frame).await;
        id
    }

    pub(super) async fn data(&mut self, id: u32, bytes: &[u8], fin: bool) {
        let length = u32::try_from(bytes.len()).unwrap();
        let head = [id.to_be_bytes(), (u32::from(fin) << 24 | length).to_be_bytes()].concat();
        // Go writes the pieces of a frame one by one.
        self.raw(&head).await;
        self.raw(bytes).await;
    }

    pub(super) async fn ping(&mut self, number: u32) {
        self.raw(&control(6, 0, &number.to_be_bytes())).await;
    }

    pub(super) async fn reset(&mut self, id: u32) {
        self.raw(&control(3, 0, &[id.to_be_bytes(), 5_u32.to_be_bytes()].concat())).await;
    }
}

impl<S: AsyncRead + AsyncWrite> Reader<S> {
    /// The next frame; `None` at the connection's end.
    pub(super) async fn frame(&mut self) -> Option<Frame> {
        soon(self.next_frame()).await
    }

    async fn next_frame(&mut self) -> Option<Frame> {
        let mut head = [0; 8];
        self.wire.read_exact(&mut head).await.ok()?;
        let length = u32::from_be_bytes([0, head[5], head[6], head[7]]);
        let mut payload = vec![0; usize::try_from(length).unwrap()];
        self.wire.read_exact(&mut payload).await.ok()?;
        let word = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().unwrap());
        if head[0] & 0x80 == 0 {
            let id = u32::from_be_bytes(head[..4].try_into().unwrap());
            return Some(Frame::Data { id, fin: head[4] & 1 != 0, bytes: payload });
        }
        assert_eq!(head[..2], [0x80, 3]);
        Some(match u16::from_be_bytes([head[2], head[3]]) {
            2 => {
                assert_eq!(self.inflated(&payload[4..]), [0; 4]);
                Frame::Reply(word(0))
            }
            3 => Frame::Reset { id: word(0), status: word(4) },
            6 => Frame::Ping(word(0)),
            7 => Frame::GoAway { last: word(0), status: word(4) },
            other => panic!("frame of type {other}"),
        })
    }

    fn inflated(&mut self, packed: &[u8]) -> Vec<u8> {
        let (mut plain, before) = (Vec::with_capacity(1000), self.inflate.total_in());
        if let Err(error) = self.inflate.decompress_vec(packed, &mut plain, FlushDecompress::Sync) {
            error.needs_dictionary().expect("a dictionary is wanted");
            self.inflate.set_dictionary(&dictionary()).unwrap();
            let rest = &packed[usize::try_from(self.inflate.total_in() - before).unwrap()..];
            self.inflate.decompress_vec(rest, &mut plain, FlushDecompress::Sync).unwrap();
        }
        assert_eq!(self.inflate.total_in() - before, packed.len() as u64);
        plain
    }

    /// Reads to the connection's end.
    pub(super) async fn rest(&mut self) -> Received {
        let mut received = Received::default();
        while let Some(frame) = self.frame().await {
            match frame {
                Frame::Reply(id) => received.replies.push(id),
                Frame::Data { id, bytes, fin } => {
                    received.data.entry(id).or_default().extend(bytes);
                    if fin {
                        received.fins.push(id);
                    }
                }
                Frame::Reset { id, status } => drop(received.resets.insert(id, status)),
                Frame::Ping(number) => received.pings.push(number),
                Frame::GoAway { status, .. } => received.go_away = Some(status),
            }
        }
        received
    }
}

impl Received {
    pub(super) fn text(&self, id: u32) -> String {
        String::from_utf8(self.data.get(&id).cloned().unwrap_or_default()).unwrap()
    }

    /// The exit code on an error stream.
    pub(super) fn exit_code(&self, id: u32) -> i32 {
        exit_code(&self.text(id))
    }
}

/// The exit code of a `metav1.Status`.
pub(super) fn exit_code(status: &str) -> i32 {
    let status = serde_json::from_str::<serde_json::Value>(status).expect(status);
    if status["status"] == "Success" {
        return 0;
    }
    assert_eq!(status["reason"], "NonZeroExitCode", "{status}");
    assert_eq!(status["details"]["causes"][0]["reason"], "ExitCode");
    status["details"]["causes"][0]["message"].as_str().unwrap().parse().unwrap()
}

pub(super) fn control(kind: u16, flags: u8, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap();
    let word = u32::from(flags) << 24 | length;
    [&[0x80, 3][..], &kind.to_be_bytes(), &word.to_be_bytes(), payload].concat()
}
