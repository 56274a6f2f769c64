//! Channels: several streams in one connection, told apart by a message's first byte.

use std::io;
use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use tokio::task::coop::consume_budget;

use super::{CloseCode, Decoder, Event, Opcode, Violation, header};
use crate::wire::{Activity, Budget, End, Feed, Frame, Framing, Sender, Source, Wire};

/// Closes the channel that is named by the next byte, in v5.
const CLOSE: u8 = 255;

/// How messages are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Codec {
    /// The channel's number and bytes.
    Binary,
    /// Binary, and a client can close its half of a channel: v5.
    Closing,
    /// The channel's number as a digit (or what follows the digits in ASCII), and base64.
    Base64,
}

/// The reading side of a connection with channels.
#[derive(Debug)]
pub(crate) struct Channels {
    pub(crate) source: Source,
    pub(crate) sender: Arc<Sender>,
    pub(crate) activity: Activity,
    decoder: Decoder,
    codec: Codec,
    budget: Budget,
    /// By channel. What a client sends to others is dropped.
    feeds: Vec<Option<Feed>>,
    message: Message,
    /// Of the client's last ping.
    pinged: Option<Bytes>,
}

/// What is known of the message that is being read.
#[derive(Debug, Default)]
struct Message {
    channel: Option<u8>,
    /// Up to 3 characters of base64 that are no group yet; with [`CLOSE`], the channels named.
    rest: Vec<u8>,
}

/// The writing side of one channel.
#[derive(Debug, Clone)]
pub(crate) struct Channel {
    sender: Arc<Sender>,
    number: u8,
    codec: Codec,
}

impl Channels {
    /// Reads from `wire` into `feeds`.
    pub(crate) fn new(wire: Wire, codec: Codec, feeds: Vec<Option<Feed>>) -> Result<Self, End> {
        let activity = Activity::new();
        let sender = Arc::new(Sender::new(wire.writer, Framing::Bare, activity.clone()));
        Ok(Self {
            source: Source::new(wire.reader, &wire.early, activity.clone(), None)?,
            sender,
            activity,
            decoder: Decoder::default(),
            codec,
            budget: Budget::new(wire.peer),
            feeds,
            message: Message::default(),
            pinged: None,
        })
    }

    pub(crate) fn channel(&self, number: u8) -> Channel {
        Channel { sender: Arc::clone(&self.sender), number, codec: self.codec }
    }

    /// Reads until the connection comes to its end.
    pub(crate) async fn read(&mut self) -> End {
        loop {
            // As in SPDY: a client that never pauses is not to keep others from their turn.
            consume_budget().await;
            let outcome = match self.decoder.next(&mut self.source.buffer) {
                Ok(Some(event)) => self.on(event).await,
                Ok(None) => self.source.fill().await,
                Err(violation) => Err(violation.into()),
            };
            if let Err(end) = outcome {
                return end;
            }
        }
    }

    async fn on(&mut self, event: Event) -> Result<(), End> {
        match event {
            Event::Data { bytes, start, end } => self.on_data(bytes, start, end).await,
            Event::Ping(payload) => {
                self.sender.control(Opcode::Pong, &payload)?;
                self.pinged = Some(Bytes::copy_from_slice(&payload));
                Ok(())
            }
            Event::Pong => Ok(()),
            Event::Close => Err(End::Closed),
        }
    }

    async fn on_data(&mut self, mut bytes: Bytes, start: bool, end: bool) -> Result<(), End> {
        if start {
            self.message = Message::default();
        }
        let channel = match self.message.channel {
            Some(channel) => channel,
            None if bytes.is_empty() => return Ok(()),
            None => {
                let named = bytes.split_to(1)[0];
                *self.message.channel.insert(match self.codec {
                    Codec::Base64 => named.wrapping_sub(b'0'),
                    Codec::Binary | Codec::Closing => named,
                })
            }
        };
        if self.codec == Codec::Closing && channel == CLOSE {
            return Ok(self.on_close(&bytes, end)?);
        }
        let Some(Some(feed)) = self.feeds.get(usize::from(channel)) else { return Ok(()) };
        if self.codec == Codec::Base64 {
            bytes = self.message.decode(&bytes, end)?;
        }
        if !bytes.is_empty() {
            // A client of Go closes a connection that leaves its pings unanswered for a minute. It may not have had a chance to: its
            // pings wait behind its data. So it gets an answer for which it has not asked, which is as good.
            let waiting = || match &self.pinged {
                Some(payload) => self.sender.control(Opcode::Pong, payload),
                None => Ok(()),
            };
            feed.data(self.budget.take(bytes, waiting).await?);
        }
        Ok(())
    }

    fn on_close(&mut self, bytes: &[u8], end: bool) -> Result<(), Violation> {
        let named = &mut self.message.rest;
        named.extend_from_slice(bytes.get(..2).unwrap_or(bytes));
        match (named.as_slice(), end) {
            ([channel], true) => {
                // One that takes no input, or none at all, is as good as closed.
                if let Some(feed) = self.feeds.get_mut(usize::from(*channel)).and_then(Option::take) {
                    feed.end();
                }
                Ok(())
            }
            ([] | [_], false) => Ok(()),
            _ => Err(Violation::ChannelClose),
        }
    }

    /// Closes the connection, and waits for the client to close it too: one that was cut off in the middle of sending would lose what it
    /// has not read yet, its exit code before all.
    pub(crate) async fn close(&mut self, code: CloseCode) -> io::Result<()> {
        // A client that has filled the queue is told nothing.
        let _ = self.sender.control(Opcode::Close, &(code as u16).to_be_bytes());
        self.sender.close().await?;
        self.source.discard().await
    }
}

impl Message {
    fn decode(&mut self, text: &[u8], end: bool) -> Result<Bytes, Violation> {
        self.rest.extend_from_slice(text);
        let groups = self.rest.len() / 4 * 4;
        if end && groups != self.rest.len() {
            return Err(Violation::Base64);
        }
        let rest = self.rest.split_off(groups);
        let text = std::mem::replace(&mut self.rest, rest);
        Ok(BASE64_STANDARD.decode(text).map_err(|_| Violation::Base64)?.into())
    }
}

impl Channel {
    /// Sends the payload of a frame as one message.
    pub(crate) async fn send(&self, frame: &mut Frame) -> io::Result<()> {
        match self.codec {
            Codec::Binary | Codec::Closing => {
                frame.prepend(&[self.number]);
                frame.prepend(&header(Opcode::Binary, frame.bytes().len()));
                self.sender.send(frame).await
            }
            Codec::Base64 => {
                let mut text = String::from(char::from(b'0' + self.number));
                BASE64_STANDARD.encode_string(frame.payload(), &mut text);
                let message = [&*header(Opcode::Text, text.len()), text.as_bytes()].concat();
                self.sender.send(&mut Frame::complete(message)).await
            }
        }
    }
}

impl Violation {
    /// What the client is told.
    pub(crate) fn close_code(self) -> CloseCode {
        match self {
            Self::Base64 => CloseCode::BadPayload,
            Self::Unmasked
            | Self::ReservedBits(_)
            | Self::Opcode(_)
            | Self::Control
            | Self::Interleaved
            | Self::Continuation
            | Self::Length(_)
            | Self::ChannelClose => CloseCode::ProtocolError,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_may_be_cut_anywhere() {
        let mut message = Message::default();
        let mut decoded = Vec::new();
        for (piece, end) in [("a", false), ("GVsb", false), ("", false), ("G8=", true)] {
            decoded.extend_from_slice(&message.decode(piece.as_bytes(), end).unwrap());
        }
        assert_eq!(decoded, b"hello");
        assert_eq!(Message::default().decode(b"aGVsbG8", true), Err(Violation::Base64));
        assert_eq!(Message::default().decode(b"####", true), Err(Violation::Base64));
    }
}
