//! Calls about what pods and containers use.

use hartpod_container::cgroup::Depth;
use hartpod_proto::cri::v1 as cri;
use tonic::Status;

use super::{Server, not_there, stats_view};
use crate::filter;
use crate::stats::{self, Target};
use crate::status_code::status;

impl Server {
    pub(super) async fn stats_of_container(&self, id: &str) -> Result<cri::ContainerStats, Status> {
        let (pod, container) = self.node.registry.container(id).map_err(|e| status(&e))?;
        let pod = pod.snapshot();
        let container = pod.container(&container).cloned().ok_or_else(|| not_there("container", id))?;
        let found = stats::containers(&self.node, vec![Target { pod, container }], Depth::Stats).await;
        let found = found.map_err(|e| status(&e))?;
        let found = found.first().ok_or_else(|| not_there("container", id))?;
        Ok(stats_view::container(found, &self.writable_layers()))
    }

    /// Of all containers that there are, ended ones included: what they have written still takes room.
    pub(super) async fn stats_of_containers(
        &self,
        wanted: Option<&cri::ContainerStatsFilter>,
    ) -> Result<Vec<cri::ContainerStats>, Status> {
        let wanted = wanted.cloned().map(|wanted| cri::ContainerFilter {
            id: wanted.id,
            pod_sandbox_id: wanted.pod_sandbox_id,
            label_selector: wanted.label_selector,
            state: None,
        });
        let pods = self.node.registry.pods();
        let targets =
            pods.iter().map(|pod| pod.snapshot()).flat_map(|pod| Target::all_of(&pod).collect::<Vec<_>>());
        let targets = targets.filter(|t| filter::container(wanted.as_ref(), &t.pod, &t.container)).collect();
        let found = stats::containers(&self.node, targets, Depth::Stats).await.map_err(|e| status(&e))?;
        let mountpoint = self.writable_layers();
        Ok(found.iter().map(|read| stats_view::container(read, &mountpoint)).collect())
    }

    pub(super) async fn stats_of_pod(&self, id: &str) -> Result<cri::PodSandboxStats, Status> {
        let pod = self.node.registry.pod(id).map_err(|e| status(&e))?.snapshot();
        let found = stats::pods(&self.node, vec![pod], Depth::Stats).await.map_err(|e| status(&e))?;
        let found = found.first().ok_or_else(|| not_there("pod sandbox", id))?;
        Ok(stats_view::pod(found, &self.writable_layers()))
    }

    /// Of all pods that are ready.
    pub(super) async fn stats_of_pods(
        &self,
        wanted: Option<&cri::PodSandboxStatsFilter>,
    ) -> Result<Vec<cri::PodSandboxStats>, Status> {
        let wanted = wanted.cloned().unwrap_or_default();
        let wanted = cri::PodSandboxFilter {
            id: wanted.id,
            label_selector: wanted.label_selector,
            state: Some(cri::PodSandboxStateValue { state: cri::PodSandboxState::SandboxReady.into() }),
        };
        let pods = self.node.registry.pods();
        let pods =
            pods.iter().map(|pod| pod.snapshot()).filter(|pod| filter::pod(Some(&wanted), pod)).collect();
        let found = stats::pods(&self.node, pods, Depth::Stats).await.map_err(|e| status(&e))?;
        let mountpoint = self.writable_layers();
        Ok(found.iter().map(|read| stats_view::pod(read, &mountpoint)).collect())
    }

    /// What CRI calls the file system of writable layers, the same as in ImageFsInfo.
    fn writable_layers(&self) -> String {
        self.node.layout.images().to_string_lossy().into_owned()
    }
}
