//! Pods: what a kubelet would ask for, with the parts that a test changes.

use std::path::PathBuf;

use anyhow::{Context, Result};
use k8s_cri::v1 as cri;
use k8s_cri::v1::NamespaceMode;
use tonic::Status;

use crate::cgroup::PodCgroup;
use crate::container::ContainerBuilder;
use crate::guest;
use crate::node::Node;
use crate::process;

/// A pod that is not there yet.
#[derive(Debug, Clone)]
pub struct PodBuilder {
    node: Node,
    pub config: cri::PodSandboxConfig,
    handler: String,
    cgroup: Option<PodCgroup>,
}

/// A pod that runs, or ran.
#[derive(Debug, Clone)]
pub struct Pod {
    node: Node,
    pub id: String,
    pub config: cri::PodSandboxConfig,
    handler: String,
    /// The cgroup that the kit made for it, as a kubelet does.
    pub cgroup: Option<PodCgroup>,
}

impl PodBuilder {
    pub(crate) fn new(node: &Node, name: &str) -> Self {
        let uid = node.next_uid(name);
        let log_directory = node.log_root().join(format!("test_{name}_{uid}"));
        let metadata = cri::PodSandboxMetadata {
            name: name.into(),
            uid: uid.clone(),
            namespace: "test".into(),
            attempt: 0,
        };
        let namespaces = cri::NamespaceOption { pid: NamespaceMode::Container.into(), ..Default::default() };
        let security =
            cri::LinuxSandboxSecurityContext { namespace_options: Some(namespaces), ..Default::default() };
        let linux = cri::LinuxPodSandboxConfig {
            cgroup_parent: format!("{}/pod-{uid}", node.cgroup_root()),
            security_context: Some(security),
            ..Default::default()
        };
        let config = cri::PodSandboxConfig {
            metadata: Some(metadata),
            hostname: name.into(),
            log_directory: log_directory.display().to_string(),
            linux: Some(linux),
            ..Default::default()
        };
        Self { node: node.clone(), config, handler: guest::default_handler(), cgroup: None }
    }

    /// Changes anything that has no method here.
    #[must_use]
    pub fn with(mut self, change: impl FnOnce(&mut cri::PodSandboxConfig)) -> Self {
        change(&mut self.config);
        self
    }

    /// Another runtime handler than the one that the whole run has.
    #[must_use]
    pub fn handler(mut self, handler: &str) -> Self {
        handler.clone_into(&mut self.handler);
        self
    }

    /// In a guest of its own.
    #[must_use]
    pub fn in_guest(self) -> Self {
        self.handler(guest::HANDLER)
    }

    #[must_use]
    pub fn label(self, key: &str, value: &str) -> Self {
        self.with(|config| {
            config.labels.insert(key.into(), value.into());
        })
    }

    /// One pid namespace for all containers, or the host's.
    #[must_use]
    pub fn pid(self, mode: NamespaceMode) -> Self {
        self.with_namespaces(|options| options.pid = mode.into())
    }

    #[must_use]
    pub fn ipc(self, mode: NamespaceMode) -> Self {
        self.with_namespaces(|options| options.ipc = mode.into())
    }

    /// No guest, unless the test says so after this.
    #[must_use]
    pub fn host_network(self) -> Self {
        // Its host name is the node's: the kubelet sends none.
        self.handler("")
            .with(|config| config.hostname.clear())
            .with_namespaces(|options| options.network = NamespaceMode::Node.into())
    }

    #[must_use]
    pub fn port(self, host_port: i32, container_port: i32) -> Self {
        self.with(|config| {
            config.port_mappings.push(cri::PortMapping { host_port, container_port, ..Default::default() });
        })
    }

    fn with_namespaces(self, change: impl FnOnce(&mut cri::NamespaceOption)) -> Self {
        self.with(|config| {
            let security = config.linux.get_or_insert_default().security_context.get_or_insert_default();
            change(security.namespace_options.get_or_insert_default());
        })
    }

    /// Makes the log folder and the cgroup as the kubelet does, and asks for the pod.
    pub async fn run(mut self) -> Result<Pod, Status> {
        self.prepare().map_err(|error| Status::internal(format!("test: {error:#}")))?;
        let id = self.node.client().run_pod_sandbox(self.config.clone(), &self.handler).await;
        match id {
            Ok(id) => Ok(Pod {
                node: self.node,
                id,
                config: self.config,
                handler: self.handler,
                cgroup: self.cgroup,
            }),
            Err(status) => {
                if let Some(cgroup) = self.cgroup {
                    let removed = cgroup.remove();
                    removed
                        .map_err(|error| Status::internal(format!("test: {error:#} (after: {status})")))?;
                }
                Err(status)
            }
        }
    }

    fn prepare(&mut self) -> Result<()> {
        if self.handler == guest::HANDLER {
            guest::provide_image(&self.node.root())?;
        }
        if !self.config.log_directory.is_empty() {
            std::fs::create_dir_all(&self.config.log_directory)
                .with_context(|| format!("create {}", self.config.log_directory))?;
        }
        let parent = self.config.linux.as_ref().map(|linux| linux.cgroup_parent.clone()).unwrap_or_default();
        if parent.starts_with(self.node.cgroup_root()) {
            let cgroup = PodCgroup::create(&parent)?;
            let linux = self.config.linux.as_ref();
            let memory =
                |r: &cri::LinuxContainerResources| u64::try_from(r.memory_limit_in_bytes).unwrap_or(0);
            let limit = linux.and_then(|linux| linux.resources.as_ref()).map_or(0, memory);
            if limit > 0 {
                let overhead = linux.and_then(|linux| linux.overhead.as_ref()).map_or(0, memory);
                cgroup.limit_memory(limit + overhead)?;
            }
            self.cgroup = Some(cgroup);
        }
        Ok(())
    }
}

impl Pod {
    pub fn node(&self) -> &Node {
        &self.node
    }

    pub fn container(&self, name: &str) -> ContainerBuilder {
        ContainerBuilder::new(self, name)
    }

    pub async fn status(&self) -> Result<cri::PodSandboxStatus, Status> {
        let answer = self.verbose_status(false).await?;
        answer.status.ok_or_else(|| Status::internal("test: no status in the answer"))
    }

    pub async fn verbose_status(&self, verbose: bool) -> Result<cri::PodSandboxStatusResponse, Status> {
        let request = cri::PodSandboxStatusRequest { pod_sandbox_id: self.id.clone(), verbose };
        self.node.client().pod_sandbox_status(request).await
    }

    pub fn is_guest(&self) -> bool {
        self.handler == guest::HANDLER
    }

    /// What the verbose status says, as crictl inspectp shows it.
    pub async fn info(&self) -> Result<serde_json::Value> {
        let info = self.verbose_status(true).await?.info;
        Ok(serde_json::from_str(info.get("info").context("no `info` in the verbose status")?)?)
    }

    /// The process that the pod depends on: its agent, or the VMM of its guest.
    pub async fn agent(&self) -> Result<process::Process> {
        let pid = self.info().await?["pid"].as_i64().context("no pid in the verbose status")?;
        process::read(i32::try_from(pid)?)
            .with_context(|| format!("there is no process {pid}, the pod's agent"))
    }

    pub async fn is_ready(&self) -> Result<bool, Status> {
        Ok(self.status().await?.state == cri::PodSandboxState::SandboxReady as i32)
    }

    /// The first IP, empty without a network.
    pub async fn ip(&self) -> Result<String, Status> {
        Ok(self.status().await?.network.unwrap_or_default().ip)
    }

    /// Stops the pod and then removes its cgroup, which the kubelet does at once: it must be empty by then.
    pub async fn stop(&self) -> Result<()> {
        let request = cri::StopPodSandboxRequest { pod_sandbox_id: self.id.clone() };
        self.node.client().stop_pod_sandbox(request).await.context("StopPodSandbox")?;
        match &self.cgroup {
            Some(cgroup) => cgroup.remove().context("the pod's cgroup is in use after StopPodSandbox"),
            None => Ok(()),
        }
    }

    pub async fn remove(&self) -> Result<(), Status> {
        let request = cri::RemovePodSandboxRequest { pod_sandbox_id: self.id.clone() };
        self.node.client().remove_pod_sandbox(request).await?;
        Ok(())
    }

    /// Where the pod's containers write their logs.
    pub fn log_directory(&self) -> PathBuf {
        PathBuf::from(&self.config.log_directory)
    }
}
