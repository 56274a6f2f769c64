//! Moves what comes over a connection to the stdin of a process.

use std::io;

use tokio::time::sleep;
use tracing::{debug, warn};

use super::clients::Client;
use super::connection::Connection;
use super::token::Expected;
use super::{CHUNK, LINGER, Pipe};

/// What became of an input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fed {
    /// Its connection has ended, or the process takes no more.
    Ended,
    /// There was no connection.
    Never,
}

/// Copies a connection to an exec's input, and closes that at the connection's end; stays until the client has gone, or the input is read no more.
pub(crate) async fn feed(expected: Expected, pipe: Pipe, client: Client) {
    let Some(connection) = expected.connected().await else {
        warn!("nobody connected to an input stream, closing the input");
        return client.leave();
    };
    let copied = async {
        let ended = copy(&connection, &pipe).await;
        drop(pipe);
        match ended {
            Copied::All => connection.hung_up().await,
            // A client that were kept would wait for somebody to take the rest.
            Copied::Some => {}
        }
        ended
    };
    let mut copied = std::pin::pin!(copied);
    let ended = tokio::select! {
        biased;
        ended = &mut copied => ended,
        // What it has sent is still the process's.
        () = connection.hung_up() => {
            client.leave();
            copied.await;
            return;
        }
    };
    if ended == Copied::All {
        client.leave();
    }
}

/// Copies an attacher's connection to a container's input. A container that does not read keeps nobody here who has gone.
pub(crate) async fn feed_attached(expected: Expected, pipe: Pipe) -> Fed {
    let Some(connection) = expected.connected().await else {
        debug!("nobody connected to an input that was attached to");
        return Fed::Never;
    };
    let gone = async {
        connection.hung_up().await;
        sleep(LINGER).await;
    };
    tokio::select! {
        _ = copy(&connection, &pipe) => {}
        () = gone => debug!("what a container did not read of an attacher who has gone is dropped"),
    }
    Fed::Ended
}

/// How much of an input was copied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Copied {
    All,
    Some,
}

async fn copy(connection: &Connection, pipe: &Pipe) -> Copied {
    let copied = async {
        loop {
            let bytes = connection.read(CHUNK).await?;
            if bytes.is_empty() {
                return io::Result::Ok(());
            }
            pipe.write_all(&bytes).await?;
        }
    };
    match copied.await {
        Ok(()) => Copied::All,
        Err(error) => {
            debug!(%error, "an input stream ended early");
            Copied::Some
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;
    use tokio::net::UnixStream;

    use super::*;
    use crate::stream::Tokens;

    const TOKEN: &str = "0123456789abcdef0123456789abcdef";

    fn stream() -> (Expected, UnixStream) {
        let tokens = Tokens::default();
        let token = TOKEN.parse().unwrap();
        let expected = tokens.expect(token).unwrap();
        let (ours, client) = UnixStream::pair().unwrap();
        assert!(tokens.present(token, ours));
        (expected, client)
    }

    fn stdin() -> (Pipe, Pipe) {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        (Pipe::reader(reader).unwrap(), Pipe::writer(writer).unwrap())
    }

    #[tokio::test(flavor = "current_thread")]
    async fn half_close_ends_the_input() {
        let ((expected, mut client), (process, pipe)) = (stream(), stdin());
        let feed = tokio::spawn(feed(expected, pipe, Client::first().0));
        client.write_all(b"input").await.unwrap();
        client.shutdown().await.unwrap();
        assert_eq!(process.read().await.unwrap(), b"input");
        assert!(process.read().await.unwrap().is_empty());
        drop(client);
        feed.await.unwrap();
    }

    #[tokio::test(flavor = "current_thread")]
    async fn what_an_attacher_has_sent_arrives_though_it_has_gone() {
        let ((expected, mut client), (process, pipe)) = (stream(), stdin());
        let fed = tokio::spawn(feed_attached(expected, pipe));
        // More than a pipe holds.
        let sent = vec![b'z'; 100_000];
        client.write_all(&sent).await.unwrap();
        drop(client);
        let mut received = Vec::new();
        loop {
            match process.read().await.unwrap() {
                bytes if bytes.is_empty() => break,
                bytes => received.extend(bytes),
            }
        }
        assert!(received == sent);
        assert_eq!(fed.await.unwrap(), Fed::Ended);
    }

    #[tokio::test(flavor = "current_thread", start_paused = true)]
    async fn a_container_that_does_not_read_keeps_no_attacher_who_has_gone() {
        let ((expected, mut client), (_process, pipe)) = (stream(), stdin());
        let fed = tokio::spawn(feed_attached(expected, pipe));
        client.write_all(&vec![b'z'; 100_000]).await.unwrap();
        client.shutdown().await.unwrap();
        sleep(2 * LINGER).await;
        assert!(!fed.is_finished(), "an attacher that waits was given up");
        drop(client);
        assert_eq!(fed.await.unwrap(), Fed::Ended);
    }
}
