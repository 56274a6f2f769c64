//! StartContainer, in the pod's owning task.

use std::sync::Arc;

use hartpod_proto::ContainerId;
use hartpod_proto::pod::v1 as agent;

use super::SandboxState;
use super::command::{Done, Reply};
use super::entry::Entry;
use super::recording::{Answer, Deferred};
use super::task::PodTask;
use crate::agent_client::AgentError;
use crate::clock;
use crate::container::{ContainerEvent, ContainerState, Exit, Refused};
use crate::names::Progress;

/// A container was not started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error("container {id}")]
    Refused { id: ContainerId, source: Refused },
    #[error("start container {id}: its pod is {}{}", state.adjective(), because(reason))]
    PodNotReady { id: ContainerId, state: SandboxState, reason: String },
    /// The agent says what it tried and with which container.
    #[error(transparent)]
    Agent(AgentError),
}

fn because(reason: &str) -> String {
    if reason.is_empty() { String::new() } else { format!(": {reason}") }
}

impl PodTask {
    pub(super) fn on_start(&mut self, id: &ContainerId, reply: Reply<(), StartError>) {
        match self.begin_start(id) {
            Ok(entry) => entry.start_waiter = Some(reply),
            Err(error) => drop(reply.send(Err(Arc::new(error)))),
        }
    }

    fn begin_start(&mut self, id: &ContainerId) -> Result<&mut Entry, StartError> {
        let agent = match (self.state, &self.agent) {
            (SandboxState::Ready, Some(agent)) => agent.client.clone(),
            (state, _) => {
                let reason = self.reason.clone();
                return Err(StartError::PodNotReady { id: id.clone(), state, reason });
            }
        };
        let refused = |source| StartError::Refused { id: id.clone(), source };
        let gone = Refused { state: ContainerState::Removing, event: ContainerEvent::StartAsked };
        let Some(entry) = self.containers.get_mut(id) else { return Err(refused(gone)) };
        entry.state = entry.state.on(ContainerEvent::StartAsked).map_err(refused)?;
        entry.start_asked_at = clock::now();
        self.names.advance(&entry.info.name, id, Progress::Settled);
        let (started, is_guest) = (id.clone(), self.info.is_guest());
        self.start(async move {
            let answer = agent.start(&started).await;
            // Guests have no hooks, and what theirs say is not for the log.
            for warning in answer.iter().flat_map(|answer| &answer.warnings).filter(|_| !is_guest) {
                tracing::warn!(container = %started, warning, "odd but handled");
            }
            let state = answer.map(|answer| answer.state.unwrap_or_default());
            Done::Start(started, state)
        });
        self.containers.get_mut(id).ok_or(refused(gone))
    }

    pub(super) fn on_started(
        &mut self,
        id: &ContainerId,
        outcome: Result<agent::ContainerState, AgentError>,
    ) {
        let Some(entry) = self.containers.get_mut(id) else { return };
        let waiter = entry.start_waiter.take();
        match outcome {
            Ok(state) => {
                entry.learn(state);
                tracing::info!(container = %id, pid = entry.pid, "container started");
                self.publish();
                if let Some(waiter) = waiter {
                    let _ = waiter.send(Ok(()));
                }
                self.record();
            }
            Err(source) => {
                if let AgentError::Answered { message, .. } = &source {
                    // The process never was: that says more than the exit code of what was to become it.
                    if entry.started_at == 0
                        && entry.exit.as_ref().is_some_and(|exit| !exit.is_start_failure())
                    {
                        entry.exit = Some(Exit::start_failed(message.clone()));
                    }
                    entry.move_on(ContainerEvent::StartFailed);
                    entry.end(Exit::start_failed(message.clone()));
                    entry.dirty = true;
                }
                self.publish();
                match waiter {
                    // What the status says of it now is what it says after a crash.
                    Some(reply) => {
                        let error = Arc::new(StartError::Agent(source));
                        self.when_recorded(Deferred::Answer(Answer::new(reply, Err(error))));
                    }
                    None => self.record(),
                }
            }
        }
    }
}
