//! Moves the output of a process to its stream connection.
//!
//! Bytes go from pipe to socket without passing through the agent's memory where the kernel can do that. Elsewhere a relay holds at most one
//! chunk; so a slow reader slows the process down, as a pipe would. Whoever goes away early does no harm: without a connection output is
//! read and thrown away, so that the process neither blocks nor dies of SIGPIPE.

use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use tracing::{debug, warn};

use super::Pipe;
use super::clients::Client;
use super::connection::Connection;
use super::tap::Taps;
use super::token::Expected;

/// Once the process itself has ended, output that others still hold open is over after this long a silence. containerd waits
/// for ever by default (`drain_exec_sync_io_timeout`), which makes `sh -c 'server &'` a call that does not return.
const SILENCE: Duration = Duration::from_secs(2);

/// And after this long if they are not silent, once all that the process itself has said is passed on.
const OTHERS: Duration = Duration::from_secs(10);

/// Bytes that a process leaves behind in its pipe at most (the kernel's `pipe-max-size`): what comes after these is of others.
const LEFT_MOST: usize = 1 << 20;

/// How the relay of an output ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// Everything was read, and passed on if anybody was there.
    Eof,
    /// The process has ended, but somebody else holds its output open and is silent. The connection is closed; what still comes is
    /// to be drained.
    HeldOpen(Pipe),
}

/// Copies a process's output to its connection, if it is to have one, and to `taps`, of which the quickest is waited for if they are all that
/// it goes to. `exited` turns true when the process itself has ended; `client` is at the other end of the connection.
pub(crate) async fn relay(
    pipe: Pipe,
    expected: Option<Expected>,
    taps: Taps,
    exited: watch::Receiver<bool>,
    client: Option<Client>,
) -> Ended {
    let waits_for_taps = expected.is_none();
    let mut connection = None;
    if let Some(expected) = expected {
        connection = expected.connected().await;
        if connection.is_none() {
            warn!("nobody connected to an output stream, dropping the output");
        }
    }
    let mut relay = Relay { pipe, connection, client, taps, waits_for_taps, can_splice: true, passed: 0 };
    let mut aftermath = Aftermath { exited, passed: 0, over: None };
    if relay.connection.is_none() {
        relay.without_client();
    }
    let more = loop {
        if aftermath.is_over(std::mem::take(&mut relay.passed)) {
            break More::Perhaps;
        }
        let readable = tokio::select! {
            biased;
            readable = relay.pipe.readable() => readable,
            () = relay.hung_up() => {
                relay.drop_connection(&io::ErrorKind::BrokenPipe.into());
                continue;
            }
            () = aftermath.silence() => break More::Perhaps,
        };
        let passed = match readable {
            Ok(()) => relay.pass_on().await,
            Err(error) => Err(error),
        };
        match passed {
            Ok(More::Perhaps) => {}
            Ok(More::No) => break More::No,
            Err(error) => {
                warn!(%error, "cannot read a process's output");
                break More::No;
            }
        }
    };
    relay.taps.end();
    match more {
        More::No => Ended::Eof,
        More::Perhaps => Ended::HeldOpen(relay.pipe),
    }
}

/// What comes after the end of the process itself.
struct Aftermath {
    exited: watch::Receiver<bool>,
    /// Bytes since.
    passed: usize,
    /// When what others say is over; known once nothing of the process itself is left to pass on.
    over: Option<Instant>,
}

impl Aftermath {
    /// Whether others have had their time. `passed` bytes have come since this was asked the last time.
    fn is_over(&mut self, passed: usize) -> bool {
        // A sender that is gone means the same: nobody is left who could say more.
        if *self.exited.borrow() || self.exited.has_changed().is_err() {
            self.passed = self.passed.saturating_add(passed);
            if self.passed > LEFT_MOST {
                self.over.get_or_insert_with(|| Instant::now() + OTHERS);
            }
        }
        self.over.is_some_and(|over| over <= Instant::now())
    }

    /// To be waited for while there is nothing to pass on: becomes ready when nothing more is to be waited for.
    async fn silence(&mut self) {
        let _ = self.exited.wait_for(|exited| *exited).await;
        let now = Instant::now();
        let over = *self.over.get_or_insert(now + OTHERS);
        sleep_until(over.min(now + SILENCE)).await;
    }
}

/// Whether an output may say more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum More {
    Perhaps,
    No,
}

struct Relay {
    pipe: Pipe,
    connection: Option<Connection>,
    client: Option<Client>,
    taps: Taps,
    waits_for_taps: bool,
    /// Until the kernel says that it cannot: a terminal is no pipe.
    can_splice: bool,
    /// Bytes that nobody has asked for yet how many they are.
    passed: usize,
}

impl Relay {
    /// Passes on some of what is there, or finds the end.
    async fn pass_on(&mut self) -> io::Result<More> {
        if let Some(connection) = self.connection.as_ref().filter(|_| self.can_splice) {
            let tapped = || self.taps.are_wanted();
            match connection.splice_from(self.pipe.as_fd(), tapped).await {
                Ok(Some(0)) => return Ok(More::No),
                Ok(Some(count)) => {
                    self.passed += count;
                    return Ok(More::Perhaps);
                }
                Ok(None) => {}
                Err(error) if error.kind() == io::ErrorKind::InvalidInput => self.can_splice = false,
                Err(error) => self.drop_connection(&error),
            }
        }
        let bytes = self.pipe.read().await?;
        if bytes.is_empty() {
            return Ok(More::No);
        }
        self.passed += bytes.len();
        if self.waits_for_taps {
            self.taps.copy_whole(&bytes).await;
        } else {
            self.taps.copy(&bytes);
        }
        if let Some(connection) = &self.connection {
            if let Err(error) = connection.write_all(&bytes).await {
                self.drop_connection(&error);
            }
        }
        Ok(More::Perhaps)
    }

    fn drop_connection(&mut self, error: &io::Error) {
        debug!(%error, "an output stream was closed by its reader");
        self.connection = None;
        self.without_client();
    }

    fn without_client(&mut self) {
        if let Some(client) = self.client.take() {
            client.leave();
        }
    }

    /// Becomes ready when there is a connection, and nobody at its other end.
    async fn hung_up(&self) {
        match &self.connection {
            Some(connection) => connection.hung_up().await,
            None => std::future::pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;
    use tokio::net::UnixStream;
    use tokio::time::sleep;

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
        let relay =
            tokio::spawn(relay(Pipe::reader(reader).unwrap(), Some(expected), Taps::default(), exited, None));
        let (ours, mut client) = UnixStream::pair().unwrap();
        tokens.present(token, ours);
        let process = Pipe::writer(writer).unwrap();
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
        let relay =
            tokio::spawn(relay(Pipe::reader(reader).unwrap(), Some(expected), Taps::default(), exited, None));
        Pipe::writer(writer).unwrap().write_all(&vec![b'z'; 1 << 20]).await.unwrap();
        assert!(matches!(relay.await.unwrap(), Ended::Eof));
    }

    /// As the log of a container in a guest, whose host is slow.
    #[tokio::test(flavor = "current_thread", start_paused = true)]
    async fn a_reader_that_comes_late_gets_what_was_said_before_though_the_process_has_ended() {
        let (tokens, token, expected) = stream();
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let (running, exited) = watch::channel(false);
        let relay =
            tokio::spawn(relay(Pipe::reader(reader).unwrap(), Some(expected), Taps::default(), exited, None));
        Pipe::writer(writer).unwrap().write_all(b"last words").await.unwrap();
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
        let relay =
            tokio::spawn(relay(Pipe::reader(reader).unwrap(), Some(expected), Taps::default(), exited, None));
        let (ours, client) = UnixStream::pair().unwrap();
        tokens.present(token, ours);
        drop(client);
        Pipe::writer(writer).unwrap().write_all(&vec![b'z'; 1 << 20]).await.unwrap();
        assert!(matches!(relay.await.unwrap(), Ended::Eof));
    }

    #[tokio::test(flavor = "current_thread", start_paused = true)]
    async fn others_who_never_fall_silent_have_their_time() {
        let (tokens, token, expected) = stream();
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let (running, exited) = watch::channel(false);
        let pipe = Pipe::reader(reader).unwrap();
        let relay = tokio::spawn(relay(pipe, Some(expected), Taps::default(), exited, None));
        let (ours, mut client) = UnixStream::pair().unwrap();
        tokens.present(token, ours);
        let others = Pipe::writer(writer).unwrap();
        let talk = tokio::spawn(async move {
            while others.write_all(b"tick\n").await.is_ok() {
                sleep(SILENCE / 2).await;
            }
        });
        running.send(true).unwrap();
        let begun = Instant::now();
        let mut said = String::new();
        // Paused, so that this is no time of the machine.
        sleep_until(begun + 2 * OTHERS).await;
        assert!(relay.is_finished(), "it waits for others");
        client.read_to_string(&mut said).await.unwrap();
        assert!(said.len() >= 9 * 5, "{said}");
        let Ended::HeldOpen(pipe) = relay.await.unwrap() else { panic!("the pipe was still open") };
        drop(pipe);
        talk.await.unwrap();
    }

    #[tokio::test(flavor = "current_thread", start_paused = true)]
    async fn others_who_say_more_than_is_read_have_their_time_after_what_the_process_has_said() {
        let (running, exited) = watch::channel(false);
        let mut aftermath = Aftermath { exited, passed: 0, over: None };
        assert!(!aftermath.is_over(10 * LEFT_MOST));
        running.send(true).unwrap();
        assert!(!aftermath.is_over(LEFT_MOST));
        // However long a reader takes for it.
        sleep(2 * OTHERS).await;
        assert!(!aftermath.is_over(0));
        assert!(!aftermath.is_over(1));
        sleep(OTHERS).await;
        assert!(aftermath.is_over(0));
    }

    #[tokio::test(flavor = "current_thread", start_paused = true)]
    async fn output_held_open_by_others_ends_after_a_silence() {
        let (tokens, token, expected) = stream();
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let (running, exited) = watch::channel(false);
        let relay =
            tokio::spawn(relay(Pipe::reader(reader).unwrap(), Some(expected), Taps::default(), exited, None));
        let (ours, mut client) = UnixStream::pair().unwrap();
        tokens.present(token, ours);
        let grandchild = Pipe::writer(writer).unwrap();
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
}
