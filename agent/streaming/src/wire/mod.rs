//! A client's connection after the upgrade, below any protocol: bytes in, frames out, bounded both ways.
//!
//! Sessions never touch a socket. They take [`Chunk`]s from an [`Inbound`] queue and give [`Frame`]s to the [`Sender`]. One reader per
//! connection fills the queues; what lies in them is bounded by the connection's [`Budget`], and a reader that has spent it stops, so
//! that TCP slows the client down. Frames are written by whoever has one, so a slow client slows their producers down. No queue
//! of data stands between.

mod activity;
mod frame;
mod inbound;
mod sender;
mod socket;
mod source;
mod sys;

pub(crate) use activity::Activity;
pub(crate) use frame::Frame;
pub(crate) use inbound::{Budget, Chunk, Feed, Inbound, Next, inbound};
pub(crate) use sender::{Framing, Sender};
pub(crate) use socket::{Halves, Peer, Socket, Wire};
pub(crate) use source::{Source, Tunnel};

use std::io;

use crate::{spdy, websocket};

/// How a client's connection came to its end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum End {
    #[error("the client closed the connection")]
    Closed,
    #[error("the connection was lost")]
    Lost(#[from] io::Error),
    #[error("the client broke SPDY")]
    Spdy(#[from] spdy::Violation),
    #[error("the client broke WebSocket")]
    WebSocket(#[from] websocket::Violation),
    #[error("the client asks for answers and does not read them")]
    Flooded,
    #[error("the client did not make its streams in time")]
    NoStreams,
    #[error("nothing was sent or received for too long")]
    Idle,
    #[error("the pod is gone")]
    Gone,
    #[error("the server stops")]
    Stopped,
}
