//! Byte streams: raw connections to the agent's second socket, one per direction of a process's stdio, or for both of a forwarded port.
//!
//! The node agent chooses a token per stream and names it in the call; then it connects, writes the token and a newline, and
//! from there on the connection is the stream: shutdown(2) of the writing half is the end of input, and the agent closes
//! output at its end. A token is good for one connection, from the moment that the call names it until
//! [`CONNECT_WAIT`] later; a connection with any other token is closed.

mod clients;
mod conduit;
mod connection;
mod follow;
mod forward;
mod input;
mod listener;
mod pipe;
mod relay;
mod tap;
mod token;

pub(crate) use clients::{Client, Clients};
pub(crate) use follow::{Followed, follow};
pub(crate) use forward::{Forward, ForwardError};
pub(crate) use input::{Fed, feed, feed_attached};
pub(crate) use listener::serve;
pub(crate) use pipe::Pipe;
pub(crate) use relay::{Ended, relay};
pub(crate) use tap::{Tap, Taps, copy_to, mark_gaps, tap};
pub(crate) use token::{Expected, InvalidToken, Token, Tokens};

use std::time::Duration;

/// How long a stream waits for its connection.
pub(crate) const CONNECT_WAIT: Duration = Duration::from_secs(10);

/// Bytes per read where they pass through the agent's memory.
const CHUNK: usize = 16 * 1024;

/// How long what somebody has sent who is gone may take to be taken.
const LINGER: Duration = Duration::from_secs(60);
