//! UpdatePodSandboxResources, in the pod's owning task.
//!
//! The kubelet changes a pod's cgroup itself, so a namespace pod only takes note. A guest's size is limits inside of it and the VMM's own limit
//! outside: a guest that grows is given room outside first, one that shrinks gives up inside first.

use std::sync::Arc;
use std::time::Duration;

use hartpod_container::cgroup::{Leaf, LimitError, PathError, Update, UpdateError};
use hartpod_proto::SandboxId;
use hartpod_proto::pod::v1 as agent;
use tokio::task::JoinError;
use tokio::time::{Instant, sleep};

use super::command::{Done, Reply};
use super::recording::{Answer, Deferred};
use super::task::PodTask;
use super::{PodInfo, RunningAgent, SandboxState, own_leaf};
use crate::agent_client::AgentError;
use crate::backend::{NoHandler, VmBackend};
use crate::guest::{self, NoRoom};
use crate::node::Node;
use crate::records::PodResources;

/// For a guest to give back to the node what it has freed: it reports free pages every two seconds (free page reporting of its kernel).
const GIVE_BACK: Duration = Duration::from_secs(10);
const GIVE_BACK_POLL: Duration = Duration::from_millis(500);

/// A pod's size was not changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ResizeError {
    #[error("pod sandbox {id} is {}", state.adjective())]
    NotReady { id: SandboxId, state: SandboxState },
    #[error("pod sandbox {id}: another change of its resources is under way")]
    UnderWay { id: SandboxId },
    #[error("resize pod sandbox {id}")]
    NoRoom { id: SandboxId, source: NoRoom },
    #[error("resize pod sandbox {id}: memory of the VMM")]
    Limit { id: SandboxId, source: LimitError },
    #[error("resize pod sandbox {id}: memory of the VMM")]
    Leaf { id: SandboxId, source: UpdateError },
    #[error(transparent)]
    Path(#[from] PathError),
    #[error(transparent)]
    Handler(#[from] NoHandler),
    #[error("resize pod sandbox {id}")]
    Agent { id: SandboxId, source: AgentError },
    #[error("pod sandbox {id}: work of the daemon broke off")]
    BrokenOff { id: SandboxId, source: JoinError },
}

impl PodTask {
    pub(super) fn on_resize(&mut self, wanted: PodResources, reply: Reply<(), ResizeError>) {
        let id = || self.info.id.clone();
        let agent = match (self.state, &self.agent) {
            (SandboxState::Ready, Some(agent)) => agent.clone(),
            (state, _) => return drop(reply.send(Err(Arc::new(ResizeError::NotReady { id: id(), state })))),
        };
        if self.resizing.is_some() {
            return drop(reply.send(Err(Arc::new(ResizeError::UnderWay { id: id() }))));
        }
        self.resizing = Some(reply);
        if !self.info.is_guest() {
            return self.on_resized(Ok(Box::new(wanted)));
        }
        let (node, info) = (self.node.clone(), self.info.clone());
        let has = self.resources.clone().unwrap_or_else(|| Arc::new(info.asked_resources()));
        self.start(async move {
            let resized = resize_guest(&node, &info, &agent, (&has, &wanted)).await;
            Done::Resize(resized.map(|()| Box::new(wanted)))
        });
    }

    pub(super) fn on_resized(&mut self, outcome: Result<Box<PodResources>, ResizeError>) {
        let reply = self.resizing.take();
        match outcome {
            Ok(resources) => {
                self.resources = Some(resources.into());
                tracing::info!(sandbox = %self.info.id, "sandbox resized");
                self.publish();
                self.pod_dirty = true;
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
    }
}

async fn resize_guest(
    node: &Arc<Node>,
    info: &PodInfo,
    agent: &RunningAgent,
    (has, wanted): (&PodResources, &PodResources),
) -> Result<(), ResizeError> {
    let id = || info.id.clone();
    let Some(backend) = node.backends.guests(&info.handler) else { return Ok(()) };
    let no_room = |source| ResizeError::NoRoom { id: id(), source };
    let ceiling =
        info.guest.as_ref().and_then(|guest| guest.ceiling).ok_or_else(|| no_room(NoRoom::Unknown))?;
    let cpus = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
    let resize =
        guest::resize(backend.config(), ceiling, wanted.resources.as_ref(), cpus).map_err(no_room)?;
    let leaf = own_leaf(node, info)?;
    // What cannot be known is taken for the most.
    let before = guest::resize(backend.config(), ceiling, has.resources.as_ref(), cpus);
    let before = before.map_or(ceiling.memory_mib.into(), |before| before.memory_mib);
    let grows = resize.memory_mib >= before;
    if grows {
        outside((node, backend), info, &leaf, resize.memory_mib).await?;
    }
    let request =
        agent::UpdatePodRequest { resources_json: serde_json::to_vec(&resize.inside).unwrap_or_default() };
    let answer = match agent.client.update_pod(request).await {
        Ok(answer) => answer,
        Err(source) => {
            if grows {
                // As before. What the guest has taken meanwhile it keeps.
                let _ = outside((node, backend), info, &leaf, before).await;
            }
            return Err(ResizeError::Agent { id: id(), source });
        }
    };
    node.warn_of(info, answer.warnings);
    if !grows {
        shrink_outside((node, backend), info, &leaf, resize.memory_mib).await?;
    }
    Ok(())
}

/// The guest may take its time to give memory back. The limit inside holds, so one outside that stays for now is no harm.
async fn shrink_outside(
    (node, backend): (&Arc<Node>, &VmBackend),
    info: &PodInfo,
    leaf: &Leaf,
    mib: u64,
) -> Result<(), ResizeError> {
    let deadline = Instant::now() + GIVE_BACK;
    while outside((node, backend), info, leaf, mib).await? == Outside::Uses {
        if Instant::now() >= deadline {
            tracing::warn!(sandbox = %info.id, mib, "the guest has not given its memory back: the VMM's limit stays");
            break;
        }
        sleep(GIVE_BACK_POLL).await;
    }
    Ok(())
}

/// How the VMM's limit went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Outside {
    Set,
    /// More is in use.
    Uses,
}

async fn outside(
    (node, backend): (&Arc<Node>, &VmBackend),
    info: &PodInfo,
    leaf: &Leaf,
    mib: u64,
) -> Result<Outside, ResizeError> {
    let id = || info.id.clone();
    let limits = backend.limits(mib).map_err(|source| ResizeError::Limit { id: id(), source })?;
    let (node, leaf) = (node.clone(), leaf.clone());
    let update = Update { limits, oom_score: None };
    let updated = tokio::task::spawn_blocking(move || node.update_blocking(&leaf, &update)).await;
    match updated.map_err(|source| ResizeError::BrokenOff { id: id(), source })? {
        Ok(_) => Ok(Outside::Set),
        Err(UpdateError::BelowUsage { .. }) => Ok(Outside::Uses),
        Err(source) => Err(ResizeError::Leaf { id: id(), source }),
    }
}
