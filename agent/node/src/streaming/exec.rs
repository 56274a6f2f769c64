//! One more process in a running container, for a client that talks to it.

use std::sync::Arc;

use hartpod_proto::pod::v1 as pod;
use hartpod_streaming::{BoxError, ExecRequest, Session, TerminalSize};

use super::streams::{Opened, Tokens, follow_sizes};
use crate::container::{BegunExec, ExecError, ExecTarget};
use crate::node::Node;
use crate::random;

pub(super) async fn open(
    node: &Arc<Node>,
    request: ExecRequest,
    size: Option<TerminalSize>,
) -> Result<Session, BoxError> {
    let ExecRequest { container_id, cmd, streams } = request;
    let target = ExecTarget::running(node, &container_id)?;
    if cmd.is_empty() {
        return Err(ExecError::NoCommand { container: target.container }.into());
    }
    let exec_id = random::hex::<16>()?;
    let tokens = Tokens::new(streams)?;
    let [stdin_token, stdout_token, stderr_token] = tokens.texts();
    let start = pod::StartExecRequest {
        container_id: target.container.to_string(),
        exec_id: exec_id.clone(),
        args: cmd,
        tty: streams.tty,
        columns: size.map_or(0, |size| size.width.into()),
        rows: size.map_or(0, |size| size.height.into()),
        stdin_token,
        stdout_token,
        stderr_token,
        ..Default::default()
    };
    // From here on there may be something to kill: the client may go while the agent is asked.
    let exec = BegunExec::new(target.clone(), exec_id.clone());
    target.agent.start_exec(start).await?;
    let Opened { stdin, stdout, stderr } = tokens.open(&target.agent).await?;
    let size = streams.tty.then(|| follow_sizes(target, Some(exec_id)));
    let exit = Box::pin(async move { Ok(exec.ended().await?) });
    Ok(Session { stdin, stdout, stderr, size, exit })
}
