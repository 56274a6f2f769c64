//! Raw streams to a pod agent, and unix sockets with long paths.

use std::io;
use std::path::Path;
use std::time::Duration;

use rustix::fd::AsRawFd as _;
use rustix::fs::{Mode, OFlags};
use tokio::io::AsyncWriteExt as _;
use tokio::net::UnixStream;
use tokio::time::Instant;

use super::{AgentClient, STREAM_SOCKET};
use crate::random;

/// For a place in the queue of an agent that others connect to at the same time.
const BACKLOG_WAIT: Duration = Duration::from_secs(10);
const BACKLOG_PAUSE: Duration = Duration::from_millis(2);

/// Opens one stream, once.
#[derive(Debug, Clone)]
pub(crate) struct Token(String);

impl Token {
    pub(crate) fn new() -> io::Result<Self> {
        random::hex::<16>().map(Self)
    }

    /// As in pod/v1.
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

/// A raw stream could not be opened.
#[derive(Debug, thiserror::Error)]
#[error("open a stream to the pod's agent")]
pub(crate) struct StreamError(#[from] io::Error);

impl AgentClient {
    /// Connects to the stream that the agent expects under `token`.
    pub(crate) async fn open_stream(&self, token: &Token) -> Result<UnixStream, StreamError> {
        let mut stream = connect(&self.dir, STREAM_SOCKET).await?;
        stream.write_all(format!("{}\n", token.0).as_bytes()).await?;
        Ok(stream)
    }
}

/// Connects to the socket `name` in `dir`, by way of the folder's descriptor: an address holds 107 bytes of path.
pub(super) async fn connect(dir: &Path, name: &str) -> io::Result<UnixStream> {
    let folder = rustix::fs::open(dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let path = format!("/proc/self/fd/{}/{name}", folder.as_raw_fd());
    let deadline = Instant::now() + BACKLOG_WAIT;
    loop {
        match UnixStream::connect(&path).await {
            // connect(2) of a non-blocking unix socket does not wait while the listener's queue is full.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && Instant::now() < deadline => {
                tokio::time::sleep(BACKLOG_PAUSE).await;
            }
            connected => return connected,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_socket_with_a_path_longer_than_an_address_is_reached() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("d".repeat(120));
        std::fs::create_dir(&deep).unwrap();
        let folder = rustix::fs::open(&deep, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
        let short = format!("/proc/self/fd/{}/s", folder.as_raw_fd());
        let listener = tokio::net::UnixListener::bind(short).unwrap();

        let (client, server) = tokio::join!(connect(&deep, "s"), listener.accept());
        client.unwrap();
        server.unwrap();
    }
}
