//! Limits that change while a container lives.

use std::sync::Arc;

use hartpod_container::cgroup::{Leaf, OomScore, Update};
use hartpod_proto::ContainerId;
use hartpod_proto::pod::v1::{
    UpdateContainerRequest, UpdateContainerResponse, UpdatePodRequest, UpdatePodResponse,
};
use rustix::process::Pid;
use tokio::sync::OwnedSemaphorePermit;

use super::Supervisor;
use super::news::Happened;
use crate::call::{CallError, Reply};
use crate::container::{self, Container, Phase};
use crate::request::{self, InvalidRequest, Place};

impl Supervisor {
    pub(super) fn update(
        &mut self,
        id: &ContainerId,
        request: &UpdateContainerRequest,
        reply: Reply<UpdateContainerResponse>,
    ) {
        let (newsdesk, children) = (self.newsdesk.clone(), self.children.clone());
        let set_up = self.is_set_up().map(drop);
        let begun = set_up.and_then(|()| self.container_mut(id)).and_then(|c| Ok((begin(c, request)?, c)));
        let (update, container) = match begun {
            Ok(begun) => begun,
            Err(error) => return drop(reply.send(Err(error))),
        };
        let (leaf, about) = (container.leaf.clone(), container.about());
        tokio::spawn(async move {
            let updated = container::update(&leaf, update, &children).await;
            let answer = match updated {
                Ok(warnings) => Ok(UpdateContainerResponse { warnings }),
                Err(source) => Err(CallError::Update { id: about.id.clone(), source: Arc::new(source) }),
            };
            newsdesk.tell(about, Happened::Updated);
            let _ = reply.send(answer);
        });
    }

    pub(super) fn update_pod(&mut self, request: &UpdatePodRequest, reply: Reply<UpdatePodResponse>) {
        let begun = self.begin_pod(request);
        let (update, leaf, turn) = match begun {
            Ok(begun) => begun,
            Err(error) => return drop(reply.send(Err(error))),
        };
        let children = self.children.clone();
        tokio::spawn(async move {
            let updated = container::update(&leaf, update, &children).await;
            drop(turn);
            let answer = match updated {
                Ok(warnings) => Ok(UpdatePodResponse { warnings }),
                Err(source) => Err(CallError::UpdatePod(Arc::new(source))),
            };
            let _ = reply.send(answer);
        });
    }

    fn begin_pod(
        &self,
        request: &UpdatePodRequest,
    ) -> Result<(Update, Leaf, OwnedSemaphorePermit), CallError> {
        if self.place != Place::Guest {
            // There the pod's cgroup is the kubelet's.
            return Err(InvalidRequest::Elsewhere { field: "UpdatePod", only: Place::Guest }.into());
        }
        let leaf = self.is_set_up()?.pod.leaf().parent();
        let limits = request::limits(&request.resources_json)?;
        let turn = Arc::clone(&self.resizing).try_acquire_owned().map_err(|_| CallError::UpdatingPod)?;
        Ok((Update { limits, oom_score: None }, leaf, turn))
    }
}

fn begin(container: &mut Container, request: &UpdateContainerRequest) -> Result<Update, CallError> {
    let limits = request::limits(&request.resources_json)?;
    let id = || container.id.clone();
    match container.phase {
        Phase::Created | Phase::Starting | Phase::Running => {}
        phase @ (Phase::Creating | Phase::Exiting | Phase::Exited | Phase::Removing) => {
            return Err(CallError::NotUpdatable { id: id(), phase });
        }
    }
    if container.updating {
        return Err(CallError::Updating(id()));
    }
    let init = Pid::from_raw(container.told.pid);
    let oom_score = request.oom_score_adj.zip(init).map(|(score, init)| OomScore { init, score });
    container.updating = true;
    Ok(Update { limits, oom_score })
}
