//! Exec and attach: a process's standard streams and a client's.

use std::convert::Infallible;

use tokio::io::AsyncWriteExt as _;
use tracing::{debug, warn};

use super::{Outbound, Sizes, StatusStream, Verb, Verdict};
use crate::runtime::{BoxError, Input, Opening, Output, Session, chain};
use crate::spdy::SendError;
use crate::wire::{End, Frame, Inbound, Next};

/// The streams of a client.
#[derive(Debug)]
pub(crate) struct Client {
    pub(crate) stdin: Option<Inbound>,
    pub(crate) resize: Option<Inbound>,
    pub(crate) stdout: Option<Outbound>,
    pub(crate) stderr: Option<Outbound>,
    pub(crate) status: StatusStream,
}

/// Runs a session to its end, and tells the client how it ended. Dropped, the session is. `open` may take the sizes that have come.
pub(crate) async fn run<'a>(
    verb: Verb,
    open: impl FnOnce(Option<&mut Sizes>) -> Opening<'a, Session>,
    client: Client,
) -> Result<(), End> {
    let Client { stdin, resize, stdout, stderr, status } = client;
    let mut sizes = resize.map(Sizes::new);
    let exit = match open(sizes.as_mut()).await {
        Ok(session) => {
            let ends = Ends { stdin, sizes, stdout, stderr };
            relay(session, ends).await?
        }
        Err(error) => Err(error),
    };
    let verdict = match exit {
        Ok(0) => Verdict::Success,
        // What a container's process returns is told by its status, not to those who watched it.
        Ok(_) if verb == Verb::Attach => Verdict::Success,
        Ok(code) => Verdict::ExitCode(code),
        Err(error) => Verdict::Error(verb, chain(&*error)),
    };
    debug!(?verb, ?verdict, "a session has ended");
    status.send(&verdict).await
}

/// The client's ends of what a session has.
struct Ends {
    stdin: Option<Inbound>,
    sizes: Option<Sizes>,
    stdout: Option<Outbound>,
    stderr: Option<Outbound>,
}

async fn relay(session: Session, ends: Ends) -> Result<Result<i32, BoxError>, End> {
    let Session { stdin, stdout, stderr, size, exit } = session;
    let out = async {
        let exit = async { Ok(exit.await) };
        let (exit, (), ()) =
            tokio::try_join!(exit, copy_out(stdout, ends.stdout), copy_out(stderr, ends.stderr))?;
        Ok(exit)
    };
    let inputs = async {
        let resize = async {
            match ends.sizes {
                Some(sizes) => sizes.follow(size).await,
                None => drop(size),
            }
        };
        tokio::join!(copy_in(ends.stdin, stdin), resize);
        // The end of what a client says is not the end of what it wants to hear.
        std::future::pending::<Infallible>().await
    };
    tokio::select! {
        exit = out => exit,
        never = inputs => match never {},
    }
}

/// Copies an output to its end, or until the client no longer wants it.
async fn copy_out(output: Option<Output>, outbound: Option<Outbound>) -> Result<(), End> {
    let Some(outbound) = outbound else { return Ok(()) };
    if let Some(mut output) = output {
        let mut frame = Frame::new();
        loop {
            match frame.read_from(&mut output).await {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) => {
                    warn!(%error, "an output has ended early");
                    break;
                }
            }
            match outbound.send(&mut frame).await {
                Ok(()) => {}
                Err(SendError::Closed) => return Ok(()),
                Err(SendError::Lost(error)) => return Err(End::Lost(error)),
            }
        }
    }
    outbound.finish()
}

/// Copies the client's input to its end, or until nobody reads it any more.
async fn copy_in(inbound: Option<Inbound>, input: Option<Input>) {
    let Some(mut inbound) = inbound else { return };
    if let Some(mut input) = input {
        if let Err(error) = feed(&mut inbound, &mut input).await {
            // The process has closed its input, or ended: which is its right.
            debug!(%error, "nobody reads the input any more");
        }
    }
    inbound.discard().await;
}

async fn feed(inbound: &mut Inbound, input: &mut Input) -> std::io::Result<()> {
    while let Next::Data(chunk) = inbound.next().await {
        input.write_all(chunk.bytes()).await?;
        input.flush().await?;
    }
    input.shutdown().await
}
