//! Byte streams: raw connections to the agent's second socket, one per direction of an exec's stdio.
//!
//! The node agent chooses a token per stream and names it in the call; then it connects, writes the token and a newline, and
//! from there on the connection is the stream: shutdown(2) of the writing half is the end of input, and the agent closes
//! output at its end. A token is good for one connection, from the moment that the call names it until
//! [`CONNECT_WAIT`] later; a connection with any other token is closed.

mod listener;
mod relay;
mod token;

pub(crate) use listener::serve;
pub(crate) use relay::{Ended, Pipe, feed, relay};
pub(crate) use token::{Expected, InvalidToken, Token, Tokens};

use std::time::Duration;

/// How long a stream waits for its connection.
pub(crate) const CONNECT_WAIT: Duration = Duration::from_secs(10);
