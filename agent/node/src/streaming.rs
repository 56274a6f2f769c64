//! What streaming clients are connected to: commands, containers' own streams, ports of pods. Each byte stream is a connection to the pod's agent.

mod attach;
mod exec;
mod port;
mod settings;
mod streams;

use std::sync::Arc;

use hartpod_streaming::{
    AttachRequest, Connection, Ending, ExecRequest, Opening, Runtime, Session, TerminalSize,
};

pub(crate) use settings::{SettingsError, settings_blocking};

use crate::node::Node;

/// Opens what the streaming server's clients ask for.
#[derive(Debug)]
pub(crate) struct Sessions(Arc<Node>);

impl Sessions {
    pub(crate) fn new(node: Arc<Node>) -> Self {
        Self(node)
    }
}

impl Runtime for Sessions {
    fn exec(&self, request: ExecRequest, size: Option<TerminalSize>) -> Opening<'_, Session> {
        Box::pin(exec::open(&self.0, request, size))
    }

    fn attach(&self, request: AttachRequest) -> Opening<'_, Session> {
        Box::pin(attach::open(&self.0, request))
    }

    fn connect(&self, sandbox_id: String, port: u16) -> Opening<'_, Connection> {
        Box::pin(port::open(&self.0, sandbox_id, port))
    }

    fn gone(&self, sandbox_id: String) -> Ending<'_> {
        Box::pin(port::gone(&self.0, sandbox_id))
    }
}
