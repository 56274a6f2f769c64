//! Port forwarding.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::Protocol;
use super::link::{self, Event, Reader, Writer};
use crate::client::Client;
use crate::cri;

/// Pieces that wait for one reader. Then all streams of the connection wait, as with Go's client.
const WAITING: usize = 16;

/// Where each stream's events go; guards only the map.
type Streams = Arc<Mutex<HashMap<u32, mpsc::Sender<Event>>>>;

/// A client that forwards ports. Dropped, its connections end.
#[derive(Debug)]
pub struct Forward {
    writer: Arc<tokio::sync::Mutex<Writer>>,
    streams: Streams,
    reading: JoinHandle<()>,
    /// Of the next connection.
    request: u32,
    /// Ports whose channels WebSocket has, and nobody has taken.
    channels: Vec<Option<(u16, Stream, Stream)>>,
}

/// A connection to a port.
#[derive(Debug)]
pub struct Connection {
    outgoing: Outgoing,
    data: Stream,
    error: Stream,
}

/// What is sent to a port.
#[derive(Debug, Clone)]
pub struct Outgoing {
    writer: Arc<tokio::sync::Mutex<Writer>>,
    id: u32,
}

/// One direction of a stream.
#[derive(Debug)]
struct Stream {
    id: u32,
    events: mpsc::Receiver<Event>,
    /// Bytes to be skipped: WebSocket's channels begin with the port.
    skip: usize,
    /// Whether the server has given it up.
    reset: bool,
}

impl Forward {
    /// Opens a URL. The ports are those of the request, in its order.
    pub async fn open(url: &str, protocol: Protocol, ports: &[u16]) -> Result<Self> {
        let (reader, writer) = link::open(url, protocol).await?;
        let streams = Streams::default();
        let channels = match writer {
            Writer::Spdy(_) => Vec::new(),
            Writer::WebSocket(_) => (0..)
                .zip(ports)
                .map(|(place, port)| {
                    let [data, error] = [2 * place, 2 * place + 1].map(|id| Stream::new(&streams, id, 2));
                    Some((*port, data, error))
                })
                .collect(),
        };
        let reading = tokio::spawn(deliver(reader, Arc::clone(&streams)));
        let writer = Arc::new(tokio::sync::Mutex::new(writer));
        Ok(Self { writer, streams, reading, request: 0, channels })
    }

    /// Calls PortForward and opens the URL that it answers.
    pub async fn start(client: &Client, pod: &str, ports: &[u16], protocol: Protocol) -> Result<Self> {
        let port = ports.iter().copied().map(i32::from).collect();
        let request = cri::PortForwardRequest { pod_sandbox_id: pod.to_owned(), port };
        let url = client.runtime().port_forward(request).await.context("PortForward")?.into_inner().url;
        Self::open(&url, protocol, ports).await
    }

    /// Connects to a port; over WebSocket, once to each of the request's.
    pub async fn connect(&mut self, port: u16) -> Result<Connection> {
        if !self.channels.is_empty() {
            let place = self.channels.iter_mut().find(|one| one.as_ref().is_some_and(|one| one.0 == port));
            let taken =
                place.and_then(Option::take).with_context(|| format!("port {port} has no channels left"))?;
            return Ok(self.connection(taken.1, taken.2));
        }
        self.request += 1;
        let request = self.request.to_string();
        let port = port.to_string();
        let error = self.stream(&[("streamType", "error"), ("port", &port), ("requestID", &request)]).await?;
        // Go's client has nothing to say there.
        self.writer.lock().await.end(error.id).await?;
        let data = self.stream(&[("streamType", "data"), ("port", &port), ("requestID", &request)]).await?;
        Ok(self.connection(data, error))
    }

    /// Makes a stream. The writer is free while its reply is waited for.
    async fn stream(&self, headers: &[(&str, &str)]) -> Result<Stream> {
        let mut stream = match &mut *self.writer.lock().await {
            Writer::Spdy(writer) => {
                // Known to the reader before its first event can come.
                let stream = Stream::new(&self.streams, writer.next(), 0);
                writer.open(headers).await?;
                stream
            }
            Writer::WebSocket(_) => bail!("the request had no ports"),
        };
        match stream.events.recv().await.context("the connection ends before a stream is there")? {
            Event::Reply(_) => Ok(stream),
            other => bail!("no reply to {headers:?}: {other:?}"),
        }
    }

    fn connection(&self, data: Stream, error: Stream) -> Connection {
        Connection { outgoing: Outgoing { writer: Arc::clone(&self.writer), id: data.id }, data, error }
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        self.reading.abort();
    }
}

/// Brings each event to its stream until the connection's end, which ends all.
async fn deliver(mut reader: Reader, streams: Streams) {
    let of = |id: u32| streams.lock().unwrap_or_else(PoisonError::into_inner).get(&id).cloned();
    loop {
        let event = match reader.next().await {
            Ok(Some(event)) => event,
            Ok(None) => break,
            Err(error) => {
                eprintln!("a forwarding connection ends: {error:#}");
                break;
            }
        };
        let (id, last) = match &event {
            Event::Data { stream, fin, .. } => (*stream, *fin),
            Event::Reply(stream) => (*stream, false),
            Event::Reset(stream) => (*stream, true),
            Event::Pong => continue,
        };
        let unwanted = match of(id) {
            Some(sender) => sender.send(event).await.is_err(),
            None => false,
        };
        if last || unwanted {
            streams.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        }
    }
    streams.lock().unwrap_or_else(PoisonError::into_inner).clear();
}

impl Stream {
    fn new(streams: &Streams, id: u32, skip: usize) -> Self {
        let (sender, events) = mpsc::channel(WAITING);
        streams.lock().unwrap_or_else(PoisonError::into_inner).insert(id, sender);
        Self { id, events, skip, reset: false }
    }

    async fn read(&mut self) -> Option<Bytes> {
        loop {
            match self.events.recv().await? {
                Event::Data { mut bytes, .. } => {
                    let skipped = bytes.split_to(self.skip.min(bytes.len())).len();
                    self.skip -= skipped;
                    if !bytes.is_empty() {
                        return Some(bytes);
                    }
                }
                Event::Reset(_) => {
                    self.reset = true;
                    return None;
                }
                Event::Reply(_) | Event::Pong => {}
            }
        }
    }

    /// All that is to come.
    async fn rest(&mut self) -> Vec<u8> {
        let mut all = Vec::new();
        while let Some(bytes) = self.read().await {
            all.extend_from_slice(&bytes);
        }
        all
    }
}

impl Outgoing {
    /// Sends one frame, however long.
    pub async fn write(&self, bytes: &[u8]) -> Result<()> {
        self.writer.lock().await.data(self.id, bytes).await
    }

    /// Says that we have no more. WebSocket cannot.
    pub async fn end(&self) -> Result<()> {
        self.writer.lock().await.end(self.id).await
    }

    /// Gives the connection up. WebSocket cannot.
    pub async fn reset(&self) -> Result<()> {
        self.writer.lock().await.reset(self.id).await
    }
}

impl Connection {
    /// For writing while another task reads.
    pub fn outgoing(&self) -> Outgoing {
        self.outgoing.clone()
    }

    /// See [`Outgoing::write`].
    pub async fn write(&self, bytes: &[u8]) -> Result<()> {
        self.outgoing.write(bytes).await
    }

    /// See [`Outgoing::end`].
    pub async fn end(&self) -> Result<()> {
        self.outgoing.end().await
    }

    /// The next bytes; none at the end.
    pub async fn read(&mut self) -> Option<Bytes> {
        self.data.read().await
    }

    /// Why there is no connection: the error stream's next text, or none when it has ended without.
    pub async fn error(&mut self) -> Option<String> {
        Some(String::from_utf8_lossy(&self.error.read().await?).into_owned())
    }

    /// Reads to the ends of both streams: what came, and what went wrong (empty if nothing). WebSocket's end with the connection.
    pub async fn finish(mut self) -> (Vec<u8>, String) {
        let data = self.data.rest().await;
        if !self.data.reset {
            // As Go's client does before it looks for an error: it has no more to say then, either. Fails where there is nobody to tell.
            let _ = self.outgoing.reset().await;
        }
        let error = self.error.rest().await;
        (data, String::from_utf8_lossy(&error).into_owned())
    }
}
