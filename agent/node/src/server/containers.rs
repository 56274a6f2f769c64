//! Calls about containers.

use std::path::Path;
use std::time::Duration;

use hartpod_proto::ContainerId;
use hartpod_proto::cri::v1 as cri;
use tonic::Status;

use super::{ReopenError, Server, container_view, info, not_there, seconds};
use crate::container::{ContainerState, ExecTarget, exec_sync};
use crate::filter;
use crate::guest::GuestLog;
use crate::pod::{Command, Gone, PodHandle};
use crate::registry::LookupError;
use crate::status_code::status;
use crate::trace;

impl Server {
    pub(super) async fn create(
        &self,
        request: cri::CreateContainerRequest,
    ) -> Result<cri::CreateContainerResponse, Status> {
        let pod = self.node.registry.pod(&request.pod_sandbox_id).map_err(|e| status(&e))?;
        let config = Box::new(request.config.unwrap_or_default());
        match pod.ask(|reply| Command::Create(config, reply)).await {
            Ok(Ok(id)) => {
                let container_id = id.to_string();
                trace::note("container.id", &container_id);
                // As with pods: nothing is awaited from here on.
                pod.tell(Command::CreateDelivered(id));
                Ok(cri::CreateContainerResponse { container_id })
            }
            Ok(Err(error)) => Err(status(&*error)),
            Err(Gone) => Err(not_there("pod sandbox", &request.pod_sandbox_id)),
        }
    }

    pub(super) async fn start(&self, id: &str) -> Result<(), Status> {
        let (pod, container) = self.node.registry.container(id).map_err(|e| status(&e))?;
        match pod.ask(|reply| Command::Start(container, reply)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(status(&*error)),
            Err(Gone) => Err(not_there("container", id)),
        }
    }

    pub(super) async fn stop(&self, id: &str, grace: Duration) -> Result<(), Status> {
        let Some((pod, container)) = self.container_if_there(id)? else { return Ok(()) };
        match pod.ask(|reply| Command::StopContainer(container, grace, reply)).await {
            Ok(Ok(())) | Err(Gone) => Ok(()),
            Ok(Err(error)) => Err(status(&*error)),
        }
    }

    pub(super) async fn remove(&self, id: &str) -> Result<(), Status> {
        let Some((pod, container)) = self.container_if_there(id)? else { return Ok(()) };
        match pod.ask(|reply| Command::RemoveContainer(container, reply)).await {
            Ok(Ok(())) | Err(Gone) => Ok(()),
            Ok(Err(error)) => Err(status(&*error)),
        }
    }

    /// Annotations of the request are for plugins and change nothing here, as with containerd.
    pub(super) async fn update_container(
        &self,
        id: &str,
        resources: cri::LinuxContainerResources,
    ) -> Result<(), Status> {
        let (pod, container) = self.node.registry.container(id).map_err(|e| status(&e))?;
        match pod.ask(|reply| Command::UpdateContainer(container, Box::new(resources), reply)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(status(&*error)),
            Err(Gone) => Err(not_there("container", id)),
        }
    }

    /// Stopping or removing what is not there is success.
    fn container_if_there(&self, id: &str) -> Result<Option<(PodHandle, ContainerId)>, Status> {
        match self.node.registry.container(id) {
            Ok(found) => Ok(Some(found)),
            Err(LookupError::NotFound { .. }) => Ok(None),
            Err(error) => Err(status(&error)),
        }
    }

    pub(super) async fn container_state(
        &self,
        id: &str,
        verbose: bool,
    ) -> Result<cri::ContainerStatusResponse, Status> {
        let (pod, container) = self.node.registry.container(id).map_err(|e| status(&e))?;
        let pod = pod.snapshot();
        let container = pod.container(&container).ok_or_else(|| not_there("container", id))?;
        let image = container_view::image(&self.node.images, &container.info);
        let answer = container_view::status(container, image).ok_or_else(|| not_there("container", id))?;
        let info =
            if verbose { info::of_container(&self.node, &pod, container).await } else { Default::default() };
        Ok(cri::ContainerStatusResponse { status: Some(answer), info })
    }

    pub(super) fn list(&self, wanted: Option<&cri::ContainerFilter>) -> Vec<cri::Container> {
        let mut found = Vec::new();
        for pod in self.node.registry.pods() {
            let pod = pod.snapshot();
            for container in pod.containers.iter().filter(|c| filter::container(wanted, &pod, c)) {
                let image = container_view::image(&self.node.images, &container.info);
                found.extend(container_view::item(container, image));
            }
        }
        found
    }

    pub(super) async fn exec(&self, request: cri::ExecSyncRequest) -> Result<cri::ExecSyncResponse, Status> {
        let target = ExecTarget::running(&self.node, &request.container_id).map_err(|e| status(&e))?;
        let timeout = (request.timeout > 0).then(|| seconds(request.timeout));
        let output = exec_sync(target, request.cmd, timeout).await;
        let output = output.map_err(|e| status(&e))?;
        Ok(cri::ExecSyncResponse {
            stdout: output.stdout,
            stderr: output.stderr,
            exit_code: output.exit_code,
        })
    }

    pub(super) async fn reopen_log(&self, id: &str) -> Result<(), Status> {
        let (pod, container) = self.node.registry.container(id).map_err(|e| status(&e))?;
        let pod = pod.snapshot();
        let known = pod.container(&container).map(|c| (c.state, c.info.config.log_path.clone()));
        let (Some((ContainerState::Running, log_path)), Some(agent)) = (known, &pod.agent) else {
            return Err(status(&ReopenError::NotRunning { id: container }));
        };
        if !pod.info.is_guest() {
            let reopened = agent.client.reopen_log(&container).await;
            return reopened.map_err(|error| status(&ReopenError::Agent(error)));
        }
        if log_path.is_empty() {
            return Ok(());
        }
        let vmm = agent.vmm.clone();
        let log = GuestLog::new(vmm, container, &pod.info.config.log_directory, Path::new(&log_path));
        let reopened = match log {
            Ok(log) => log.reopen().await,
            Err(error) => Err(error),
        };
        reopened.map_err(|error| status(&ReopenError::Log(error)))
    }
}
