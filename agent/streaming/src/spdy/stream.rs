//! One stream, as a session sees it.

use std::io;
use std::sync::Arc;

use super::connection::Shared;
use super::frame::{self, ResetStatus};
use super::{Headers, StreamId};
use crate::wire::{End, Frame, Inbound};

/// A stream that the client opened, and nobody has answered.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) id: StreamId,
    pub(crate) headers: Headers,
    pub(crate) inbound: Inbound,
}

/// A stream to take on or to refuse.
#[derive(Debug)]
pub(crate) struct Stream {
    pub(super) opened: Opened,
    pub(super) shared: Arc<Shared>,
}

/// Our half of a stream.
#[derive(Debug, Clone)]
pub(crate) struct Outbound {
    id: StreamId,
    shared: Arc<Shared>,
}

/// A frame was not sent.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SendError {
    #[error("the client wants no more of the stream")]
    Closed,
    #[error("the connection was lost")]
    Lost(#[from] io::Error),
}

impl Stream {
    pub(crate) fn id(&self) -> StreamId {
        self.opened.id
    }

    pub(crate) fn headers(&self) -> &Headers {
        &self.opened.headers
    }

    /// Takes it on. Go's client drops what comes before it was told so.
    pub(crate) fn accept(self) -> Result<(Inbound, Outbound), End> {
        let Self { opened, shared } = self;
        shared.answer(|table| table.reply(opened.id))?;
        Ok((opened.inbound, Outbound { id: opened.id, shared }))
    }

    pub(crate) fn refuse(self, status: ResetStatus) -> Result<(), End> {
        self.shared.answer(|table| table.reset(self.opened.id, status))
    }
}

impl Outbound {
    /// Sends the payload of a frame.
    pub(crate) async fn send(&self, frame: &mut Frame) -> Result<(), SendError> {
        if !self.shared.table().is_outbound_open(self.id) {
            return Err(SendError::Closed);
        }
        frame.prepend(&frame::data_header(self.id, 0, frame.payload().len()));
        Ok(self.shared.sender.send(frame).await?)
    }

    /// Ends our half.
    pub(crate) fn finish(&self) -> Result<(), End> {
        self.shared.answer(|table| table.finish(self.id))
    }

    /// Ends our half, and does not wait for the client to end its own.
    pub(crate) fn leave(&self) -> Result<(), End> {
        self.shared.answer(|table| table.leave(self.id))
    }

    /// Ends the stream.
    pub(crate) fn reset(&self, status: ResetStatus) -> Result<(), End> {
        self.shared.answer(|table| table.reset(self.id, status))
    }
}
