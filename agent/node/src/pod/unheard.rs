//! The first word of an agent that an earlier daemon started.
//!
//! A daemon that starts does not wait long for the agents of its pods: one that is stopped, or starved of CPU, would keep it from
//! answering for every other pod. Until its agent speaks, a pod is what its records say. When that takes too long the pod is
//! not ready, with the reason; at the agent's first word, however late, it is ready again and its containers are what the agent
//! says.

use std::collections::BTreeSet;
use std::time::Duration;

use hartpod_proto::ContainerId;
use tokio::time::Instant;

use super::task::PodTask;
use super::{SandboxEvent, SandboxState};
use crate::container::{ContainerState, Exit};

/// For an agent to say its first word before its pod counts as not ready: on a node that is busy starting everything else, an
/// agent that is well may take seconds, and the kubelet replaces a pod that is not ready.
const PATIENCE: Duration = Duration::from_secs(10);

/// Whether a pod's agent has spoken to this daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Word {
    /// It has, or there is none to speak.
    Heard,
    Awaited,
}

/// What is held until an agent's first word.
#[derive(Debug)]
pub(super) struct Unheard {
    /// When the pod counts as not ready; none once it does.
    pub(super) until: Option<Instant>,
    /// Containers that are known from their records alone.
    recorded: BTreeSet<ContainerId>,
}

impl Unheard {
    pub(super) fn new(now: Instant, recorded: impl Iterator<Item = ContainerId>) -> Self {
        Self { until: Some(now + PATIENCE), recorded: recorded.collect() }
    }
}

impl PodTask {
    pub(super) fn on_silence(&mut self, now: Instant) {
        let Some(unheard) = self.unheard.as_mut().filter(|u| u.until.is_some_and(|until| until <= now))
        else {
            return;
        };
        unheard.until = None;
        self.move_on(SandboxEvent::AgentSilent);
        if self.state == SandboxState::Silent {
            "the pod's agent does not answer".clone_into(&mut self.reason);
            tracing::warn!(sandbox = %self.info.id, "sandbox not ready: its agent does not answer");
            self.publish();
        }
    }

    /// The agent has told the state of every container that it knows.
    pub(super) fn on_synced(&mut self, known: &BTreeSet<ContainerId>) {
        let Some(unheard) = self.unheard.take() else { return };
        let was_silent = self.state == SandboxState::Silent;
        self.move_on(SandboxEvent::AgentHeard);
        if was_silent && self.state == SandboxState::Ready {
            self.reason.clear();
            tracing::info!(sandbox = %self.info.id, "sandbox ready again: its agent answers");
        }
        for id in unheard.recorded.difference(known) {
            self.on_unknown(id);
        }
        self.publish();
        self.record();
    }

    /// The agent does not know a container that has a record: it was being made or removed when the last daemon ended.
    fn on_unknown(&mut self, id: &ContainerId) {
        let Some(entry) = self.containers.get_mut(id) else { return };
        match entry.state {
            ContainerState::Creating | ContainerState::Exited | ContainerState::Removing => {}
            ContainerState::Created if !entry.delivered => drop(self.begin_removal(id)),
            ContainerState::Created | ContainerState::Starting | ContainerState::Running => {
                entry.end(Exit::unseen("it was being removed when hartpod ended"));
            }
        }
    }
}
