//! Takes the copy of an output to who is attached to it.

use std::os::fd::AsFd;

use tracing::debug;

use super::{Expected, Pipe};

/// Copies what comes out of a tap to its connection, until it ends or the attacher is gone. Then the tap ends, too.
pub(crate) async fn follow(tap: Pipe, expected: Expected) {
    let Some(connection) = expected.connected().await else {
        return debug!("nobody connected to an output that was attached to");
    };
    loop {
        tokio::select! {
            readable = tap.readable() => if readable.is_err() { return },
            () = connection.hung_up() => return,
        }
        match connection.splice_from(tap.as_fd(), || false).await {
            Ok(Some(1..)) => {}
            Ok(_) => return,
            Err(error) => return debug!(%error, "an attacher has gone"),
        }
    }
}
