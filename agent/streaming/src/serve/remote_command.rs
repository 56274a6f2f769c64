//! Exec and attach.

use tokio::sync::mpsc;
use tokio::time::timeout;
use tracing::debug;

use super::{Around, Context, Protocol, Transport, last_words};
use crate::request::{AttachRequest, ExecRequest, Streams};
use crate::runtime::{Opening, Runtime, Session};
use crate::session::{self, Client, Outbound, Sizes, StatusStream, Verb, Verdict};
use crate::spdy::{self, ResetStatus, Stream};
use crate::websocket::{Channels, Codec};
use crate::wire::{End, Frame, Framing, Inbound, Wire, inbound};

/// What is to be run, or joined.
#[derive(Debug)]
pub(crate) enum Command {
    Exec(ExecRequest),
    Attach(AttachRequest),
}

impl Command {
    fn verb(&self) -> Verb {
        match self {
            Self::Exec(_) => Verb::Exec,
            Self::Attach(_) => Verb::Attach,
        }
    }

    fn streams(&self) -> Streams {
        match self {
            Self::Exec(request) => request.streams,
            Self::Attach(request) => request.streams,
        }
    }

    /// What is run begins with the size that the client has told; what is there already is told it as any other.
    fn open<'a>(self, runtime: &'a dyn Runtime, sizes: Option<&mut Sizes>) -> Opening<'a, Session> {
        match self {
            Self::Exec(request) => {
                let size = sizes.filter(|_| request.streams.tty).and_then(Sizes::come);
                runtime.exec(request, size)
            }
            Self::Attach(request) => runtime.attach(request),
        }
    }
}

pub(super) async fn serve(
    wire: Wire,
    command: Command,
    protocol: Protocol,
    context: &mut Context,
) -> Result<(), End> {
    match protocol.transport {
        Transport::Spdy => over_spdy(wire, Framing::Bare, command, protocol, context).await,
        Transport::Tunnel => over_spdy(wire, Framing::Messages, command, protocol, context).await,
        Transport::Channels(codec) => over_channels(wire, codec, command, protocol, context).await,
    }
}

async fn over_spdy(
    wire: Wire,
    framing: Framing,
    command: Command,
    protocol: Protocol,
    context: &mut Context,
) -> Result<(), End> {
    let peer = wire.peer.clone();
    let (mut connection, mut opened) = spdy::Connection::new(wire, framing)?;
    let (shared, activity) = (connection.shared.clone(), connection.activity.clone());
    let runtime = context.runtime.clone();
    let creation_timeout = context.creation_timeout;
    let session = async {
        let mut arrived = Arrived::default();
        let wanted = Wanted::new(command.streams(), protocol);
        match timeout(creation_timeout, arrived.wait_for(wanted, &mut opened)).await {
            Ok(arrived) => arrived?,
            Err(_) => return arrived.give_up(command.verb(), protocol).await,
        }
        let Some(client) = arrived.client(protocol) else { return Err(End::NoStreams) };
        tokio::select! {
            outcome = session::run(command.verb(), |sizes| command.open(&*runtime, sizes), client) => outcome,
            end = refuse_all(&mut opened) => Err(end),
        }
    };
    let around = Around { sender: &shared.sender, activity: &activity, peer };
    let outcome = around.run(session, connection.read(), context).await;
    if let Some((why, code)) = last_words(&outcome) {
        around.linger(connection.close(why, code), context).await;
    }
    outcome
}

/// Refuses the streams that come after the session has begun.
async fn refuse_all(opened: &mut mpsc::Receiver<Stream>) -> End {
    while let Some(stream) = opened.recv().await {
        if let Err(end) = stream.refuse(ResetStatus::RefusedStream) {
            return end;
        }
    }
    End::Closed
}

/// Which streams a client has to make before its session begins.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    streams: Streams,
    resize: bool,
}

impl Wanted {
    fn new(streams: Streams, protocol: Protocol) -> Self {
        Self { streams, resize: streams.tty && protocol.resize }
    }
}

/// The streams that a client has made so far.
#[derive(Debug, Default)]
struct Arrived {
    error: Option<Outbound>,
    stdin: Option<Inbound>,
    stdout: Option<Outbound>,
    stderr: Option<Outbound>,
    resize: Option<Inbound>,
}

impl Arrived {
    async fn wait_for(&mut self, wanted: Wanted, opened: &mut mpsc::Receiver<Stream>) -> Result<(), End> {
        while !self.has_all(wanted) {
            // Its sender lives as long as the connection.
            let Some(stream) = opened.recv().await else { return Err(End::Closed) };
            self.add(stream)?;
        }
        Ok(())
    }

    fn has_all(&self, Wanted { streams, resize }: Wanted) -> bool {
        self.error.is_some()
            && (self.stdin.is_some() || !streams.stdin)
            && (self.stdout.is_some() || !streams.stdout)
            && (self.stderr.is_some() || !streams.stderr)
            && (self.resize.is_some() || !resize)
    }

    /// Takes a stream on, or refuses it: one of a type that nobody knows, or that is there already.
    fn add(&mut self, stream: Stream) -> Result<(), End> {
        enum Place<'a> {
            In(&'a mut Option<Inbound>),
            Out(&'a mut Option<Outbound>),
        }
        let place = match stream.headers().get("streamType") {
            Some("error") => Place::Out(&mut self.error),
            Some("stdin") => Place::In(&mut self.stdin),
            Some("stdout") => Place::Out(&mut self.stdout),
            Some("stderr") => Place::Out(&mut self.stderr),
            Some("resize") => Place::In(&mut self.resize),
            other => {
                debug!(?other, "a client made a stream of an unknown type");
                return stream.refuse(ResetStatus::RefusedStream);
            }
        };
        match place {
            Place::In(place @ None) => *place = Some(stream.accept()?.0),
            Place::Out(place @ None) => *place = Some(stream.accept()?.1.into()),
            _ => return stream.refuse(ResetStatus::ProtocolError),
        }
        Ok(())
    }

    fn client(self, protocol: Protocol) -> Option<Client> {
        let Self { error, stdin, stdout, stderr, resize } = self;
        let status = StatusStream { outbound: error?, format: protocol.status };
        Some(Client { stdin, resize, stdout, stderr, status })
    }

    /// Tells a client that did not make all its streams, if it made the one to be told on.
    async fn give_up(self, verb: Verb, protocol: Protocol) -> Result<(), End> {
        let error = End::NoStreams.to_string();
        if let Some(client) = self.client(protocol) {
            client.status.send(&Verdict::Error(verb, error)).await?;
        }
        Err(End::NoStreams)
    }
}

async fn over_channels(
    wire: Wire,
    codec: Codec,
    command: Command,
    protocol: Protocol,
    context: &mut Context,
) -> Result<(), End> {
    /// Channels have the numbers of standard streams.
    const STDOUT: u8 = 1;
    const STDERR: u8 = 2;
    const ERROR: u8 = 3;

    let streams = command.streams();
    let (stdin_feed, stdin) = inbound();
    let (resize_feed, resize) = inbound();
    let feeds = vec![streams.stdin.then_some(stdin_feed), None, None, None, Some(resize_feed)];
    let peer = wire.peer.clone();
    let mut channels = Channels::new(wire, codec, feeds)?;
    let (sender, activity) = (channels.sender.clone(), channels.activity.clone());
    let client = Client {
        stdin: streams.stdin.then_some(stdin),
        resize: Some(resize),
        stdout: streams.stdout.then(|| channels.channel(STDOUT).into()),
        stderr: streams.stderr.then(|| channels.channel(STDERR).into()),
        status: StatusStream { outbound: channels.channel(ERROR).into(), format: protocol.status },
    };
    let first = channels.channel(match streams {
        Streams { stdout: true, .. } => STDOUT,
        Streams { stderr: true, .. } => STDERR,
        _ => ERROR,
    });
    let runtime = context.runtime.clone();
    let verb = command.verb();
    let open = |sizes: Option<&mut Sizes>| -> Opening<'_, Session> {
        let opening = command.open(&*runtime, sizes);
        Box::pin(async move {
            let session = opening.await?;
            // An empty message says that the streams are there: from here on nothing is missed.
            first.send(&mut Frame::of(b"")).await?;
            Ok(session)
        })
    };
    let session = session::run(verb, open, client);
    let around = Around { sender: &sender, activity: &activity, peer };
    let outcome = around.run(session, channels.read(), context).await;
    if let Some((_, code)) = last_words(&outcome) {
        around.linger(channels.close(code), context).await;
    }
    outcome
}
