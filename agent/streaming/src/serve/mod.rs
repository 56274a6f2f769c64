//! A connection after its upgrade: from the client's streams to a session, and an orderly end.

mod pairs;
mod port_forward;
mod remote_command;

pub(crate) use remote_command::Command;

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::request::PortForwardRequest;
use crate::runtime::Runtime;
use crate::session::StatusFormat;
use crate::spdy::GoAway;
use crate::websocket::{CloseCode, Codec};
use crate::wire::{Activity, End, Sender, Wire};

/// What a client gets to take in its last words, and to close the connection.
const LINGER: Duration = Duration::from_secs(5);

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
}

/// What a client is told of an end. `None` for one that is gone.
fn last_words(outcome: &Result<(), End>) -> Option<(GoAway, CloseCode)> {
    match outcome {
        Ok(()) | Err(End::Closed | End::NoStreams) => Some((GoAway::Ok, CloseCode::Normal)),
        Err(End::Idle | End::Stopped) => Some((GoAway::Ok, CloseCode::GoingAway)),
        Err(End::Spdy(_) | End::Flooded) => Some((GoAway::ProtocolError, CloseCode::ProtocolError)),
        Err(End::WebSocket(violation)) => Some((GoAway::ProtocolError, violation.close_code())),
        Err(End::Lost(_)) => None,
    }
}

/// Gives a client the time to take in what it was told.
async fn linger(closing: impl Future<Output = io::Result<()>>) {
    // Whatever comes of it: the session is over.
    let _ = tokio::time::timeout(LINGER, closing).await;
}
