//! A connection after its upgrade: from the client's streams to a session, and an orderly end.

mod pairs;
mod port_forward;
mod remote_command;

pub(crate) use remote_command::Command;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::sleep;

use crate::request::PortForwardRequest;
use crate::runtime::Runtime;
use crate::session::StatusFormat;
use crate::spdy::GoAway;
use crate::websocket::{CloseCode, Codec};
use crate::wire::{Activity, End, Peer, Sender, Wire};

/// What a client that has got everything gets to close the connection; and how often is looked whether a slow one takes more of the rest.
const LINGER: Duration = Duration::from_secs(5);

/// Looks in a row at which a client that has not got everything has taken nothing: then it is given up.
const PATIENCE: u32 = 6;

/// What is the same for all connections.
#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) idle_timeout: Duration,
    pub(crate) creation_timeout: Duration,
    pub(crate) stop: Stop,
}

/// Tells that the server stops.
#[derive(Debug, Clone)]
pub(crate) struct Stop(watch::Receiver<bool>);

impl Stop {
    /// One that is told by `true`, or when nobody is left to tell it.
    pub(crate) fn new(told: watch::Receiver<bool>) -> Self {
        Self(told)
    }

    /// Waits for it.
    pub(crate) async fn asked(&mut self) {
        let _ = self.0.wait_for(|stop| *stop).await;
    }
}

/// How a client's streams are carried.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Transport {
    Spdy,
    /// SPDY in WebSocket.
    Tunnel,
    /// WebSocket.
    Channels(Codec),
}

/// What was agreed on for exec and attach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Protocol {
    pub(crate) transport: Transport,
    pub(crate) status: StatusFormat,
    /// Whether a client with a terminal makes a stream for its size. Over WebSocket it always may.
    pub(crate) resize: bool,
}

/// What a client has redeemed its URL for.
#[derive(Debug)]
pub(crate) enum Job {
    Command(Command, Protocol),
    PortForward { request: PortForwardRequest, ports: Vec<u16>, transport: Transport },
}

// For the log, which is not to have commands: some hold passwords.
impl Job {
    pub(crate) fn verb(&self) -> &'static str {
        match self {
            Self::Command(Command::Exec(_), _) => "exec",
            Self::Command(Command::Attach(_), _) => "attach",
            Self::PortForward { .. } => "portforward",
        }
    }

    /// The container's or the sandbox's.
    pub(crate) fn id(&self) -> &str {
        match self {
            Self::Command(Command::Exec(exec), _) => &exec.container_id,
            Self::Command(Command::Attach(attach), _) => &attach.container_id,
            Self::PortForward { request, .. } => &request.sandbox_id,
        }
    }

    pub(crate) fn transport(&self) -> Transport {
        match self {
            Self::Command(_, protocol) => protocol.transport,
            Self::PortForward { transport, .. } => *transport,
        }
    }
}

/// Serves a client until one side has had enough.
pub(crate) async fn serve(wire: Wire, job: Job, context: &mut Context) -> Result<(), End> {
    match job {
        Job::Command(command, protocol) => remote_command::serve(wire, command, protocol, context).await,
        Job::PortForward { request, ports, transport } => {
            let sandbox_id = request.sandbox_id;
            port_forward::serve(wire, sandbox_id, ports, transport, context).await
        }
    }
}

/// What runs beside every session.
struct Around<'a> {
    sender: &'a Sender,
    activity: &'a Activity,
    peer: Peer,
}

impl Around<'_> {
    /// Runs a session until its end, or that of its connection.
    async fn run(
        &self,
        session: impl Future<Output = Result<(), End>>,
        reading: impl Future<Output = End>,
        context: &mut Context,
    ) -> Result<(), End> {
        // All in one task, so that it goes as a whole. Not biased: an output without end would keep the reader from its turn, and a
        // Ctrl-C with it.
        tokio::select! {
            outcome = session => outcome,
            end = reading => Err(end),
            Err(error) = self.sender.write_answers() => Err(End::Lost(error)),
            () = self.activity.idle(context.idle_timeout) => Err(End::Idle),
            () = context.stop.asked() => Err(End::Stopped),
        }
    }

    /// Gives a client the time to take in what it was told.
    async fn linger(&self, closing: impl Future<Output = io::Result<()>>, context: &Context) {
        linger(closing, || self.peer.unacknowledged(), context.idle_timeout).await;
    }
}

/// What a client is told of an end. `None` for one that is gone.
fn last_words(outcome: &Result<(), End>) -> Option<(GoAway, CloseCode)> {
    match outcome {
        Ok(()) | Err(End::Closed | End::NoStreams) => Some((GoAway::Ok, CloseCode::Normal)),
        Err(End::Idle | End::Gone | End::Stopped) => Some((GoAway::Ok, CloseCode::GoingAway)),
        Err(End::Spdy(_) | End::Flooded) => Some((GoAway::ProtocolError, CloseCode::ProtocolError)),
        Err(End::WebSocket(violation)) => Some((GoAway::ProtocolError, violation.close_code())),
        Err(End::Lost(_)) => None,
    }
}

/// Waits until a connection is closed, or its client does nothing for that, for `most` at any rate. `left` is what the client is still to get: a
/// socket closed before, with anything of the client's behind that, is reset, and all of it lost.
async fn linger(closing: impl Future<Output = io::Result<()>>, left: impl Fn() -> usize, most: Duration) {
    let given_up = async {
        let (mut before, mut idle) = (left(), 0);
        while idle < if before == 0 { 1 } else { PATIENCE } {
            sleep(LINGER).await;
            let now = left();
            idle = if now < before { 0 } else { idle + 1 };
            before = now;
        }
    };
    tokio::select! {
        // Whatever comes of it: the session is over.
        _ = closing => {}
        () = given_up => {}
        () = sleep(most) => {}
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::time::Instant;

    use super::*;

    /// How many seconds a client gets that never closes, of which every look finds that it takes `steps`, and then nothing.
    async fn seconds(total: usize, steps: &[usize], most: u64) -> u64 {
        let (start, looks) = (Instant::now(), AtomicUsize::new(0));
        let left = || total - steps.iter().take(looks.fetch_add(1, Ordering::Relaxed)).sum::<usize>();
        linger(std::future::pending(), left, Duration::from_secs(most)).await;
        start.elapsed().as_secs()
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_gets_time_for_as_long_as_it_takes_something() {
        for (total, steps, most, expected) in [
            (0, &[][..], 1000, 5),
            (100, &[100], 1000, 10),
            (100, &[10; 10], 1000, 55),
            (100, &[0, 0, 0, 0, 0, 100], 1000, 35),
            (100, &[], 1000, 30),
            (100, &[50], 1000, 35),
            (100, &[1; 100], 60, 60),
        ] {
            assert_eq!(seconds(total, steps, most).await, expected, "{total} {steps:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_closes_is_not_waited_for() {
        let start = Instant::now();
        linger(async { Ok(()) }, || 100, Duration::from_secs(1000)).await;
        assert_eq!(start.elapsed(), Duration::ZERO);
    }
}
