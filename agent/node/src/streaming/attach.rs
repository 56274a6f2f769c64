//! A container's own streams, while it runs or waits for its start.

use std::sync::Arc;

use hartpod_proto::pod::v1 as pod;
use hartpod_streaming::{AttachRequest, BoxError, Session, Streams};

use super::streams::{Opened, Tokens, follow_sizes};
use crate::container::ExecTarget;
use crate::node::Node;

pub(super) async fn open(node: &Arc<Node>, request: AttachRequest) -> Result<Session, BoxError> {
    let AttachRequest { container_id, streams } = request;
    let target = ExecTarget::attachable(node, &container_id)?;
    // Whether there is a terminal is the container's word: its errors come with its output then.
    let snapshot = target.pod.snapshot();
    let tty = snapshot.container(&target.container).is_some_and(|c| c.info.config.tty);
    let tokens = Tokens::new(Streams { tty, ..streams })?;
    let [stdin_token, stdout_token, stderr_token] = tokens.texts();
    let attach = pod::AttachRequest {
        container_id: target.container.to_string(),
        stdin_token,
        stdout_token,
        stderr_token,
    };
    target.agent.attach(attach).await?;
    let Opened { stdin, stdout, stderr } = tokens.open(&target.agent).await?;
    let size = streams.tty.then(|| follow_sizes(target.clone(), None));
    let mut pod = target.pod.snapshot.clone();
    let exit = Box::pin(async move {
        // An error is the end of the pod.
        let _ = pod
            .wait_for(|pod| !pod.container(&target.container).is_some_and(|c| c.state.has_streams()))
            .await;
        Ok(0)
    });
    Ok(Session { stdin, stdout, stderr, size, exit })
}
