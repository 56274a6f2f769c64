//! Calls about pod sandboxes.

use std::sync::Arc;

use hartpod_proto::SandboxId;
use hartpod_proto::cri::v1 as cri;
use tonic::Status;

use super::{NameTaken, Server, info, pod_view};
use crate::guest::{self, GuestInfo};
use crate::names::{Claim, ConfigHash};
use crate::pod::{self, Command, Gone, PodHandle, PodInfo, RunError, Unborn};
use crate::records::PodResources;
use crate::registry::LookupError;
use crate::selinux::Level;
use crate::spec::pod_selinux_options;
use crate::status_code::status;
use crate::validate::{self, Driver, Kind};
use crate::{clock, filter, random};

impl Server {
    pub(super) async fn run_pod(
        &self,
        request: cri::RunPodSandboxRequest,
    ) -> Result<cri::RunPodSandboxResponse, Status> {
        self.node.backends.of(&request.runtime_handler).map_err(|e| status(&e))?;
        let config = request.config.clone().unwrap_or_default();
        validate::sandbox(&config, Kind::of(&request.runtime_handler)).map_err(|e| status(&e))?;
        self.may_have_users(&config)?;
        let driver = Driver::of(self.node.systemd.is_some());
        validate::cgroup_driver(&config, driver).map_err(|e| status(&e))?;
        let info = self.new_info(&request, config)?;
        let (handle, unborn) = self.claim(info)?;
        handle.info.note();
        let id = handle.info.id.to_string();
        // Asked before the task begins: a pod that fails at once is gone before a later question reaches it.
        let up = handle.ask(Command::AwaitUp);
        if let Some(unborn) = unborn {
            pod::spawn(self.node.clone(), unborn);
        }
        match up.await {
            Ok(Ok(())) => {
                // Nothing is awaited from here on: a caller that hung up before this line is one that was not told.
                handle.tell(Command::UpDelivered);
                Ok(cri::RunPodSandboxResponse { pod_sandbox_id: id })
            }
            Ok(Err(error)) => Err(status(&*error)),
            Err(Gone) => Err(Status::unavailable(format!("sandbox {id} went away while it was made"))),
        }
    }

    /// A pod may ask for a user namespace where the node has some to give.
    fn may_have_users(&self, config: &cri::PodSandboxConfig) -> Result<(), Status> {
        let mode = pod::namespaces(config).userns_options.map(|users| users.mode);
        match (&self.node.user_namespaces, mode) {
            (Err(why), Some(mode)) if mode == cri::NamespaceMode::Pod as i32 => {
                Err(status(&RunError::NoUserNamespaces(why.clone())))
            }
            _ => Ok(()),
        }
    }

    fn new_info(
        &self,
        request: &cri::RunPodSandboxRequest,
        config: cri::PodSandboxConfig,
    ) -> Result<Arc<PodInfo>, Status> {
        let bytes = random::bytes().map_err(|e| status(&RunError::NoId(e)))?;
        let id = SandboxId::from_bytes(bytes);
        let guest = self.guest(&id, request)?;
        let netns = (!pod::uses_host_network(&config)).then(|| self.node.layout.netns_file(&id));
        let selinux_level = self.selinux_level(&config, guest.is_some())?;
        Ok(Arc::new(PodInfo {
            selinux_level,
            name: pod::pod_name(&config),
            hash: ConfigHash::of(request),
            handler: request.runtime_handler.clone(),
            created_at: clock::now(),
            config,
            netns,
            guest,
            id,
        }))
    }

    /// A level of its own, where SELinux is in use and the pod names none.
    fn selinux_level(&self, config: &cri::PodSandboxConfig, guest: bool) -> Result<Option<Level>, Status> {
        let names_one = pod_selinux_options(config).is_some_and(|options| !options.level.is_empty());
        let Some(kernel) = self.node.spec_settings.selinux.as_ref().filter(|_| !guest && !names_one) else {
            return Ok(None);
        };
        let random = random::bytes().map_err(|e| status(&RunError::NoId(e)))?;
        Ok(Some(kernel.levels.take(u32::from_ne_bytes(random))))
    }

    /// What its guest will be, for a pod in one.
    fn guest(
        &self,
        id: &SandboxId,
        request: &cri::RunPodSandboxRequest,
    ) -> Result<Option<GuestInfo>, Status> {
        let Some(backend) = self.node.backends.guests(&request.runtime_handler) else { return Ok(None) };
        backend.program().map_err(|e| status(&e))?;
        let cpus = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
        let config = request.config.clone().unwrap_or_default();
        let parent = config.linux.as_ref().map_or("", |linux| linux.cgroup_parent.as_str());
        // What cannot be read is not known; making the leaf will say why.
        let leaf = self.node.leaf(parent, id.as_str()).ok();
        let bounds = leaf.and_then(|leaf| leaf.parent_bounds().ok()).unwrap_or_default();
        let plan = guest::plan(backend.config(), &config, bounds, cpus).map_err(|e| status(&e))?;
        if let Some(warning) = &plan.warning {
            self.node.warn_once(id, warning);
        }
        let user = backend.user().map_err(|e| status(&e))?;
        Ok(Some(GuestInfo::planned(plan, user)))
    }

    /// The pod that the request stands for: a new one that is yet to be made, or the one that it made before.
    fn claim(&self, info: Arc<PodInfo>) -> Result<(PodHandle, Option<Unborn>), Status> {
        let (handle, unborn) = pod::new_pod(info.clone());
        match self.node.registry.claim(handle.clone()) {
            Claim::Yours => Ok((handle, Some(unborn))),
            Claim::Join(other) | Claim::Return(other) => Ok((other, None)),
            Claim::Taken(other) => {
                let holder = other.info.id.to_string();
                Err(status(&NameTaken { name: info.name.to_string(), holder }))
            }
        }
    }

    pub(super) async fn stop_pod(&self, id: &str) -> Result<(), Status> {
        let Some(pod) = self.pod_if_there(id)? else { return Ok(()) };
        match pod.ask(Command::Stop).await {
            Ok(Ok(())) | Err(Gone) => Ok(()),
            Ok(Err(error)) => Err(status(&*error)),
        }
    }

    pub(super) async fn remove_pod(&self, id: &str) -> Result<(), Status> {
        let Some(pod) = self.pod_if_there(id)? else { return Ok(()) };
        match pod.ask(Command::Remove).await {
            Ok(Ok(())) | Err(Gone) => Ok(()),
            Ok(Err(error)) => Err(status(&*error)),
        }
    }

    pub(super) async fn resize_pod(
        &self,
        request: cri::UpdatePodSandboxResourcesRequest,
    ) -> Result<(), Status> {
        let cri::UpdatePodSandboxResourcesRequest { pod_sandbox_id, overhead, resources } = request;
        let pod = self.node.registry.pod(&pod_sandbox_id).map_err(|e| status(&e))?;
        let resources = Box::new(PodResources { overhead, resources });
        match pod.ask(|reply| Command::Resize(resources, reply)).await {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(status(&*error)),
            Err(Gone) => Err(status(&LookupError::NotFound { what: "pod sandbox", id: pod_sandbox_id })),
        }
    }

    /// Stopping or removing what is not there is success.
    fn pod_if_there(&self, id: &str) -> Result<Option<PodHandle>, Status> {
        match self.node.registry.pod(id) {
            Ok(pod) => Ok(Some(pod)),
            Err(LookupError::NotFound { .. }) => Ok(None),
            Err(error) => Err(status(&error)),
        }
    }

    pub(super) fn pod_status(
        &self,
        id: &str,
        verbose: bool,
    ) -> Result<cri::PodSandboxStatusResponse, Status> {
        let pod = self.node.registry.pod(id).map_err(|e| status(&e))?.snapshot();
        let Some(answer) = pod_view::status(&pod) else {
            let error = LookupError::NotFound { what: "pod sandbox", id: id.to_owned() };
            return Err(status(&error));
        };
        Ok(cri::PodSandboxStatusResponse {
            status: Some(answer),
            info: if verbose { info::of_pod(&self.node, &pod) } else { Default::default() },
            ..Default::default()
        })
    }

    pub(super) fn list_pods(&self, wanted: Option<&cri::PodSandboxFilter>) -> Vec<cri::PodSandbox> {
        let pods = self.node.registry.pods().into_iter().map(|p| p.snapshot());
        pods.filter(|p| filter::pod(wanted, p)).filter_map(|p| pod_view::item(&p)).collect()
    }
}
