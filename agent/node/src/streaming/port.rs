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
