//! Takes the copy of an output to who is attached to it.

use std::os::fd::AsFd;

use tracing::debug;

use super::Pipe;
use super::connection::Connection;

/// Why a copy is not followed any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Followed {
    /// Nothing more comes out of the tap.
    ToItsEnd,
    /// The attacher has gone.
    Alone,
}

/// Copies what comes out of a tap to its connection, until it ends or the attacher is gone.
pub(crate) async fn follow(tap: &Pipe, connection: &Connection) -> Followed {
    loop {
        tokio::select! {
            readable = tap.readable() => if readable.is_err() { return Followed::ToItsEnd },
            () = connection.hung_up() => return Followed::Alone,
        }
        match connection.splice_from(tap.as_fd(), || false).await {
            Ok(Some(1..)) => {}
            Ok(_) => return Followed::ToItsEnd,
            Err(error) => {
                debug!(%error, "an attacher has gone");
                return Followed::Alone;
            }
        }
    }
}
