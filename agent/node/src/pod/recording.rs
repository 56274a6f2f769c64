//! The records of a pod and its containers: what is behind is written in batches, one at a time.

use std::fmt;
use std::sync::Arc;

use hartpod_proto::ContainerId;

use super::SandboxState;
use super::command::{Done, Reply};
use super::task::PodTask;
use crate::records::{PodRecord, PodStage, VERSION};

/// Waits until no record is being written.
#[derive(Debug)]
pub(super) enum Deferred {
    RemoveContainer(ContainerId),
    RemovePod,
    FinishStop,
    Answer(Answer),
}

/// What a call is answered, of whatever kind it is: who hears it may kill the daemon then, and the next one has to know as much.
pub(super) struct Answer(Box<dyn FnOnce() + Send>);

impl Answer {
    pub(super) fn new<T, E>(reply: Reply<T, E>, answer: Result<T, Arc<E>>) -> Self
    where
        T: Send + 'static,
        E: Send + Sync + 'static,
    {
        Self(Box::new(move || drop(reply.send(answer))))
    }
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Answer").finish_non_exhaustive()
    }
}

impl PodTask {
    /// Has the pod's record written soon.
    pub(super) fn mark_pod(&mut self) {
        self.pod_dirty = true;
        self.record();
    }

    /// Does it once no record is being written or behind: deleting and writing the same file must not cross.
    pub(super) fn when_recorded(&mut self, then: Deferred) {
        self.deferred.push(then);
        self.record();
    }

    /// Writes what is behind, one batch at a time; then does what waited for that.
    pub(super) fn record(&mut self) {
        if self.recording {
            return;
        }
        let pod = std::mem::take(&mut self.pod_dirty).then(|| self.pod_record());
        let containers: Vec<_> = self.containers.values_mut().filter_map(|c| c.take_record()).collect();
        if pod.is_none() && containers.is_empty() {
            for then in std::mem::take(&mut self.deferred) {
                match then {
                    Deferred::RemoveContainer(id) => self.remove_container_now(&id),
                    Deferred::RemovePod => self.remove_now(),
                    Deferred::FinishStop => self.finish_stop(),
                    Deferred::Answer(Answer(give)) => give(),
                }
            }
            return;
        }
        self.recording = true;
        let (records, id, metrics) =
            (self.node.records.clone(), self.info.id.clone(), self.node.own_metrics.clone());
        self.start(async move {
            let written = tokio::task::spawn_blocking(move || {
                let pod = pod.map_or(Ok(()), |r| records.write_pod_blocking(&r));
                let mut containers = containers.iter().map(|r| records.write_container_blocking(&id, r));
                pod.and(containers.find(Result::is_err).unwrap_or(Ok(())))
            });
            if let Ok(Err(error)) = written.await {
                // The agent and the caller know the truth; only a crash now would make the old record count.
                tracing::warn!(error = %crate::chain(&error), "record not written");
                metrics.record_not_written();
            }
            Done::Recorded
        });
    }

    fn pod_record(&self) -> PodRecord {
        let stopped = matches!(self.state, SandboxState::Stopped | SandboxState::Removing);
        PodRecord {
            version: VERSION,
            id: self.info.id.clone(),
            stage: if stopped { PodStage::Stopped } else { PodStage::Up },
            delivered: self.delivered,
            handler: self.info.handler.clone(),
            created_at: self.info.created_at,
            epoch: self.node.epoch.clone(),
            agent: self.agent.as_ref().map(|a| a.process.record),
            netns: self.info.netns.clone(),
            ips: self.ips.clone(),
            config: self.info.config.clone(),
            vmm_uid: self.info.guest.as_ref().map(|guest| guest.user.uid),
            guest: self.info.guest.as_ref().and_then(|guest| guest.ceiling),
            resources: self.resources.as_deref().cloned(),
            selinux_level: self.info.selinux_level().map(str::to_owned),
        }
    }
}
