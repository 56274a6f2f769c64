//! One forwarded connection.

use std::io;

use tokio::io::AsyncWriteExt as _;
use tracing::debug;

use super::Outbound;
use crate::runtime::{Connection, Input, Output, Runtime, chain};
use crate::spdy::SendError;
use crate::wire::{End, Frame, Inbound, Next};

/// The client's side of a forwarded connection.
#[derive(Debug)]
pub(crate) struct PortStreams {
    pub(crate) port: u16,
    pub(crate) inbound: Inbound,
    pub(crate) outbound: Outbound,
    /// Tells why there is no connection.
    pub(crate) error: Outbound,
}

/// Why a connection ends before both sides have said so.
enum Stop {
    /// The client has no more use for it.
    Client,
    Lost(io::Error),
    /// The pod broke it off.
    Pod(io::Error),
}

/// Connects to a port, and carries both ways until both ends are told, or one side breaks it off.
///
/// Only a connection that cannot be made is an error to the client: Go's ends all of its forwarding at any, so a pod that resets one
/// connection would cut all others too.
pub(crate) async fn forward(
    runtime: &dyn Runtime,
    sandbox_id: &str,
    streams: PortStreams,
) -> Result<(), End> {
    let PortStreams { port, inbound, outbound, error } = streams;
    let connection = match runtime.connect(sandbox_id.to_owned(), port).await {
        Ok(connection) => connection,
        Err(refused) => {
            let text = format!("error forwarding port {port} to pod {sandbox_id}: {}", chain(&*refused));
            match error.send(&mut Frame::of(text.as_bytes())).await {
                Ok(()) | Err(SendError::Closed) => {}
                Err(SendError::Lost(error)) => return Err(End::Lost(error)),
            }
            error.leave()?;
            return outbound.reset();
        }
    };
    match carry(connection, inbound, &outbound).await {
        Ok(()) | Err(Stop::Client) => {}
        Err(Stop::Lost(error)) => return Err(End::Lost(error)),
        Err(Stop::Pod(error)) => {
            debug!(%error, port, "a pod broke a forwarded connection off");
            outbound.reset()?;
        }
    }
    // Both, for a client need not end its half of the error stream, and would run out of streams.
    outbound.leave()?;
    error.leave()
}

async fn carry(connection: Connection, inbound: Inbound, outbound: &Outbound) -> Result<(), Stop> {
    let Connection { to_pod, from_pod } = connection;
    let (sending, receiving) = (to_pod_all(inbound, to_pod), from_pod_all(from_pod, outbound));
    if outbound.can_finish() {
        return tokio::try_join!(sending, receiving).map(drop);
    }
    // A client that cannot be told of the pod's end would never come to its own.
    let sending = async {
        match sending.await {
            Ok(()) => std::future::pending().await,
            Err(stop) => Err(stop),
        }
    };
    tokio::select! {
        ended = receiving => ended,
        stopped = sending => stopped,
    }
}

async fn to_pod_all(mut inbound: Inbound, mut to_pod: Input) -> Result<(), Stop> {
    loop {
        let written = match inbound.next().await {
            Next::Data(chunk) => match to_pod.write_all(chunk.bytes()).await {
                Ok(()) => to_pod.flush().await,
                Err(error) => Err(error),
            },
            // The pod may have closed the connection already.
            Next::End => {
                let _ = to_pod.shutdown().await;
                return Ok(());
            }
            Next::Reset => return Err(Stop::Client),
        };
        if let Err(error) = written {
            // The pod no longer listens. It may still have something to say.
            debug!(%error, "a pod does not take more of a forwarded connection");
            return Ok(());
        }
    }
}

async fn from_pod_all(mut from_pod: Output, outbound: &Outbound) -> Result<(), Stop> {
    let mut frame = Frame::new();
    while frame.read_from(&mut from_pod).await.map_err(Stop::Pod)? > 0 {
        match outbound.send(&mut frame).await {
            Ok(()) => {}
            Err(SendError::Closed) => return Err(Stop::Client),
            Err(SendError::Lost(error)) => return Err(Stop::Lost(error)),
        }
    }
    // A full queue of answers ends the connection by itself.
    outbound.finish().map_err(|_| Stop::Client)
}
