//! A connection with streams in it, whichever way they are carried.

use anyhow::{Context, Result, bail, ensure};
use bytes::Bytes;

use super::upgrade::connect;
use super::wire::{Sink, Source};
use super::{Protocol, spdy, websocket};

/// What came. Streams are SPDY's, or WebSocket's channels.
#[derive(Debug)]
pub(super) enum Event {
    /// The next bytes of a stream, and whether they are the last.
    Data {
        stream: u32,
        bytes: Bytes,
        fin: bool,
    },
    /// The server has taken on a stream.
    Reply(u32),
    /// The server has given up a stream.
    Reset(u32),
    Pong,
}

#[derive(Debug)]
pub(super) enum Reader {
    Spdy(spdy::Reader),
    WebSocket(websocket::Reader),
}

#[derive(Debug)]
pub(super) enum Writer {
    Spdy(spdy::Writer),
    WebSocket(websocket::Writer),
}

/// Upgrades the connection to a URL's server.
pub(super) async fn open(url: &str, protocol: Protocol) -> Result<(Reader, Writer)> {
    let stream = connect(url, protocol).await?;
    Ok(match protocol {
        Protocol::Spdy(_) => {
            let (reader, writer) = stream.into_split();
            let writer = spdy::Writer::new(Sink::new(writer))?;
            (Reader::Spdy(spdy::Reader::new(Source::new(reader))), Writer::Spdy(writer))
        }
        Protocol::WebSocket(version) if version.starts_with("SPDY/3.1+") => {
            let (reader, writer) = tokio::io::split(websocket::tunnel(stream));
            let writer = spdy::Writer::new(Sink::new(writer))?;
            (Reader::Spdy(spdy::Reader::new(Source::new(reader))), Writer::Spdy(writer))
        }
        Protocol::WebSocket(_) => {
            let (reader, writer) = stream.into_split();
            let writer = websocket::Writer::new(Sink::new(writer));
            (Reader::WebSocket(websocket::Reader::new(Source::new(reader))), Writer::WebSocket(writer))
        }
    })
}

impl Reader {
    /// The next event; none once the server is done.
    pub(super) async fn next(&mut self) -> Result<Option<Event>> {
        match self {
            Self::Spdy(reader) => reader.next().await,
            Self::WebSocket(reader) => reader.next().await,
        }
    }

    /// Waits for the reply to a stream that was just opened, as Go does, when none has said anything yet.
    pub(super) async fn reply(&mut self, stream: u32) -> Result<()> {
        let event = self.next().await?.context("the connection ends before its streams are there")?;
        ensure!(
            matches!(event, Event::Reply(replied) if replied == stream),
            "not a reply to {stream}: {event:?}"
        );
        Ok(())
    }
}

impl Writer {
    /// Sends bytes.
    pub(super) async fn data(&mut self, stream: u32, bytes: &[u8]) -> Result<()> {
        match self {
            Self::Spdy(writer) => writer.data(stream, bytes, false).await,
            Self::WebSocket(writer) => writer.data(stream, bytes).await,
        }
    }

    /// Ends our half of a stream.
    pub(super) async fn end(&mut self, stream: u32) -> Result<()> {
        match self {
            Self::Spdy(writer) => writer.data(stream, &[], true).await,
            Self::WebSocket(writer) => writer.end(stream).await,
        }
    }

    /// Gives up a stream.
    pub(super) async fn reset(&mut self, stream: u32) -> Result<()> {
        match self {
            Self::Spdy(writer) => writer.reset(stream).await,
            Self::WebSocket(_) => bail!("WebSocket cannot give up one stream"),
        }
    }

    pub(super) async fn ping(&mut self) -> Result<()> {
        match self {
            Self::Spdy(writer) => writer.ping().await,
            Self::WebSocket(writer) => writer.ping().await,
        }
    }
}
