//! A running container that gets one more process, and the end of that.

use std::time::Duration;

use hartpod_container::cgroup::Leaf;
use hartpod_proto::ContainerId;
use hartpod_proto::pod::v1 as pod;
use tokio::time::Instant;
use tonic::Code;

use super::{ContainerState, ExecError};
use crate::agent_client::{AgentClient, AgentError, Door};
use crate::node::Node;
use crate::pod::PodHandle;
use crate::registry::LookupError;
use crate::status_code::Coded;

/// For the agent to forget an exec that was killed, whose output others may hold open for 10 s more: one that takes longer is not doing its work.
pub(super) const KILL_MARGIN: Duration = Duration::from_secs(20);

/// For an agent that a connection broke to be reached again.
const REACH_WAIT: Duration = Duration::from_secs(10);
const REACH_PAUSE: Duration = Duration::from_millis(50);

/// Where an exec runs.
#[derive(Debug, Clone)]
pub(crate) struct ExecTarget {
    pub(crate) pod: PodHandle,
    pub(crate) agent: AgentClient,
    leaf: Leaf,
    pub(crate) container: ContainerId,
}

/// There is no such container, or nothing can run in it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NoTarget {
    #[error(transparent)]
    Lookup(#[from] LookupError),
    #[error(transparent)]
    Exec(#[from] ExecError),
}

impl Coded for NoTarget {
    fn code(&self) -> Code {
        match self {
            Self::Lookup(error) => error.code(),
            Self::Exec(error) => error.code(),
        }
    }
}

impl ExecTarget {
    /// The container with this id, which must run.
    pub(crate) fn running(node: &Node, id: &str) -> Result<Self, NoTarget> {
        Self::find(node, id, |state| state == ContainerState::Running)
    }

    /// The container with this id, which must run, or wait for its start: then who attaches misses nothing of what it says.
    pub(crate) fn attachable(node: &Node, id: &str) -> Result<Self, NoTarget> {
        Self::find(node, id, ContainerState::has_streams)
    }

    fn find(node: &Node, id: &str, fits: impl Fn(ContainerState) -> bool) -> Result<Self, NoTarget> {
        let (pod, container) = node.registry.container(id)?;
        let snapshot = pod.snapshot();
        let state = snapshot.container(&container).map(|container| container.state);
        let (true, Some(agent)) = (state.is_some_and(fits), &snapshot.agent) else {
            let state = state.map_or("gone", ContainerState::name);
            return Err(ExecError::NotRunning { container, state }.into());
        };
        let leaf = node
            .leaf(snapshot.info.cgroup_parent(), container.as_str())
            .map_err(|source| ExecError::Cgroup { container: container.clone(), source })?;
        Ok(Self { agent: agent.client.clone(), pod, leaf, container })
    }

    /// Waits for the end of an exec. When the connection to the agent breaks, the agent, if it lives, has the result still.
    pub(super) async fn wait(&self, exec: &str) -> Result<pod::WaitExecResponse, AgentError> {
        let mut give_up = None;
        loop {
            let asked = Instant::now();
            let error = match self.agent.wait_exec(&self.container, exec).await {
                Err(error @ AgentError::Unreachable { .. }) => error,
                answer => return answer,
            };
            if asked.elapsed() > REACH_WAIT {
                give_up = None;
            }
            let now = Instant::now();
            if self.pod.snapshot().agent.is_none() || *give_up.get_or_insert(now + REACH_WAIT) < now {
                return Err(error);
            }
            tracing::debug!(container = %self.container, exec, %error, "asking for the end of an exec again");
            tokio::time::sleep(REACH_PAUSE).await;
        }
    }

    /// Kills the whole process tree of an exec and has the agent forget it.
    pub(super) async fn kill(&self, exec: &str) {
        if let Err(error) = self.agent.kill_exec(&self.container, exec).await {
            tracing::warn!(container = %self.container, exec, %error, "the agent does not kill an abandoned exec");
            self.kill_leaf(exec).await;
        }
        let forgotten = self.agent.wait_exec(&self.container, exec);
        let _ = tokio::time::timeout(KILL_MARGIN, forgotten).await;
    }

    /// Without the agent, where the exec's cgroup is one of this host.
    async fn kill_leaf(&self, exec: &str) {
        // The id is ours, so there is a leaf of that name.
        let (Door::Sockets, Ok(leaf)) = (self.agent.door(), self.leaf.exec_leaf(exec)) else { return };
        if let Ok(Err(error)) = tokio::task::spawn_blocking(move || leaf.kill()).await {
            tracing::warn!(container = %self.container, exec, %error, "abandoned exec not killed");
        }
    }
}

/// An exec that the agent is asked for, or runs. Dropped before its end it is killed, with all that it began.
#[derive(Debug)]
pub(crate) struct BegunExec {
    /// None once there is nothing to kill.
    held: Option<(ExecTarget, String)>,
}

impl BegunExec {
    pub(crate) fn new(target: ExecTarget, id: String) -> Self {
        Self { held: Some((target, id)) }
    }

    /// Waits for its end: exit code, or 128 + signal.
    pub(crate) async fn ended(mut self) -> Result<i32, AgentError> {
        let Some((target, id)) = &self.held else { return Ok(0) };
        let end = target.wait(id).await?;
        self.held = None;
        Ok(end.exit_code)
    }
}

impl Drop for BegunExec {
    fn drop(&mut self) {
        let Some((target, id)) = self.held.take() else { return };
        // Nobody waits for this. When the daemon ends before it is done, the agent kills what it was to kill: everybody has left that.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move { target.kill(&id).await });
        }
    }
}
