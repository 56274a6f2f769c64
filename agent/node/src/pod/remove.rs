//! Deleting what is left of a container, and of a pod that is stopped.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hartpod_container::cgroup::{DestroyError, Leaf};
use hartpod_container::hooks::Budget;
use hartpod_proto::ContainerId;
use tokio::task::JoinError;

use super::command::{Done, Reply};
use super::entry::Entry;
use super::guest_kill::kill_in_guest;
use super::heartbeat;
use super::recording::Deferred;
use super::state as pod_state;
use super::stopping::StopContainerError;
use super::task::{Next, PodTask};
use super::{PodInfo, RunningAgent, SandboxEvent, SandboxState, StopError};
use crate::agent_client::AgentError;
use crate::container::{self, ContainerEvent, ContainerState, Exit};
use crate::guest::{self, ControlError};
use crate::names::Progress;
use crate::node::Node;
use crate::poststop::poststop_blocking;
use crate::records::RecordError;
use crate::scratch::ScratchError;
use crate::systemd::destroy_leaf_blocking;

/// For the processes of a leaf to be gone after they were killed.
const LEAF_END: Duration = Duration::from_secs(10);

/// For a guest to echo before it counts as one that does not answer.
const SILENCE: Duration = Duration::from_secs(4);

/// Something is left of a container.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RemoveContainerError {
    #[error("container {id}")]
    Refused { id: ContainerId, source: container::Refused },
    #[error("remove container {id} from its guest")]
    Agent { id: ContainerId, source: AgentError },
    #[error("take the disk of container {id} out of its guest")]
    Disk { id: ContainerId, source: ControlError },
    #[error("take down the cgroup of container {id}")]
    Leaf { id: ContainerId, source: DestroyError },
    #[error("writable layer of container {id}")]
    Scratch { id: ContainerId, source: ScratchError },
    #[error("record of container {id}")]
    Record { id: ContainerId, source: RecordError },
    #[error("container {id}: work of the daemon broke off")]
    BrokenOff { id: ContainerId, source: JoinError },
}

/// Something is left of a pod.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RemovePodError {
    #[error("pod sandbox {id}")]
    Refused { id: String, source: pod_state::Refused },
    #[error("stop before the removal")]
    Stop(#[source] Arc<StopError>),
    #[error(transparent)]
    Container(#[from] RemoveContainerError),
    #[error("record of pod {id}")]
    Record { id: String, source: RecordError },
    #[error("pod {id}: work of the daemon broke off")]
    BrokenOff { id: String, source: JoinError },
}

/// What there is of a container besides its files.
#[derive(Debug)]
struct Held {
    leaf: Leaf,
    /// In a guest.
    slot: Option<u32>,
    runs: Runs,
}

/// Whether processes of a container may be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Runs {
    Yes,
    No,
}

/// Deletes a container: its processes, its cgroup, its files.
async fn remove_container(
    node: Arc<Node>,
    pod: Arc<PodInfo>,
    id: ContainerId,
    Held { leaf, slot, runs }: Held,
    agent: Option<RunningAgent>,
) -> Result<(), RemoveContainerError> {
    if let Some(agent) = agent.filter(|a| a.process.is_alive()) {
        let removed = match slot {
            Some(slot) => remove_from_guest(&agent, &id, slot, runs).await,
            None => {
                let removed = agent.client.remove(&id).await;
                removed.map_err(|source| RemoveContainerError::Agent { id: id.clone(), source })
            }
        };
        match removed {
            Ok(()) => {}
            // In a guest that runs there is no other way to it.
            Err(error) if slot.is_some() && agent.process.is_alive() => return Err(error),
            // The steps below do not depend on it.
            Err(error) => {
                tracing::warn!(container = %id, error = %crate::chain(&error), "the agent did not remove a container");
            }
        }
    }
    let removed = {
        let id = id.clone();
        tokio::task::spawn_blocking(move || {
            remove_container_blocking(&node, &pod, &id, &leaf, Budget::of_call())
        })
        .await
    };
    removed.map_err(|source| RemoveContainerError::BrokenOff { id, source })?
}

/// What runs is killed first, and is dead then, or the guest is. What has ended may stay for another try: a guest that hangs is not ended for it.
async fn remove_from_guest(
    agent: &RunningAgent,
    id: &ContainerId,
    slot: u32,
    runs: Runs,
) -> Result<(), RemoveContainerError> {
    if runs == Runs::Yes {
        kill_in_guest(agent, id).await;
    }
    let removed = tokio::select! {
        removed = agent.client.remove(id) => removed,
        () = heartbeat::until_silent(&agent.client, SILENCE) => Err(AgentError::Silent { call: "RemoveContainer" }),
        _ = agent.process.ended() => return Ok(()),
    };
    removed.map_err(|source| RemoveContainerError::Agent { id: id.clone(), source })?;
    give_back(agent, id, slot).await
}

/// Takes the disk of a container out of its guest, so that another can have its place.
async fn give_back(agent: &RunningAgent, id: &ContainerId, slot: u32) -> Result<(), RemoveContainerError> {
    let taken = guest::take_back(&agent.vmm, id.clone(), slot).await;
    taken.map_err(|source| RemoveContainerError::Disk { id: id.clone(), source })
}

fn remove_container_blocking(
    node: &Node,
    pod: &PodInfo,
    id: &ContainerId,
    leaf: &Leaf,
    hooks: Budget,
) -> Result<(), RemoveContainerError> {
    destroy_leaf_blocking(node.systemd.as_ref(), leaf, Instant::now() + LEAF_END)
        .map_err(|source| RemoveContainerError::Leaf { id: id.clone(), source })?;
    node.trash
        .throw_blocking(&node.layout.scratch(id))
        .map_err(|source| RemoveContainerError::Scratch { id: id.clone(), source })?;
    poststop_blocking(&node.records, &pod.id, id, hooks);
    node.records
        .remove_container_blocking(&pod.id, id)
        .map_err(|source| RemoveContainerError::Record { id: id.clone(), source })
}

/// Deletes a stopped pod with all its containers.
async fn remove_pod(
    node: Arc<Node>,
    pod: Arc<PodInfo>,
    containers: Vec<(ContainerId, Leaf)>,
) -> Result<(), RemovePodError> {
    let id = pod.id.to_string();
    let removed = tokio::task::spawn_blocking(move || {
        let hooks = Budget::of_call();
        for (id, leaf) in &containers {
            remove_container_blocking(&node, &pod, id, leaf, hooks)?;
        }
        node.records
            .remove_pod_blocking(&pod.id)
            .map_err(|source| RemovePodError::Record { id: pod.id.to_string(), source })
    });
    removed.await.map_err(|source| RemovePodError::BrokenOff { id, source })?
}

impl PodTask {
    pub(super) fn on_remove_container(&mut self, id: &ContainerId, reply: Reply<(), RemoveContainerError>) {
        if !self.containers.contains_key(id) {
            return drop(reply.send(Ok(())));
        }
        match self.begin_removal(id) {
            Ok(()) => {
                if let Some(entry) = self.containers.get_mut(id) {
                    entry.remove_waiters.push(reply);
                }
            }
            Err(source) => {
                let error = RemoveContainerError::Refused { id: id.clone(), source };
                let _ = reply.send(Err(Arc::new(error)));
            }
        }
    }

    /// Has a container removed; one that is being removed, or is not there, is success.
    pub(super) fn begin_removal(&mut self, id: &ContainerId) -> Result<(), container::Refused> {
        let Some(entry) = self.containers.get_mut(id) else { return Ok(()) };
        if entry.state == ContainerState::Removing {
            return Ok(());
        }
        entry.state = entry.state.on(ContainerEvent::RemoveAsked)?;
        self.names.advance(&entry.info.name, id, Progress::Settled);
        self.publish();
        self.when_recorded(Deferred::RemoveContainer(id.clone()));
        Ok(())
    }

    pub(super) fn remove_container_now(&mut self, id: &ContainerId) {
        let Some(entry) = self.containers.get(id) else { return };
        let (node, pod, agent) = (self.node.clone(), self.info.clone(), self.agent.clone());
        let runs = if entry.exit.is_none() { Runs::Yes } else { Runs::No };
        let held = Held { leaf: entry.leaf.clone(), slot: entry.info.slot, runs };
        let id = id.clone();
        self.start(async move {
            let removed = remove_container(node, pod, id.clone(), held, agent).await;
            Done::Remove(id, removed)
        });
    }

    pub(super) fn on_container_removed(
        &mut self,
        id: &ContainerId,
        outcome: Result<(), RemoveContainerError>,
    ) {
        let Some(mut entry) = self.containers.remove(id) else { return };
        let outcome = outcome.map_err(Arc::new);
        if let Some(stopping) = entry.stopping.take() {
            stopping.finish(
                outcome.clone().map_err(|error| StopContainerError::Removal {
                    id: id.clone(),
                    why: crate::chain(&*error),
                }),
            );
        }
        let waiters = std::mem::take(&mut entry.remove_waiters);
        match &outcome {
            Ok(()) => {
                self.names.release(&entry.info.name, id);
                self.node.registry.forget_container(id);
                tracing::info!(container = %id, "container removed");
            }
            Err(error) => {
                // What is in a guest that runs is what the guest says.
                if let (RemoveContainerError::Agent { .. }, None) = (&**error, &entry.exit) {
                    let waits = entry.started_at == 0;
                    entry.move_on(if waits { ContainerEvent::StillWaits } else { ContainerEvent::StillRuns });
                } else {
                    entry.move_on(ContainerEvent::RemoveFailed);
                    entry.end_as_told(&Exit::killed("killed to be removed"));
                }
                self.containers.insert(id.clone(), entry);
            }
        }
        self.publish();
        for waiter in waiters {
            let _ = waiter.send(outcome.clone());
        }
        self.remove_if_wanted();
    }

    pub(super) fn on_remove(&mut self, reply: Reply<(), RemovePodError>) {
        if self.state == SandboxState::Starting {
            let source = pod_state::Refused { state: self.state, event: SandboxEvent::RemoveAsked };
            let id = self.info.id.to_string();
            let _ = reply.send(Err(Arc::new(RemovePodError::Refused { id, source })));
            return;
        }
        self.remove_waiters.push(reply);
        match self.state {
            SandboxState::Ready | SandboxState::Silent | SandboxState::NotReady => self.begin_stop(),
            SandboxState::Stopped => self.remove_if_wanted(),
            SandboxState::Starting | SandboxState::Stopping | SandboxState::Removing => {}
        }
    }

    /// Also called when a container is done with: the pod's removal waits for work on its containers.
    pub(super) fn remove_if_wanted(&mut self) {
        let wanted = self.state == SandboxState::Stopped && !self.remove_waiters.is_empty();
        let busy = self.containers.values().any(Entry::is_being_worked_on);
        if wanted && !busy {
            self.move_on(SandboxEvent::RemoveAsked);
            self.when_recorded(Deferred::RemovePod);
        }
    }

    pub(super) fn remove_now(&mut self) {
        let containers = self.containers.iter().map(|(id, c)| (id.clone(), c.leaf.clone())).collect();
        let (node, info) = (self.node.clone(), self.info.clone());
        self.start(async move { Done::RemovePod(remove_pod(node, info, containers).await) });
    }

    pub(super) fn on_pod_removed(&mut self, outcome: Result<(), RemovePodError>) -> Next {
        match outcome {
            Ok(()) => {
                self.node.registry.forget(&self.info);
                for waiter in std::mem::take(&mut self.remove_waiters) {
                    let _ = waiter.send(Ok(()));
                }
                tracing::info!(sandbox = %self.info.id, "sandbox removed");
                Next::End
            }
            Err(error) => {
                self.move_on(SandboxEvent::RemoveFailed);
                self.fail_removal(error);
                Next::Continue
            }
        }
    }

    pub(super) fn fail_removal(&mut self, error: RemovePodError) {
        let error = Arc::new(error);
        for waiter in std::mem::take(&mut self.remove_waiters) {
            let _ = waiter.send(Err(error.clone()));
        }
    }
}
