//! Calls for sessions: attach, terminals, forwarded ports.

use std::time::Duration;

use hartpod_proto::ContainerId;
use hartpod_proto::pod::v1 as pod;

use super::{AgentClient, AgentError, SHORT, Token, bounded, in_turn};

/// For Connect: the agent tries two addresses, five seconds each.
const CONNECT: Duration = Duration::from_secs(15);

impl AgentClient {
    /// Attaches the streams that will open with the request's tokens.
    pub(crate) async fn attach(&self, request: pod::AttachRequest) -> Result<(), AgentError> {
        let mut calls = self.calls.clone();
        bounded("Attach", SHORT, in_turn(&self.starts, calls.attach(request))).await.map(drop)
    }

    /// Tells the terminal of an exec, or of the container itself, its size in characters.
    pub(crate) async fn resize_terminal(
        &self,
        container: &ContainerId,
        exec: Option<&str>,
        (columns, rows): (u16, u16),
    ) -> Result<(), AgentError> {
        let mut calls = self.calls.clone();
        let request = pod::ResizeTerminalRequest {
            container_id: container.to_string(),
            exec_id: exec.unwrap_or_default().to_owned(),
            columns: columns.into(),
            rows: rows.into(),
        };
        bounded("ResizeTerminal", SHORT, calls.resize_terminal(request)).await.map(drop)
    }

    /// Connects to a port of the pod; the stream opens with `token`.
    pub(crate) async fn connect_port(&self, port: u16, token: &Token) -> Result<(), AgentError> {
        let mut calls = self.calls.clone();
        let request = pod::ConnectRequest { port: port.into(), token: token.as_str().to_owned() };
        bounded("Connect", CONNECT, in_turn(&self.connects, calls.connect(request))).await.map(drop)
    }
}
