//! Containers: what a kubelet would ask for, with the parts that a test changes, and what one does to them.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use k8s_cri::v1 as cri;
use tonic::Status;

use crate::cgroup;
use crate::client::image_spec;
use crate::eventually::eventually;
use crate::log_file::{self, LogLine};
use crate::pod::Pod;
use crate::process;

/// A container that is not there yet.
#[derive(Debug, Clone)]
pub struct ContainerBuilder {
    pod: Pod,
    pub config: cri::ContainerConfig,
}

/// A container that was created.
#[derive(Debug, Clone)]
pub struct Container {
    pod: Pod,
    pub id: String,
    pub config: cri::ContainerConfig,
}

/// What an exec wrote and how it ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Output {
    pub stdout: String,
    pub stderr: String,
    pub exit_code: i32,
}

impl ContainerBuilder {
    pub(crate) fn new(pod: &Pod, name: &str) -> Self {
        let sandbox = pod.config.linux.clone().and_then(|linux| linux.security_context).unwrap_or_default();
        let security = cri::LinuxContainerSecurityContext {
            namespace_options: sandbox.namespace_options,
            // What the kubelet asks for where the pod says nothing.
            seccomp: Some(cri::SecurityProfile::default()),
            masked_paths: DEFAULT_MASKED.iter().map(|&path| path.to_owned()).collect(),
            readonly_paths: DEFAULT_READONLY.iter().map(|&path| path.to_owned()).collect(),
            ..Default::default()
        };
        let linux = cri::LinuxContainerConfig { resources: None, security_context: Some(security) };
        let config = cri::ContainerConfig {
            metadata: Some(cri::ContainerMetadata { name: name.into(), attempt: 0 }),
            image: Some(image_spec(pod.node().image())),
            log_path: format!("{name}.log"),
            linux: Some(linux),
            ..Default::default()
        };
        Self { pod: pod.clone(), config }
    }

    /// Changes anything that has no method here.
    #[must_use]
    pub fn with(mut self, change: impl FnOnce(&mut cri::ContainerConfig)) -> Self {
        change(&mut self.config);
        self
    }

    #[must_use]
    pub fn with_security(self, change: impl FnOnce(&mut cri::LinuxContainerSecurityContext)) -> Self {
        self.with(|config| {
            change(config.linux.get_or_insert_default().security_context.get_or_insert_default())
        })
    }

    #[must_use]
    pub fn with_resources(self, change: impl FnOnce(&mut cri::LinuxContainerResources)) -> Self {
        self.with(|config| change(config.linux.get_or_insert_default().resources.get_or_insert_default()))
    }

    #[must_use]
    pub fn image(self, reference: &str) -> Self {
        self.with(|config| config.image = Some(image_spec(reference)))
    }

    /// In place of the image's entrypoint and command.
    #[must_use]
    pub fn command<const N: usize>(self, command: [&str; N]) -> Self {
        self.with(|config| config.command = command.map(str::to_owned).to_vec())
    }

    /// In place of the image's command.
    #[must_use]
    pub fn args<const N: usize>(self, args: [&str; N]) -> Self {
        self.with(|config| config.args = args.map(str::to_owned).to_vec())
    }

    #[must_use]
    pub fn sh(self, script: &str) -> Self {
        self.command(["sh", "-c", script])
    }

    /// Runs until it is stopped, and stops at once when it has said `ready`: init of a pid namespace ignores TERM until it
    /// handles it.
    #[must_use]
    pub fn idle(self) -> Self {
        self.sh("trap 'exit 0' TERM; echo ready; while :; do sleep 3600 & wait; done")
    }

    #[must_use]
    pub fn env(self, key: &str, value: &str) -> Self {
        self.with(|config| config.envs.push(cri::KeyValue { key: key.into(), value: value.into() }))
    }

    #[must_use]
    pub fn label(self, key: &str, value: &str) -> Self {
        self.with(|config| {
            config.labels.insert(key.into(), value.into());
        })
    }

    #[must_use]
    pub fn mount(self, host: &Path, container: &str) -> Self {
        self.with(|config| config.mounts.push(mount(host, container, false)))
    }

    #[must_use]
    pub fn read_only_mount(self, host: &Path, container: &str) -> Self {
        self.with(|config| config.mounts.push(mount(host, container, true)))
    }

    pub async fn create(self) -> Result<Container, Status> {
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: self.pod.id.clone(),
            config: Some(self.config.clone()),
            sandbox_config: Some(self.pod.config.clone()),
        };
        let id = self.pod.node().client().create_container(request).await?;
        Ok(Container { pod: self.pod, id, config: self.config })
    }

    /// Creates and starts it.
    pub async fn run(self) -> Result<Container, Status> {
        let container = self.create().await?;
        container.start().await?;
        Ok(container)
    }
}

fn mount(host: &Path, container: &str, readonly: bool) -> cri::Mount {
    cri::Mount {
        host_path: host.display().to_string(),
        container_path: container.into(),
        readonly,
        ..Default::default()
    }
}

impl Container {
    pub fn pod(&self) -> &Pod {
        &self.pod
    }

    pub async fn start(&self) -> Result<(), Status> {
        let request = cri::StartContainerRequest { container_id: self.id.clone() };
        self.pod.node().client().start_container(request).await?;
        Ok(())
    }

    /// TERM (or the image's stop signal), then KILL after `grace`.
    pub async fn stop(&self, grace: Duration) -> Result<(), Status> {
        let timeout = i64::try_from(grace.as_secs()).unwrap_or(i64::MAX);
        let request = cri::StopContainerRequest { container_id: self.id.clone(), timeout };
        self.pod.node().client().stop_container(request).await?;
        Ok(())
    }

    pub async fn remove(&self) -> Result<(), Status> {
        let request = cri::RemoveContainerRequest { container_id: self.id.clone() };
        self.pod.node().client().remove_container(request).await?;
        Ok(())
    }

    pub async fn status(&self) -> Result<cri::ContainerStatus, Status> {
        let answer = self.verbose_status(false).await?;
        answer.status.ok_or_else(|| Status::internal("test: no status in the answer"))
    }

    pub async fn verbose_status(&self, verbose: bool) -> Result<cri::ContainerStatusResponse, Status> {
        let request = cri::ContainerStatusRequest { container_id: self.id.clone(), verbose };
        self.pod.node().client().container_status(request).await
    }

    pub async fn state(&self) -> Result<cri::ContainerState, Status> {
        Ok(self.status().await?.state())
    }

    /// Changes what `change` sets of its resources.
    pub async fn update(&self, change: impl FnOnce(&mut cri::LinuxContainerResources)) -> Result<(), Status> {
        let mut resources = cri::LinuxContainerResources::default();
        change(&mut resources);
        let request = cri::UpdateContainerResourcesRequest {
            container_id: self.id.clone(),
            linux: Some(resources),
            ..Default::default()
        };
        self.pod.node().client().update_container_resources(request).await?;
        Ok(())
    }

    /// The resources that its status tells.
    pub async fn resources(&self) -> Result<cri::LinuxContainerResources, Status> {
        Ok(self.status().await?.resources.and_then(|resources| resources.linux).unwrap_or_default())
    }

    /// Reads the first of `files` that its leaf has, v1's name or v2's.
    pub async fn limit(&self, files: &[&str]) -> Result<String> {
        if self.pod.is_guest() {
            // Guests have v2, and a container sees its own leaf.
            let file = files.last().context("no file")?;
            return Ok(self.sh(&format!("cat /sys/fs/cgroup/{file}")).await?.trim().to_owned());
        }
        let parent = self.pod.cgroup.as_ref().context("the pod has no cgroup")?;
        for file in files {
            if let Some(dir) = parent.leaf_with(&self.id, file)? {
                return Ok(std::fs::read_to_string(dir.join(file))?.trim().to_owned());
            }
        }
        let all = cgroup::find(|path| path.contains(&self.id))?;
        anyhow::bail!("none of {files:?} in a leaf of the container: {all:#?}")
    }

    /// The host's pid of its init, from the verbose status as crictl inspect shows it.
    pub async fn pid(&self) -> Result<i32> {
        let info = self.verbose_status(true).await?.info;
        let json: serde_json::Value =
            serde_json::from_str(info.get("info").context("no `info` in the verbose status")?)?;
        let pid = json["pid"].as_i64().context("no pid in the verbose status")?;
        i32::try_from(pid).context("pid out of range")
    }

    /// Commands of running processes: all that this container sees in its guest, or the whole node's.
    pub async fn commands(&self) -> Result<Vec<String>> {
        if !self.pod.is_guest() {
            let alive = process::all()?.into_iter().filter(|one| one.state != 'Z');
            return Ok(alive.map(|one| one.command).collect());
        }
        let script = "for p in /proc/[0-9]*/cmdline; do tr '\\0' ' ' <$p; echo; done 2>/dev/null";
        Ok(self.sh(script).await?.lines().map(|line| line.trim().to_owned()).collect())
    }

    /// Waits until it has exited and returns its status.
    pub async fn exited(&self) -> Result<cri::ContainerStatus> {
        let is_over = |status: &cri::ContainerStatus| status.state() == cri::ContainerState::ContainerExited;
        eventually("the container's exit", async || Ok(self.status().await?), is_over).await
    }

    /// Runs a command in it, with no timeout.
    pub async fn exec<const N: usize>(&self, command: [&str; N]) -> Result<Output, Status> {
        self.exec_within(Duration::ZERO, command).await
    }

    pub async fn exec_within<const N: usize>(
        &self,
        timeout: Duration,
        command: [&str; N],
    ) -> Result<Output, Status> {
        let answer = self.exec_raw(timeout, &command).await?;
        Ok(Output {
            stdout: String::from_utf8_lossy(&answer.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&answer.stderr).into_owned(),
            exit_code: answer.exit_code,
        })
    }

    pub async fn exec_raw(
        &self,
        timeout: Duration,
        command: &[&str],
    ) -> Result<cri::ExecSyncResponse, Status> {
        let request = cri::ExecSyncRequest {
            container_id: self.id.clone(),
            cmd: command.iter().map(|&arg| arg.to_owned()).collect(),
            timeout: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
        };
        self.pod.node().client().exec_sync(request).await
    }

    /// Runs a script that must succeed, and returns what it wrote to stdout.
    pub async fn sh(&self, script: &str) -> Result<String> {
        let output = self.exec(["sh", "-c", script]).await.with_context(|| format!("exec {script:?}"))?;
        anyhow::ensure!(output.exit_code == 0, "{script:?} in the container: {output:?}");
        Ok(output.stdout)
    }

    pub async fn reopen_log(&self) -> Result<(), Status> {
        let request = cri::ReopenContainerLogRequest { container_id: self.id.clone() };
        self.pod.node().client().reopen_container_log(request).await?;
        Ok(())
    }

    pub fn log_path(&self) -> PathBuf {
        self.pod.log_directory().join(&self.config.log_path)
    }

    /// The log as it is now.
    pub fn log(&self) -> Result<Vec<LogLine>> {
        log_file::read(&self.log_path())
    }

    /// Waits until the log holds a line with this text.
    pub async fn logged(&self, text: &str) -> Result<Vec<LogLine>> {
        let what = format!("{text:?} in the log");
        // Read while a line is being written, the file may end within it: not yet, then.
        let lines = async || Ok(self.log().unwrap_or_default());
        eventually(&what, lines, |lines| lines.iter().any(|line| line.text.contains(text))).await
    }
}

/// The kubelet's lists for a container with the default proc mount (pkg/securitycontext/util.go), as of Kubernetes 1.36.
pub const DEFAULT_MASKED: &[&str] = &[
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];

/// See [`DEFAULT_MASKED`].
pub const DEFAULT_READONLY: &[&str] =
    &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];
