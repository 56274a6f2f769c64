//! The end of a pod whose agent is gone: nobody holds its containers' logs or reaps them.

use std::time::Duration;

use hartpod_container::cgroup::Leaf;
use tokio::time::Instant;

use super::command::Done;
use super::task::PodTask;
use super::{SandboxEvent, SandboxState};
use crate::container::Exit;
use crate::names::Progress;

/// For the processes of a pod whose agent is gone to be dead after they were killed.
const KILL_LIMIT: Duration = Duration::from_secs(5);
/// Between looks at a leaf that was killed.
const KILL_POLL: Duration = Duration::from_millis(20);

impl PodTask {
    pub(super) fn on_agent_lost(&mut self, how: &str) {
        self.move_on(SandboxEvent::AgentLost);
        if self.state != SandboxState::NotReady {
            // Its end was wanted.
            return;
        }
        self.reason = format!("the pod's {} is gone: {how}", self.info.heart());
        tracing::error!(sandbox = %self.info.id, reason = self.reason, "sandbox not ready");
        self.agent = None;
        self.node.registry.advance(&self.info, Progress::Settled);
        self.publish();
        let leaves: Vec<_> = self.containers.values().map(|c| c.leaf.clone()).collect();
        self.start(async move {
            kill_leaves(leaves).await;
            Done::LeavesKilled
        });
    }

    pub(super) fn on_leaves_killed(&mut self) {
        self.end_containers(&Exit::killed(&format!(
            "killed because the pod's {} was gone",
            self.info.heart()
        )));
        self.publish();
    }
}

/// Kills and waits until nothing runs in any of them, or the kernel holds it.
pub(crate) async fn kill_leaves(leaves: Vec<Leaf>) {
    let killed = tokio::task::spawn_blocking(move || {
        for leaf in &leaves {
            if let Err(error) = leaf.kill() {
                tracing::warn!(cgroup = leaf.cgroup_path(), error = %crate::chain(&error), "cgroup not killed");
            }
        }
        leaves
    });
    let Ok(leaves) = killed.await else { return };
    let deadline = Instant::now() + KILL_LIMIT;
    while leaves.iter().any(|l| l.populated().unwrap_or(false)) && Instant::now() < deadline {
        tokio::time::sleep(KILL_POLL).await;
    }
}
