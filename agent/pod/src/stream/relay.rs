//! Moves bytes between an exec's stdio and its stream connections.
//!
//! A relay holds at most one chunk, so a slow reader slows the process down, as a pipe would. Whoever goes away early does
//! no harm: without a connection output is read and thrown away, so that the process neither blocks nor dies of SIGPIPE.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use tokio::io::{AsyncWriteExt, Interest};
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time::sleep;
use tracing::{debug, warn};

use super::token::Expected;
use crate::sys::Watched;

/// Bytes per read and write.
const CHUNK: usize = 16 * 1024;

/// Once the process itself has ended, output that others still hold open is over after this long a silence. containerd waits
/// for ever by default (`drain_exec_sync_io_timeout`), which makes `sh -c 'server &'` a call that does not return.
const SILENCE: Duration = Duration::from_secs(2);

/// The agent's end of a pipe to a process, or the master of its terminal.
#[derive(Debug)]
pub(crate) struct Pipe(Watched);

impl Pipe {
    /// Watches `fd`, whose open file is made non-blocking; a pipe's other end is a file of its own and stays as it is.
    pub(crate) fn new(fd: OwnedFd) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        Watched::new(fd, Interest::READABLE | Interest::WRITABLE).map(Self)
    }

    /// Reads some bytes; 0 at the end, which for a terminal is the hang-up of its last slave.
    async fn read(&self, chunk: &mut [u8]) -> io::Result<usize> {
        match self.0.io(Interest::READABLE, |fd| Ok(rustix::io::read(fd, &mut *chunk)?)).await {
            Err(error) if error.raw_os_error() == Some(Errno::IO.raw_os_error()) => Ok(0),
            outcome => outcome,
        }
    }

    async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let count = self.0.io(Interest::WRITABLE, |fd| Ok(rustix::io::write(fd, bytes)?)).await?;
            bytes = bytes.get(count..).unwrap_or_default();
        }
        Ok(())
    }

    /// Reads to the end and throws it away.
    pub(crate) async fn drain(self) {
        let mut chunk = vec![0; CHUNK];
        while matches!(self.read(&mut chunk).await, Ok(1..)) {}
    }
}

/// How the relay of an output ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// Everything was read, and passed on if anybody was there.
    Eof,
    /// The process has ended, but somebody else holds its output open and is silent. The connection is closed; what still comes is
    /// to be drained.
    HeldOpen(Pipe),
}

/// Copies a process's output to its connection, if it is to have one. `exited` turns true when the process itself has ended.
pub(crate) async fn relay(
    pipe: Pipe,
    expected: Option<Expected>,
    mut exited: watch::Receiver<bool>,
) -> Ended {
    let mut connection = None;
    if let Some(expected) = expected {
        connection = expected.connected().await;
        if connection.is_none() {
            warn!("nobody connected to an output stream, dropping the output");
        }
    }
    let mut chunk = vec![0; CHUNK];
    loop {
        let count = tokio::select! {
            biased;
            count = pipe.read(&mut chunk) => count,
            () = silence(&mut exited) => return Ended::HeldOpen(pipe),
        };
        let bytes = match count {
            Ok(count @ 1..) => chunk.get(..count).unwrap_or_default(),
            Ok(_) => return Ended::Eof,
            Err(error) => {
                warn!(%error, "cannot read a process's output");
                return Ended::Eof;
            }
        };
        if let Some(open) = &mut connection {
            if let Err(error) = open.write_all(bytes).await {
                debug!(%error, "an output stream was closed by its reader");
                connection = None;
            }
        }
    }
}

async fn silence(exited: &mut watch::Receiver<bool>) {
    // A sender that is gone means the same: nobody is left who could say more.
    let _ = exited.wait_for(|exited| *exited).await;
    sleep(SILENCE).await;
}

/// Copies a connection to a process's input, and closes the input at the connection's end.
pub(crate) async fn feed(expected: Expected, pipe: Pipe) {
    let Some(connection) = expected.connected().await else {
        return warn!("nobody connected to an input stream, closing the input");
    };
    if let Err(error) = copy_input(&connection, &pipe).await {
        debug!(%error, "an input stream ended early");
    }
}

async fn copy_input(connection: &UnixStream, pipe: &Pipe) -> io::Result<()> {
    let mut chunk = vec![0; CHUNK];
    loop {
        connection.readable().await?;
        match connection.try_read(&mut chunk) {
            Ok(0) => return Ok(()),
            Ok(count) => pipe.write_all(chunk.get(..count).unwrap_or_default()).await?,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;

    use super::*;
    use crate::stream::token::{Token, Tokens};

    const TOKEN: &str = "0123456789abcdef0123456789abcdef";

    fn stream() -> (Tokens, Token, Expected) {
        let tokens = Tokens::default();
        let token = TOKEN.parse().unwrap();
        let expected = tokens.expect(token).unwrap();
        (tokens, token, expected)
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_slow_reader_slows_the_process_and_gets_everything() {
        let (tokens, token, expected) = stream();
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let (_running, exited) = watch::channel(false);
        let relay = tokio::spawn(relay(Pipe::new(reader).unwrap(), Some(expected), exited));
        let (ours, mut client) = UnixStream::pair().unwrap();
        tokens.present(token, ours);
        let process = Pipe::new(writer).unwrap();
        // More than pipe, chunk and socket hold: the writer must be made to wait.
        let sent = vec![b'z'; 4 << 20];
        let blocked = tokio::time::timeout(Duration::from_millis(200), process.write_all(&sent)).await;
        assert!(blocked.is_err(), "nothing held the process back");
        drop(process);
        let mut received = Vec::new();
        client.read_to_end(&mut received).await.unwrap();
        assert!(!received.is_empty() && received.len() < sent.len());
        assert!(matches!(relay.await.unwrap(), Ended::Eof));
    }

    #[tokio::test(flavor = "current_thread", start_paused = true)]
    async fn output_that_nobody_fetches_does_not_block_the_process() {
        let (_tokens, _token, expected) = stream();
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let (_running, exited) = watch::channel(false);
        let relay = tokio::spawn(relay(Pipe::new(reader).unwrap(), Some(expected), exited));
        Pipe::new(writer).unwrap().write_all(&vec![b'z'; 1 << 20]).await.unwrap();
        assert!(matches!(relay.await.unwrap(), Ended::Eof));
    }

    /// As the log of a container in a guest, whose host is slow.
    #[tokio::test(flavor = "current_thread", start_paused = true)]
    async fn a_reader_that_comes_late_gets_what_was_said_before_though_the_process_has_ended() {
        let (tokens, token, expected) = stream();
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let (running, exited) = watch::channel(false);
        let relay = tokio::spawn(relay(Pipe::new(reader).unwrap(), Some(expected), exited));
        Pipe::new(writer).unwrap().write_all(b"last words").await.unwrap();
        running.send(true).unwrap();
        sleep(super::super::CONNECT_WAIT - Duration::from_secs(1)).await;
        assert!(!relay.is_finished());
        let (ours, mut client) = UnixStream::pair().unwrap();
        assert!(tokens.present(token, ours));
        let mut said = String::new();
        client.read_to_string(&mut said).await.unwrap();
        assert_eq!(said, "last words");
        assert!(matches!(relay.await.unwrap(), Ended::Eof));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_reader_that_hangs_up_does_not_block_the_process() {
        let (tokens, token, expected) = stream();
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let (_running, exited) = watch::channel(false);
        let relay = tokio::spawn(relay(Pipe::new(reader).unwrap(), Some(expected), exited));
        let (ours, client) = UnixStream::pair().unwrap();
        tokens.present(token, ours);
        drop(client);
        Pipe::new(writer).unwrap().write_all(&vec![b'z'; 1 << 20]).await.unwrap();
        assert!(matches!(relay.await.unwrap(), Ended::Eof));
    }

    #[tokio::test(flavor = "current_thread", start_paused = true)]
    async fn output_held_open_by_others_ends_after_a_silence() {
        let (tokens, token, expected) = stream();
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let (running, exited) = watch::channel(false);
        let relay = tokio::spawn(relay(Pipe::new(reader).unwrap(), Some(expected), exited));
        let (ours, mut client) = UnixStream::pair().unwrap();
        tokens.present(token, ours);
        let grandchild = Pipe::new(writer).unwrap();
        grandchild.write_all(b"before ").await.unwrap();
        running.send(true).unwrap();
        grandchild.write_all(b"after").await.unwrap();
        let Ended::HeldOpen(pipe) = relay.await.unwrap() else { panic!("the pipe was still open") };
        let mut received = String::new();
        client.read_to_string(&mut received).await.unwrap();
        assert_eq!(received, "before after");
        // What comes later still finds a reader.
        let drain = tokio::spawn(pipe.drain());
        grandchild.write_all(&vec![b'z'; 1 << 20]).await.unwrap();
        drop(grandchild);
        drain.await.unwrap();
    }

    #[tokio::test(flavor = "current_thread")]
    async fn half_close_ends_the_input() {
        let (tokens, token, expected) = stream();
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let feed = tokio::spawn(feed(expected, Pipe::new(writer).unwrap()));
        let (ours, mut client) = UnixStream::pair().unwrap();
        tokens.present(token, ours);
        client.write_all(b"input").await.unwrap();
        client.shutdown().await.unwrap();
        let process = Pipe::new(reader).unwrap();
        let mut chunk = [0; 16];
        assert_eq!(process.read(&mut chunk).await.unwrap(), 5);
        assert_eq!(process.read(&mut chunk).await.unwrap(), 0);
        feed.await.unwrap();
    }
}
