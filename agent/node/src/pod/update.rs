//! UpdateContainerResources, in the pod's owning task. Setting limits can take long: it is done elsewhere, one update of a container after another.

use std::collections::VecDeque;
use std::sync::Arc;

use hartpod_container::cgroup::{Leaf, LimitError, Limits, OomScore, Update, UpdateError};
use hartpod_proto::ContainerId;
use hartpod_proto::cri::v1 as cri;
use hartpod_proto::pod::v1 as agent;
use rustix::process::Pid;
use tokio::task::JoinError;

use super::command::{Done, Reply};
use super::entry::Entry;
use super::recording::{Answer, Deferred};
use super::task::PodTask;
use super::{PodInfo, RunningAgent, SandboxState};
use crate::agent_client::AgentError;
use crate::container::ContainerState;
use crate::guest::{self, NoRoom};
use crate::node::Node;
use crate::spec::{ResourceChange, SpecError, resource_change};

/// Updates of one container that wait for their turn.
const WAITING_MAX: usize = 16;

/// A container's limits were not changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpdateContainerError {
    #[error("container {id} is {}: its resources cannot be changed", state.name())]
    NotAlive { id: ContainerId, state: ContainerState },
    #[error("{WAITING_MAX} updates of container {id} wait already")]
    TooMany { id: ContainerId },
    #[error("update container {id}: its pod is {}", state.adjective())]
    PodNotReady { id: ContainerId, state: SandboxState },
    #[error(transparent)]
    Spec(#[from] SpecError),
    #[error("update container {id}")]
    NoRoom { id: ContainerId, source: NoRoom },
    #[error("update container {id}")]
    Limit { id: ContainerId, source: LimitError },
    #[error("update container {id}")]
    Leaf { id: ContainerId, source: UpdateError },
    /// The agent says what it tried and with which container.
    #[error(transparent)]
    Agent(AgentError),
    #[error("container {id}: work of the daemon broke off")]
    BrokenOff { id: ContainerId, source: JoinError },
}

/// One request.
#[derive(Debug)]
struct Asked {
    resources: cri::LinuxContainerResources,
    reply: Reply<(), UpdateContainerError>,
}

/// Updates of one container: at most one at a time is under way.
#[derive(Debug, Default)]
pub(super) struct Updates {
    running: Option<Reply<(), UpdateContainerError>>,
    waiting: VecDeque<Asked>,
}

impl PodTask {
    pub(super) fn on_update_container(
        &mut self,
        id: &ContainerId,
        resources: cri::LinuxContainerResources,
        reply: Reply<(), UpdateContainerError>,
    ) {
        // Removed meanwhile: the reply that is dropped says so.
        let Some(entry) = self.containers.get_mut(id) else { return };
        if entry.updates.waiting.len() >= WAITING_MAX {
            let error = UpdateContainerError::TooMany { id: id.clone() };
            return drop(reply.send(Err(Arc::new(error))));
        }
        entry.updates.waiting.push_back(Asked { resources, reply });
        self.next_update(id);
    }

    /// Begins the next update, if none is under way.
    fn next_update(&mut self, id: &ContainerId) {
        while let Some(entry) = self.containers.get_mut(id).filter(|entry| entry.updates.running.is_none()) {
            let Some(Asked { resources, reply }) = entry.updates.waiting.pop_front() else { return };
            match self.begin_update(id, &resources) {
                Ok(()) => {
                    if let Some(entry) = self.containers.get_mut(id) {
                        entry.updates.running = Some(reply);
                    }
                }
                Err(error) => drop(reply.send(Err(Arc::new(error)))),
            }
        }
    }

    fn begin_update(
        &self,
        id: &ContainerId,
        asked: &cri::LinuxContainerResources,
    ) -> Result<(), UpdateContainerError> {
        let Some(entry) = self.containers.get(id) else { return Ok(()) };
        match entry.state {
            ContainerState::Created | ContainerState::Starting | ContainerState::Running => {}
            state @ (ContainerState::Creating | ContainerState::Exited | ContainerState::Removing) => {
                return Err(UpdateContainerError::NotAlive { id: id.clone(), state });
            }
        }
        let settings =
            if self.info.is_guest() { &self.node.guest_spec_settings } else { &self.node.spec_settings };
        let mut warnings = Vec::new();
        let change = resource_change(&entry.resources(), asked, settings, &mut warnings)?;
        for warning in warnings {
            self.node.warn_once(&self.info.id, &warning);
        }
        self.check_room(id, asked)?;
        let work = match (self.info.is_guest(), &self.agent) {
            (false, _) => Work::OnHost { leaf: entry.leaf.clone(), init: Pid::from_raw(entry.pid) },
            (true, Some(agent)) if self.state == SandboxState::Ready => {
                Work::InGuest { agent: Box::new(agent.clone()), score: self.score_with(id, &change) }
            }
            (true, _) => return Err(UpdateContainerError::PodNotReady { id: id.clone(), state: self.state }),
        };
        let (node, info, id) = (self.node.clone(), self.info.clone(), id.clone());
        self.start(async move {
            let updated = work.run(&node, &info, &id, &change).await;
            Done::Update(id, updated.map(|()| Box::new(change.merged)))
        });
        Ok(())
    }

    /// A guest has no more memory than it booted with.
    fn check_room(
        &self,
        id: &ContainerId,
        asked: &cri::LinuxContainerResources,
    ) -> Result<(), UpdateContainerError> {
        let ceiling = self.info.guest.as_ref().and_then(|guest| guest.ceiling);
        let limit = u64::try_from(asked.memory_limit_in_bytes).unwrap_or(0);
        match (self.node.backends.guests(&self.info.handler), ceiling) {
            (Some(backend), Some(ceiling)) if limit > 0 => guest::room_for(backend.config(), ceiling, limit)
                .map(drop)
                .map_err(|source| UpdateContainerError::NoRoom { id: id.clone(), source }),
            _ => Ok(()),
        }
    }

    /// What the guest is judged by when the container has its new score.
    fn score_with(&self, id: &ContainerId, change: &ResourceChange) -> i64 {
        let others = self.containers.iter().filter(|(other, entry)| *other != id && entry.counts());
        others.map(|(_, entry)| entry.oom_score()).fold(change.merged.oom_score_adj, i64::max)
    }

    pub(super) fn on_updated(
        &mut self,
        id: &ContainerId,
        outcome: Result<Box<cri::LinuxContainerResources>, UpdateContainerError>,
    ) {
        let Some(entry) = self.containers.get_mut(id) else { return };
        let reply = entry.updates.running.take();
        match outcome {
            Ok(resources) => {
                entry.resources = Some(resources.into());
                entry.dirty = true;
                tracing::info!(container = %id, "resources changed");
                self.publish();
                match reply {
                    Some(reply) => self.when_recorded(Deferred::Answer(Answer::new(reply, Ok(())))),
                    None => self.record(),
                }
            }
            Err(error) => {
                if let Some(reply) = reply {
                    let _ = reply.send(Err(Arc::new(error)));
                }
            }
        }
        self.next_update(id);
    }
}

/// Where the limits are set.
enum Work {
    OnHost { leaf: Leaf, init: Option<Pid> },
    InGuest { agent: Box<RunningAgent>, score: i64 },
}

impl Work {
    async fn run(
        self,
        node: &Arc<Node>,
        pod: &PodInfo,
        id: &ContainerId,
        change: &ResourceChange,
    ) -> Result<(), UpdateContainerError> {
        let broken = |source| UpdateContainerError::BrokenOff { id: id.clone(), source };
        match self {
            Self::OnHost { leaf, init } => {
                let limits = Limits::from_oci(&change.limits);
                let limits =
                    limits.map_err(|source| UpdateContainerError::Limit { id: id.clone(), source })?;
                let oom_score = change.oom_score_adj.zip(init).map(|(score, init)| OomScore { init, score });
                let update = Update { limits, oom_score };
                let updated = {
                    let node = node.clone();
                    tokio::task::spawn_blocking(move || node.update_blocking(&leaf, &update)).await
                };
                let warnings = updated
                    .map_err(broken)?
                    .map_err(|source| UpdateContainerError::Leaf { id: id.clone(), source })?;
                for warning in warnings {
                    node.warn_once(&pod.id, &warning.to_string());
                }
            }
            Self::InGuest { agent, score } => {
                let request = agent::UpdateContainerRequest {
                    container_id: id.to_string(),
                    resources_json: serde_json::to_vec(&change.limits).unwrap_or_default(),
                    oom_score_adj: change.oom_score_adj,
                };
                let answer = agent.client.update(request).await.map_err(UpdateContainerError::Agent)?;
                node.warn_of(pod, answer.warnings);
                let process = &agent.process;
                if let Err(error) = guest::set_score(process.record.pid, process.pidfd(), score) {
                    node.warn_once(&pod.id, &format!("oom_score_adj of the VMM is not {score}: {error}"));
                }
            }
        }
        Ok(())
    }
}

impl Entry {
    /// What is in force.
    pub(super) fn resources(&self) -> cri::LinuxContainerResources {
        self.resources.as_deref().or_else(|| self.info.resources()).cloned().unwrap_or_default()
    }

    pub(super) fn oom_score(&self) -> i64 {
        self.resources.as_deref().or_else(|| self.info.resources()).map_or(0, |r| r.oom_score_adj)
    }

    /// Something of it may run.
    pub(super) fn counts(&self) -> bool {
        self.state != ContainerState::Exited
    }
}
