//! CRI: requests become questions to pods, images and the network; what they know becomes answers.

mod container_view;
mod containers;
mod deadline;
mod events;
mod image_view;
mod images;
mod info;
mod metrics;
mod observe;
mod parts;
mod pod_cidr;
mod pod_view;
mod pods;
mod runtime;
mod stats;
mod stats_view;
mod status;
mod streaming;

pub(crate) use deadline::DeadlineLayer;
pub(crate) use observe::ObserveLayer;

use std::sync::Arc;
use std::time::Duration;

use hartpod_proto::ContainerId;
use hartpod_proto::cri::v1::image_service_server::ImageServiceServer;
use hartpod_proto::cri::v1::runtime_service_server::RuntimeServiceServer;
use tonic::Status;

use crate::agent_client::AgentError;
use crate::guest::LogError;
use crate::node::Node;
use crate::registry::LookupError;
use crate::status_code::status;

pub(crate) use pod_cidr::PodCidrError;

/// Bytes of one request; the same as the kubelet's own limit (pkg/kubelet/cri/remote: maxMsgSize).
const MAX_REQUEST: usize = 16 << 20;

/// Both services of CRI.
#[derive(Debug, Clone)]
pub(crate) struct Server {
    node: Arc<Node>,
    streaming: Arc<hartpod_streaming::Server>,
    /// Held while an image is removed.
    removals: Arc<tokio::sync::Mutex<()>>,
}

/// A name is held by another pod.
#[derive(Debug, thiserror::Error)]
#[error("sandbox name {name} is taken by sandbox {holder}")]
pub(crate) struct NameTaken {
    name: String,
    holder: String,
}

/// A log was not reopened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReopenError {
    #[error("container {id} is not running")]
    NotRunning { id: ContainerId },
    /// The agent says what it tried and with which container.
    #[error(transparent)]
    Agent(AgentError),
    #[error("log of a container in a guest")]
    Log(#[source] LogError),
}

impl Server {
    pub(crate) fn new(node: Arc<Node>, streaming: Arc<hartpod_streaming::Server>) -> Self {
        Self { node, streaming, removals: Arc::default() }
    }

    pub(crate) fn runtime_service(&self) -> RuntimeServiceServer<Self> {
        RuntimeServiceServer::new(self.clone()).max_decoding_message_size(MAX_REQUEST)
    }

    pub(crate) fn image_service(&self) -> ImageServiceServer<Self> {
        ImageServiceServer::new(self.clone()).max_decoding_message_size(MAX_REQUEST)
    }
}

/// Seconds as CRI counts them; negative ones mean none.
fn seconds(count: i64) -> Duration {
    Duration::from_secs(u64::try_from(count).unwrap_or(0))
}

fn not_there(what: &'static str, id: &str) -> Status {
    status(&LookupError::NotFound { what, id: id.to_owned() })
}

/// The answer to a call that this version does not have.
fn not_built(rpc: &str) -> Status {
    Status::unimplemented(format!("{rpc} is not built yet in hartpod {}", env!("CARGO_PKG_VERSION")))
}
