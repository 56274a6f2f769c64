//! A TCP port in the network of a pod.

use std::sync::Arc;

use hartpod_streaming::{BoxError, Connection};

use crate::agent_client::Token;
use crate::node::Node;

/// A pod whose agent cannot be asked.
#[derive(Debug, thiserror::Error)]
#[error("pod sandbox {0} is not ready")]
struct NotReady(String);

pub(super) async fn open(node: &Arc<Node>, sandbox: String, port: u16) -> Result<Connection, BoxError> {
    let pod = node.registry.pod(&sandbox)?.snapshot();
    let agent = pod.agent.as_ref().ok_or(NotReady(sandbox))?.client.clone();
    let token = Token::new()?;
    agent.connect_port(port, &token).await?;
    Ok(agent.open_stream(&token).await?.into())
}

/// Waits until a pod has no agent: one that is gone is not followed by another.
pub(super) async fn gone(node: &Arc<Node>, sandbox: String) {
    // A pod that is not known is gone.
    let Ok(pod) = node.registry.pod(&sandbox) else { return };
    let mut snapshot = pod.snapshot;
    // An error is the end of the pod, too.
    let _ = snapshot.wait_for(|pod| pod.agent.is_none()).await;
}
