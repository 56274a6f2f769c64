//! Standard streams on one side, a container's on the other.

use std::convert::Infallible;
use std::io;

use anyhow::Context as _;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_tungstenite::tungstenite::Bytes;

use super::input::Input;
use super::link::{Link, Received, Receiver, Sender};
use super::{RunArgs, terminal};

/// How a session ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Over {
    /// The container has said all.
    Said,
    /// Nobody is left to say it to.
    Left,
}

/// Streams that are joined.
#[derive(Debug)]
pub(super) struct Session {
    link: Link,
    input: Option<Input>,
    /// Told when the terminal's size changes, where there is a terminal.
    sizes: Option<Signal>,
}

impl Session {
    /// Tells the terminal's size at once, so that the container begins with it.
    pub(super) async fn new(mut link: Link, args: &RunArgs) -> anyhow::Result<Self> {
        let input = args.interactive.then(Input::open).transpose().context("watch standard input")?;
        let sizes = args.tty.then(|| signal(SignalKind::window_change())).transpose()?;
        if let Some(size) = sizes.as_ref().and_then(|_| terminal::size()) {
            link.sender.resize(size).await?;
        }
        Ok(Self { link, input, sizes })
    }

    /// Carries bytes both ways until one side is over.
    pub(super) async fn carry(self) -> anyhow::Result<Over> {
        let Self { link: Link { mut sender, receiver }, input, sizes } = self;
        let inward = async {
            match send(&mut sender, input, sizes).await {
                Ok(over) => over,
                // What is wrong with the connection, the other direction finds too, behind what came before.
                Err(_) => match std::future::pending::<Infallible>().await {},
            }
        };
        tokio::select! {
            over = show(receiver) => over,
            over = inward => Ok(over),
        }
    }
}

/// Passes on what is typed, and sizes. Returns when the terminal has gone.
async fn send(
    sender: &mut Sender,
    mut input: Option<Input>,
    mut sizes: Option<Signal>,
) -> anyhow::Result<Over> {
    loop {
        tokio::select! {
            bytes = next(input.as_ref()) => match bytes {
                Ok(bytes) if !bytes.is_empty() => sender.stdin(&bytes).await?,
                // A terminal that is raw ends only when it hangs up.
                _ if sizes.is_some() => return Ok(Over::Left),
                _ => {
                    input = None;
                    sender.end_stdin().await?;
                }
            },
            () = changed(sizes.as_mut()) => if let Some(size) = terminal::size() {
                sender.resize(size).await?;
            },
        }
    }
}

async fn next(input: Option<&Input>) -> io::Result<Vec<u8>> {
    match input {
        Some(input) => input.next().await,
        None => std::future::pending().await,
    }
}

async fn changed(sizes: Option<&mut Signal>) {
    match sizes {
        Some(sizes) => {
            sizes.recv().await;
        }
        None => std::future::pending().await,
    }
}

/// Shows what the container says.
async fn show(mut receiver: Receiver) -> anyhow::Result<Over> {
    loop {
        let shown = match receiver.next().await? {
            Received::Stdout(bytes) => write(io::stdout, bytes).await,
            Received::Stderr(bytes) => write(io::stderr, bytes).await,
            Received::End => return Ok(Over::Said),
        };
        if shown.is_err() {
            return Ok(Over::Left);
        }
    }
}

/// A slow reader makes the container wait.
async fn write<W: io::Write>(to: impl FnOnce() -> W + Send + 'static, bytes: Bytes) -> io::Result<()> {
    let write = move || {
        let mut to = to();
        to.write_all(&bytes)?;
        to.flush()
    };
    tokio::task::spawn_blocking(write).await.map_err(io::Error::other)?
}
