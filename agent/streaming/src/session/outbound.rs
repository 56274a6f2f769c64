//! A stream towards the client.

use crate::spdy::{self, ResetStatus, SendError};
use crate::websocket::Channel;
use crate::wire::{End, Frame};

/// A stream of SPDY, or a channel in WebSocket.
#[derive(Debug)]
pub(crate) enum Outbound {
    Spdy(spdy::Outbound),
    Channel(Channel),
}

impl Outbound {
    /// Sends the payload of a frame; waits for a slow client.
    pub(crate) async fn send(&self, frame: &mut Frame) -> Result<(), SendError> {
        match self {
            Self::Spdy(stream) => stream.send(frame).await,
            Self::Channel(channel) => Ok(channel.send(frame).await?),
        }
    }

    /// Whether a client can be told that one stream has ended.
    pub(crate) fn can_finish(&self) -> bool {
        matches!(self, Self::Spdy(_))
    }

    /// Nothing more comes. A channel just stays silent.
    pub(crate) fn finish(&self) -> Result<(), End> {
        match self {
            Self::Spdy(stream) => stream.finish(),
            Self::Channel(_) => Ok(()),
        }
    }

    /// Nothing more comes, and what the client still says is dropped.
    pub(crate) fn leave(&self) -> Result<(), End> {
        match self {
            Self::Spdy(stream) => stream.leave(),
            Self::Channel(_) => Ok(()),
        }
    }

    /// Something is missing, in either direction.
    pub(crate) fn reset(&self) -> Result<(), End> {
        match self {
            Self::Spdy(stream) => stream.reset(ResetStatus::Cancel),
            Self::Channel(_) => Ok(()),
        }
    }
}

impl From<spdy::Outbound> for Outbound {
    fn from(stream: spdy::Outbound) -> Self {
        Self::Spdy(stream)
    }
}

impl From<Channel> for Outbound {
    fn from(channel: Channel) -> Self {
        Self::Channel(channel)
    }
}
