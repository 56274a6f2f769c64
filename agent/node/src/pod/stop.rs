//! StopPodSandbox, in the pod's owning task.

use std::sync::Arc;

use super::bring_up::own_leaf;
use super::command::{Done, Reply};
use super::network;
use super::recording::Deferred;
use super::remove::RemovePodError;
use super::state::{Refused, SandboxEvent, SandboxState};
use super::task::PodTask;
use super::teardown::{HeldAgent, Holdings, TearDownError, tear_down};
use crate::container::Exit;
use crate::names::Progress;

/// A pod was not stopped.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StopError {
    #[error("pod sandbox {id}")]
    Refused { id: String, source: Refused },
    #[error("stop pod sandbox {id}")]
    TearDown { id: String, source: TearDownError },
}

impl PodTask {
    pub(super) fn on_stop(&mut self, reply: Reply<(), StopError>) {
        match self.state {
            SandboxState::Stopped | SandboxState::Removing => drop(reply.send(Ok(()))),
            state => match state.on(SandboxEvent::StopAsked) {
                Ok(_) => {
                    self.stop_waiters.push(reply);
                    self.begin_stop();
                }
                Err(source) => {
                    let id = self.info.id.to_string();
                    let _ = reply.send(Err(Arc::new(StopError::Refused { id, source })));
                }
            },
        }
    }

    pub(super) fn begin_stop(&mut self) {
        if self.state == SandboxState::Stopping {
            return;
        }
        self.move_on(SandboxEvent::StopAsked);
        self.node.registry.advance(&self.info, Progress::Settled);
        self.publish();
        let held = self.holdings();
        let node = self.node.clone();
        self.start(async move { Done::TearDown(tear_down(&node, held).await) });
    }

    fn holdings(&mut self) -> Holdings {
        // It was checked when the pod was made.
        let own = own_leaf(&self.node, &self.info).ok();
        Holdings {
            id: self.info.id.clone(),
            agent: match self.agent.clone() {
                Some(agent) => HeldAgent::Running(Box::new(agent), self.news.take()),
                None => HeldAgent::None,
            },
            leaves: own.into_iter().chain(self.containers.values().map(|c| c.leaf.clone())).collect(),
            attachment: network::attachment(&self.info).ok().flatten(),
            state_dir: self.node.layout.agent(&self.info.id),
        }
    }

    pub(super) fn on_torn_down(&mut self, outcome: Result<(), TearDownError>) {
        if self.agent.as_ref().is_some_and(|a| !a.process.is_alive()) {
            self.agent = None;
        }
        match outcome {
            Ok(()) => {
                self.end_containers(&Exit::killed("killed when its pod was stopped"));
                self.move_on(SandboxEvent::StopDone);
                self.reason.clear();
                self.ips.clear();
                self.mark_pod();
                self.publish();
                self.when_recorded(Deferred::FinishStop);
            }
            Err(source) => {
                self.move_on(SandboxEvent::StopFailed);
                let error = StopError::TearDown { id: self.info.id.to_string(), source };
                self.reason = crate::chain(&error);
                self.publish();
                let error = Arc::new(error);
                for waiter in std::mem::take(&mut self.stop_waiters) {
                    let _ = waiter.send(Err(error.clone()));
                }
                self.fail_removal(RemovePodError::Stop(error));
            }
        }
    }

    pub(super) fn finish_stop(&mut self) {
        tracing::info!(sandbox = %self.info.id, "sandbox stopped");
        for waiter in std::mem::take(&mut self.stop_waiters) {
            let _ = waiter.send(Ok(()));
        }
        self.remove_if_wanted();
    }
}
