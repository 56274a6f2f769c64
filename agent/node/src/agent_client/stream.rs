//! Raw streams to a pod agent, and unix sockets with long paths.

use std::fmt;
use std::io;
use std::path::Path;
use std::time::Duration;

use rustix::fd::AsRawFd as _;
use rustix::fs::{Mode, OFlags};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::time::Instant;

use super::AgentClient;
use crate::random;
use hartpod_vm::launcher::VSOCK_SOCKET;

/// For a place in the queue of an agent that others connect to at the same time.
const BACKLOG_WAIT: Duration = Duration::from_secs(10);
const BACKLOG_PAUSE: Duration = Duration::from_millis(2);

/// For the VMM to have asked the guest, and the guest to have answered.
const GREETING_WAIT: Duration = Duration::from_secs(10);
/// Bytes of a VMM's answer at most: `OK 4294967295`, or `ERROR` and why.
const MAX_GREETING: usize = 128;

/// How an agent is reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Door {
    /// Its own sockets on this host.
    Sockets,
    /// Ports of its guest, by the VMM's socket.
    Vsock,
}

/// What an agent offers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Service {
    /// pod/v1
    Calls,
    Streams,
    /// Every byte comes back.
    Echo,
}

impl Service {
    /// The name of its socket, on a host; nobody needs to ask an agent there whether it is alive.
    fn socket(self) -> Option<&'static str> {
        match self {
            Self::Calls => Some("agent.sock"),
            Self::Streams => Some("stream.sock"),
            Self::Echo => None,
        }
    }

    /// Its port, in a guest (pod.proto).
    fn port(self) -> u32 {
        match self {
            Self::Calls => 1024,
            Self::Streams => 1025,
            Self::Echo => 1026,
        }
    }
}

/// Opens one stream, once.
#[derive(Clone)]
pub(crate) struct Token(String);

/// It is a secret.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

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
        let mut stream = connect(&self.dir, self.door, Service::Streams).await?;
        stream.write_all(format!("{}\n", token.0).as_bytes()).await?;
        Ok(stream)
    }

    /// Whether the agent of a guest is alive, as far as a byte that comes back tells. One on this host always is while its process is.
    pub(crate) async fn echo(&self) -> io::Result<()> {
        if self.door == Door::Sockets {
            return Ok(());
        }
        let mut stream = connect(&self.dir, self.door, Service::Echo).await?;
        stream.write_u8(b'?').await?;
        stream.read_u8().await.map(drop)
    }
}

/// A connection to a service of the agent that is reached by sockets in `dir`.
pub(super) async fn connect(dir: &Path, door: Door, service: Service) -> io::Result<UnixStream> {
    match (door, service.socket()) {
        (Door::Sockets, Some(name)) => connect_to(dir, name).await,
        (Door::Sockets, None) => Err(io::ErrorKind::Unsupported.into()),
        (Door::Vsock, _) => {
            let mut stream = connect_to(dir, VSOCK_SOCKET).await?;
            match tokio::time::timeout(GREETING_WAIT, greet(&mut stream, service.port())).await {
                Ok(greeted) => greeted.map(|()| stream),
                Err(_) => Err(io::ErrorKind::TimedOut.into()),
            }
        }
    }
}

/// The VMM's `CONNECT port` (`hartpod_vm::launcher::connect`).
async fn greet(stream: &mut UnixStream, port: u32) -> io::Result<()> {
    stream.write_all(format!("CONNECT {port}\n").as_bytes()).await?;
    let mut answer = Vec::new();
    // Byte by byte: what follows the line is the guest's.
    while answer.last() != Some(&b'\n') {
        match stream.read_u8().await {
            Ok(byte) if answer.len() < MAX_GREETING => answer.push(byte),
            Ok(_) => return Err(io::ErrorKind::InvalidData.into()),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            Err(error) => return Err(error),
        }
    }
    let answer = String::from_utf8_lossy(&answer);
    match answer.strip_prefix("ERROR ") {
        _ if answer.starts_with("OK ") => Ok(()),
        Some(why) => Err(io::Error::other(why.trim_end().to_owned())),
        None => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Connects to the socket `name` in `dir`, by way of the folder's descriptor: an address holds 107 bytes of path.
async fn connect_to(dir: &Path, name: &str) -> io::Result<UnixStream> {
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

        let (client, server) = tokio::join!(connect_to(&deep, "s"), listener.accept());
        client.unwrap();
        server.unwrap();
    }

    #[tokio::test]
    async fn a_guest_is_reached_through_its_vmm() {
        use tokio::io::{AsyncBufReadExt as _, BufReader};

        let dir = tempfile::tempdir().unwrap();
        let listener = tokio::net::UnixListener::bind(dir.path().join(VSOCK_SOCKET)).unwrap();
        for (answer, expected) in [
            (&b"OK 1073741824\nhello"[..], Ok("hello")),
            (b"ERROR there are 8 connections\n", Err(io::ErrorKind::Other)),
            (b"HTTP/1.1 400\n", Err(io::ErrorKind::InvalidData)),
            (&[b'x'; 500], Err(io::ErrorKind::InvalidData)),
            (b"", Err(io::ErrorKind::ConnectionRefused)),
        ] {
            let vmm = async {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut line = String::new();
                BufReader::new(&mut stream).read_line(&mut line).await.unwrap();
                stream.write_all(answer).await.unwrap();
                line
            };
            let (client, line) = tokio::join!(connect(dir.path(), Door::Vsock, Service::Streams), vmm);
            assert_eq!(line, "CONNECT 1025\n");
            let mut rest = String::new();
            match client {
                Ok(mut stream) => {
                    stream.read_to_string(&mut rest).await.unwrap();
                    assert_eq!(Ok(rest.as_str()), expected);
                }
                Err(error) => assert_eq!(Err(error.kind()), expected),
            }
        }
    }
}
