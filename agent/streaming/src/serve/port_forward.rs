//! Port-forwarding.

use std::time::Duration;

use futures_util::future::try_join_all;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::debug;

use super::pairs::{Paired, Pairs};
use super::{Around, Context, Transport, last_words};
use crate::session::{Outbound, PortStreams, forward};
use crate::spdy::{self, ResetStatus, Stream};
use crate::websocket::{Channels, Codec};
use crate::wire::{End, Frame, Framing, Wire, inbound};

/// Connections of a client at one time, also of streams that it has given up while they were being made.
const MOST_FORWARDS: usize = 1024;

/// What connections get to come to their ends by themselves once their pod is gone.
const GONE_WAIT: Duration = Duration::from_secs(5);

pub(super) async fn serve(
    wire: Wire,
    sandbox_id: String,
    ports: Vec<u16>,
    transport: Transport,
    context: &mut Context,
) -> Result<(), End> {
    match transport {
        Transport::Spdy => over_spdy(wire, Framing::Bare, sandbox_id, context).await,
        Transport::Tunnel => over_spdy(wire, Framing::Messages, sandbox_id, context).await,
        Transport::Channels(codec) => over_channels(wire, codec, sandbox_id, &ports, context).await,
    }
}

/// Many connections, each of which has two streams.
async fn over_spdy(
    wire: Wire,
    framing: Framing,
    sandbox_id: String,
    context: &mut Context,
) -> Result<(), End> {
    let peer = wire.peer.clone();
    let (mut connection, mut opened) = spdy::Connection::new(wire, framing)?;
    let (shared, activity) = (connection.shared.clone(), connection.activity.clone());
    let runtime = context.runtime.clone();
    let mut pairs = Pairs::new(context.creation_timeout);
    let session = async {
        // Tasks of their own: hundreds of connections in one would all be looked at whenever one has something to do. They end with this.
        let mut forwards = JoinSet::new();
        let mut gone = runtime.gone(sandbox_id.clone());
        loop {
            tokio::select! {
                Some(stream) = opened.recv() => {
                    if forwards.len() >= MOST_FORWARDS {
                        stream.refuse(ResetStatus::RefusedStream)?;
                        continue;
                    }
                    if let Some(streams) = admit(&mut pairs, stream)? {
                        let (runtime, sandbox_id) = (runtime.clone(), sandbox_id.clone());
                        forwards.spawn(async move { forward(&*runtime, &sandbox_id, streams).await });
                    }
                }
                Some(ended) = forwards.join_next() => match ended {
                    Ok(outcome) => outcome?,
                    Err(error) => debug!(%error, "a forwarded connection has failed"),
                },
                () = pairs.expired() => {}
                () = &mut gone => break,
            }
        }
        // Some may still have what their pod said last.
        let _ = timeout(GONE_WAIT, async { while forwards.join_next().await.is_some() {} }).await;
        Err(End::Gone)
    };
    let around = Around { sender: &shared.sender, activity: &activity, peer };
    let outcome = around.run(session, connection.read(), context).await;
    if let Some((why, code)) = last_words(&outcome) {
        around.linger(connection.close(why, code), context).await;
    }
    outcome
}

/// Puts a stream to its other half, if that is there. One that makes no sense is refused, and the others go on.
fn admit(pairs: &mut Pairs, stream: Stream) -> Result<Option<PortStreams>, End> {
    match pairs.add(stream)? {
        Paired::Whole(streams) => Ok(Some(streams)),
        Paired::Half => Ok(None),
        Paired::Refused(why) => {
            debug!(%why, "refused a stream of a port-forwarding client");
            Ok(None)
        }
    }
}

/// One connection per port, for as long as any lives.
async fn over_channels(
    wire: Wire,
    codec: Codec,
    sandbox_id: String,
    ports: &[u16],
    context: &mut Context,
) -> Result<(), End> {
    let (mut feeds, mut inbounds) = (Vec::new(), Vec::new());
    for _ in ports {
        let (feed, inbound) = inbound();
        feeds.extend([Some(feed), None]);
        inbounds.push(inbound);
    }
    let peer = wire.peer.clone();
    let mut channels = Channels::new(wire, codec, feeds)?;
    let (sender, activity) = (channels.sender.clone(), channels.activity.clone());
    let numbers = (0..=u8::MAX).step_by(2);
    let streams = ports.iter().zip(inbounds).zip(numbers).map(|((port, inbound), number)| PortStreams {
        port: *port,
        inbound,
        outbound: channels.channel(number).into(),
        error: channels.channel(number + 1).into(),
    });
    let streams = streams.collect::<Vec<_>>();
    let runtime = context.runtime.clone();
    let session = async {
        for PortStreams { port, outbound, error, .. } in &streams {
            // Each channel begins with its port.
            for channel in [outbound, error] {
                announce(channel, *port).await?;
            }
        }
        let forwards = streams.into_iter().map(|streams| forward(&*runtime, &sandbox_id, streams));
        let mut forwards = try_join_all(forwards);
        tokio::select! {
            ended = &mut forwards => return ended.map(drop),
            () = runtime.gone(sandbox_id.clone()) => {}
        }
        match timeout(GONE_WAIT, forwards).await {
            Ok(ended) => ended.map(drop),
            Err(_) => Err(End::Gone),
        }
    };
    let around = Around { sender: &sender, activity: &activity, peer };
    let outcome = around.run(session, channels.read(), context).await;
    if let Some((_, code)) = last_words(&outcome) {
        around.linger(channels.close(code), context).await;
    }
    outcome
}

async fn announce(channel: &Outbound, port: u16) -> Result<(), End> {
    channel.send(&mut Frame::of(&port.to_le_bytes())).await.map_err(|_| End::Closed)
}
