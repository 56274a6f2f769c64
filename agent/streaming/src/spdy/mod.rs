//! SPDY/3.1, the server's side, as Kubernetes speaks it.
//!
//! A connection carries frames. A control frame is version and type, flags and length, and a payload; a data frame is a stream's number,
//! flags and length, and bytes. Clients open streams (odd numbers, always rising) with SYN_STREAM, which has headers that say what the
//! stream is for; SYN_REPLY takes it on, RST_STREAM refuses or ends it. Each side ends its half with the flag FIN. Headers are compressed
//! with zlib, one context per direction for the whole connection, primed with a dictionary from the draft.
//!
//! What the draft has and Kubernetes has not: server push, credentials, and flow control. The peer (Go's `moby/spdystream`) neither
//! sends WINDOW_UPDATE nor heeds it, so there is only TCP to slow a connection down, all its streams at once. A client that kept to
//! the draft's windows would get stuck after 64 KiB of input.
//!
//! Source of all numbers: the SPDY protocol, draft 3.1 (chromium.org/spdy/spdy-protocol/spdy-protocol-draft3-1).

mod connection;
pub(crate) mod decoder;
pub(crate) mod dictionary;
pub(crate) mod frame;
mod headers;
mod inflate;
mod stream;
pub(crate) mod table;

pub(crate) use connection::Connection;
pub(crate) use decoder::Violation;
pub(crate) use frame::{GoAway, ResetStatus};
pub(crate) use headers::Headers;
pub(crate) use stream::{Outbound, SendError, Stream};

/// The number of a stream: odd, and not 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) struct StreamId(pub(crate) u32);
