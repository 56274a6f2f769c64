//! Deleting what is left of a container, and of a pod that is stopped.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hartpod_container::cgroup::{DestroyError, Leaf};
use hartpod_proto::ContainerId;
use tokio::task::JoinError;

use super::state as pod_state;
use super::{PodInfo, RunningAgent, StopError};
use crate::container;
use crate::node::Node;
use crate::records::RecordError;
use crate::scratch::ScratchError;

/// For the processes of a leaf to be gone after they were killed.
const LEAF_END: Duration = Duration::from_secs(10);

/// Something is left of a container.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RemoveContainerError {
    #[error("container {id}")]
    Refused { id: ContainerId, source: container::Refused },
    #[error("take down the cgroup of container {id}")]
    Leaf { id: ContainerId, source: DestroyError },
    #[error("writable layer of container {id}")]
    Scratch { id: ContainerId, source: ScratchError },
    #[error("record of container {id}")]
    Record { id: ContainerId, source: RecordError },
    #[error("container {id}: work of the daemon broke off")]
    BrokenOff { id: ContainerId, source: JoinError },
}

/// Something is left of a pod.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RemovePodError {
    #[error("pod sandbox {id}")]
    Refused { id: String, source: pod_state::Refused },
    #[error("stop before the removal")]
    Stop(#[source] Arc<StopError>),
    #[error(transparent)]
    Container(#[from] RemoveContainerError),
    #[error("record of pod {id}")]
    Record { id: String, source: RecordError },
    #[error("pod {id}: work of the daemon broke off")]
    BrokenOff { id: String, source: JoinError },
}

/// Deletes a container: its processes, its cgroup, its files.
pub(super) async fn remove_container(
    node: Arc<Node>,
    pod: Arc<PodInfo>,
    id: ContainerId,
    leaf: Leaf,
    agent: Option<RunningAgent>,
) -> Result<(), RemoveContainerError> {
    if let Some(agent) = agent.filter(|a| a.process.is_alive()) {
        // The steps below do not depend on it.
        if let Err(error) = agent.client.remove(&id).await {
            tracing::warn!(container = %id, %error, "the agent did not remove a container");
        }
    }
    let removed = {
        let id = id.clone();
        tokio::task::spawn_blocking(move || remove_container_blocking(&node, &pod, &id, &leaf)).await
    };
    removed.map_err(|source| RemoveContainerError::BrokenOff { id, source })?
}

fn remove_container_blocking(
    node: &Node,
    pod: &PodInfo,
    id: &ContainerId,
    leaf: &Leaf,
) -> Result<(), RemoveContainerError> {
    leaf.destroy_blocking(Instant::now() + LEAF_END)
        .map_err(|source| RemoveContainerError::Leaf { id: id.clone(), source })?;
    node.trash
        .throw_blocking(&node.layout.scratch(id))
        .map_err(|source| RemoveContainerError::Scratch { id: id.clone(), source })?;
    node.records
        .remove_container_blocking(&pod.id, id)
        .map_err(|source| RemoveContainerError::Record { id: id.clone(), source })
}

/// Deletes a stopped pod with all its containers.
pub(super) async fn remove_pod(
    node: Arc<Node>,
    pod: Arc<PodInfo>,
    containers: Vec<(ContainerId, Leaf)>,
) -> Result<(), RemovePodError> {
    let id = pod.id.to_string();
    let removed = tokio::task::spawn_blocking(move || {
        for (id, leaf) in &containers {
            remove_container_blocking(&node, &pod, id, leaf)?;
        }
        node.records
            .remove_pod_blocking(&pod.id)
            .map_err(|source| RemovePodError::Record { id: pod.id.to_string(), source })
    });
    removed.await.map_err(|source| RemovePodError::BrokenOff { id, source })?
}
