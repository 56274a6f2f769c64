//! Exec and attach.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use bytes::Bytes;
use serde_json::Value;

use super::link::{self, Event, Reader, Writer};
use super::{Channel, Protocol};
use crate::client::Client;
use crate::cri;

/// The streams that were asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Streams {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
    pub tty: bool,
}

impl From<&cri::ExecRequest> for Streams {
    fn from(request: &cri::ExecRequest) -> Self {
        Self { stdin: request.stdin, stdout: request.stdout, stderr: request.stderr, tty: request.tty }
    }
}

impl From<&cri::AttachRequest> for Streams {
    fn from(request: &cri::AttachRequest) -> Self {
        Self { stdin: request.stdin, stdout: request.stdout, stderr: request.stderr, tty: request.tty }
    }
}

/// An exec or an attach under way. Dropped, it is a client that is gone.
#[derive(Debug)]
pub struct Exec {
    pub input: Input,
    pub output: Output,
}

/// What is sent.
#[derive(Debug)]
pub struct Input {
    writer: Writer,
    streams: Numbers,
}

/// What comes.
#[derive(Debug)]
pub struct Output {
    reader: Reader,
    streams: Numbers,
    /// Channels that the server has ended; WebSocket ends none of its own.
    pub ended: Vec<Channel>,
    /// Answers to pings so far.
    pub pongs: usize,
}

/// The streams' numbers on the wire.
#[derive(Debug, Clone)]
struct Numbers(BTreeMap<Channel, u32>);

/// All that came.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Finished {
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
    /// What the error stream carried: a `metav1.Status` in JSON, and before v4 a text if anything.
    pub status: String,
    pub pongs: usize,
}

impl Exec {
    /// Opens a URL and makes the streams.
    pub async fn open(url: &str, protocol: Protocol, wanted: Streams) -> Result<Self> {
        let (mut reader, mut writer) = link::open(url, protocol).await?;
        let mut streams = Numbers(BTreeMap::new());
        match &mut writer {
            Writer::Spdy(spdy) => {
                for channel in wanted.in_order_of_go() {
                    let id = spdy.open(&[("streamType", channel.stream_type())]).await?;
                    reader.reply(id).await.with_context(|| format!("open {channel:?}"))?;
                    streams.0.insert(channel, id);
                }
            }
            Writer::WebSocket(_) => streams.0.extend(Channel::ALL.map(|channel| (channel, channel as u32))),
        }
        let input = Input { writer, streams: streams.clone() };
        Ok(Self { input, output: Output { reader, streams, ended: Vec::new(), pongs: 0 } })
    }

    /// Calls Exec and opens the URL that it answers.
    pub async fn start(client: &Client, request: cri::ExecRequest, protocol: Protocol) -> Result<Self> {
        let wanted = Streams::from(&request);
        let url = client.runtime().exec(request).await.context("Exec")?.into_inner().url;
        Self::open(&url, protocol, wanted).await
    }

    /// Calls Attach and opens the URL that it answers.
    pub async fn attach(client: &Client, request: cri::AttachRequest, protocol: Protocol) -> Result<Self> {
        let wanted = Streams::from(&request);
        let url = client.runtime().attach(request).await.context("Attach")?.into_inner().url;
        Self::open(&url, protocol, wanted).await
    }

    /// For reading and writing at the same time.
    pub fn split(self) -> (Input, Output) {
        (self.input, self.output)
    }

    /// See [`Input::write`].
    pub async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.input.write(bytes).await
    }

    /// See [`Input::end_stdin`].
    pub async fn end_stdin(&mut self) -> Result<()> {
        self.input.end_stdin().await
    }

    /// See [`Input::resize`].
    pub async fn resize(&mut self, width: u16, height: u16) -> Result<()> {
        self.input.resize(width, height).await
    }

    /// See [`Input::ping`].
    pub async fn ping(&mut self) -> Result<()> {
        self.input.ping().await
    }

    /// See [`Output::read`].
    pub async fn read(&mut self) -> Result<Option<(Channel, Bytes)>> {
        self.output.read().await
    }

    /// See [`Output::finish`]. What is to be written was written.
    pub async fn finish(self) -> Result<Finished> {
        // Kept until the end: a client that is gone ends its command.
        let Self { input, output } = self;
        let finished = output.finish().await;
        drop(input);
        finished
    }
}

impl Streams {
    /// In which client-go opens them (tools/remotecommand/v2.go, v3.go).
    fn in_order_of_go(self) -> impl Iterator<Item = Channel> {
        let Self { stdin, stdout, stderr, tty } = self;
        [
            (Channel::Error, true),
            (Channel::Stdin, stdin),
            (Channel::Stdout, stdout),
            (Channel::Stderr, stderr && !tty),
            (Channel::Resize, tty),
        ]
        .into_iter()
        .filter_map(|(channel, wanted)| wanted.then_some(channel))
    }
}

impl Numbers {
    fn of(&self, channel: Channel) -> Result<u32> {
        self.0.get(&channel).copied().with_context(|| format!("{channel:?} was not asked for"))
    }

    fn channel(&self, number: u32) -> Option<Channel> {
        self.0.iter().find(|(_, known)| **known == number).map(|(channel, _)| *channel)
    }
}

impl Input {
    /// Writes to stdin: one frame, however long.
    pub async fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.writer.data(self.streams.of(Channel::Stdin)?, bytes).await
    }

    /// Says that stdin has no more. WebSocket can from v5 on.
    pub async fn end_stdin(&mut self) -> Result<()> {
        self.writer.end(self.streams.of(Channel::Stdin)?).await
    }

    /// Tells the terminal's size as Go's JSON has it.
    pub async fn resize(&mut self, width: u16, height: u16) -> Result<()> {
        let size = format!("{{\"Width\":{width},\"Height\":{height}}}\n");
        self.writer.data(self.streams.of(Channel::Resize)?, size.as_bytes()).await
    }

    /// Asks for an answer, which [`Output::pongs`] counts.
    pub async fn ping(&mut self) -> Result<()> {
        self.writer.ping().await
    }
}

impl Output {
    /// The next bytes; none once the server is done. While it waits, nothing else of the connection is looked at.
    pub async fn read(&mut self) -> Result<Option<(Channel, Bytes)>> {
        while let Some(event) = self.reader.next().await? {
            match event {
                Event::Data { stream, bytes, fin } => {
                    let Some(channel) = self.streams.channel(stream) else {
                        bail!("{} bytes for stream {stream}, which nobody opened", bytes.len());
                    };
                    if fin {
                        self.ended.push(channel);
                    }
                    if !bytes.is_empty() {
                        return Ok(Some((channel, bytes)));
                    }
                }
                Event::Reset(stream) => self.ended.extend(self.streams.channel(stream)),
                Event::Pong => self.pongs += 1,
                Event::Reply(stream) => bail!("a reply to stream {stream}, which has one"),
            }
        }
        Ok(None)
    }

    /// Reads to the end.
    pub async fn finish(mut self) -> Result<Finished> {
        let (mut all, mut status) = (Finished::default(), Vec::new());
        while let Some((channel, bytes)) = self.read().await? {
            match channel {
                Channel::Stdout => all.stdout.extend_from_slice(&bytes),
                Channel::Stderr => all.stderr.extend_from_slice(&bytes),
                Channel::Error => status.extend_from_slice(&bytes),
                Channel::Stdin | Channel::Resize => bail!("the server sends {bytes:?} on {channel:?}"),
            }
        }
        Ok(Finished { status: String::from_utf8(status).context("the status")?, pongs: self.pongs, ..all })
    }
}

impl Finished {
    /// Stdout, as far as it is text.
    pub fn text(&self) -> std::borrow::Cow<'_, str> {
        String::from_utf8_lossy(&self.stdout)
    }

    /// The status of v4 and v5.
    pub fn status(&self) -> Result<Value> {
        serde_json::from_str(&self.status).with_context(|| format!("no status: {:?}", self.status))
    }

    /// The exit code that the status tells.
    pub fn exit_code(&self) -> Result<i32> {
        let status = self.status()?;
        if status["status"] == "Success" {
            return Ok(0);
        }
        let cause = &status["details"]["causes"][0];
        let code = cause["message"].as_str().filter(|_| cause["reason"] == "ExitCode");
        let code = code.and_then(|code| code.parse().ok());
        code.with_context(|| format!("no exit code: {status}"))
    }
}
