//! The agent's life: serve pod/v1 and streams until the pod is shut down.

use std::os::fd::OwnedFd;
use std::time::Duration;

use hartpod_proto::pod::v1::pod_agent_server::PodAgentServer;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;
use tonic::transport::Server;
use tracing::error;

use crate::Way;
use crate::children::Children;
use crate::peer::{Incoming, Listener};
use crate::request::Place;
use crate::service::Service;
use crate::stream::{self, Tokens};
use crate::supervisor::{End, Outside, Supervisor};
use crate::timed::Timed;

/// Calls that may wait for the supervisor, which never waits for anything itself.
const CALLS: usize = 64;

/// Calls of one connection under way at one time; most of them wait for the end of something.
const STREAMS: u32 = 1024;

/// Bytes of a call that a peer may send before they are asked for. The largest requests carry a spec of some tens of KiB; hyper's default of
/// 1 MiB would let a peer make every pod's agent that much larger.
const WINDOW: u32 = 64 * 1024;

/// The same for all calls of a connection. A call is a small frame, for which h2 books up to 256 bytes until it is read, and it ends a connection
/// that has more than half of this booked (`too_many_data_frames`). So much, then, that all calls can come at once: memory is taken by what has
/// come only.
const CONNECTION_WINDOW: u32 = 2 * 256 * STREAMS;

/// Largest request. Kubernetes' own objects, which a spec is made of, are smaller than 1.5 MiB (etcd's limit).
const REQUEST_MAX: usize = 4 << 20;

/// How long the last answers may take to reach their callers.
const FLUSH: Duration = Duration::from_secs(2);

/// What the agent listens on.
#[derive(Debug)]
pub(crate) struct Sockets {
    /// pod/v1
    pub(crate) control: Listener,
    /// Raw streams.
    pub(crate) streams: Listener,
}

/// Serves until the pod is shut down or could not be set up.
pub(crate) async fn serve(way: Way, sockets: Sockets, null: OwnedFd) -> Result<End, tonic::transport::Error> {
    let children = Children::default();
    let (place, prepared) = prepare(way, &children);
    let burial = children.clone();
    tokio::spawn(async move {
        if let Err(error) = burial.bury_forever().await {
            error!(%error, "orphans are not buried");
        }
    });
    let tokens = Tokens::default();
    tokio::spawn(stream::serve(sockets.streams, tokens.clone()));
    let (calls, queue) = mpsc::channel(CALLS);
    let supervisor = tokio::spawn(Supervisor::new(queue, children, tokens, Outside { null, place }).run());
    let (over, is_over) = oneshot::channel::<()>();
    let service = PodAgentServer::new(Service::new(calls, prepared)).max_decoding_message_size(REQUEST_MAX);
    let service = Timed(service);
    let server = Server::builder()
        .initial_stream_window_size(WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .max_concurrent_streams(STREAMS)
        // A client of many forwarded ports that goes takes back all calls at once; with h2's default of 20 it would take the connection along.
        .http2_max_pending_accept_reset_streams(Some(STREAMS as usize))
        .serve_with_incoming_shutdown(service, Incoming::new(sockets.control), async {
            let _ = is_over.await;
        });
    let mut server = std::pin::pin!(server);
    let end = tokio::select! {
        // It has no end of its own.
        served = &mut server => return served.map(|()| End::Broken),
        end = supervisor => end.unwrap_or(End::Broken),
    };
    drop(over);
    // A peer that does not take its answer does not keep the agent.
    let _ = timeout(FLUSH, server).await;
    Ok(end)
}

/// Where the agent is, and what turns true once a pod can be set up there.
fn prepare(way: Way, children: &Children) -> (Place, watch::Receiver<bool>) {
    match way {
        Way::Host => (Place::Host, watch::channel(true).1),
        Way::Guest { modules } => {
            let (sender, prepared) = watch::channel(false);
            let exit = children.own(&modules);
            tokio::spawn(async move {
                let missing = exit.await.code;
                if missing != 0 {
                    error!(missing, "modules are missing");
                }
                let _ = sender.send(true);
            });
            (Place::Guest, prepared)
        }
    }
}
