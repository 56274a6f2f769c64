//! The steps of the demo, and taking back all of them.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use hartpod_proto::cri::v1 as cri;

use super::super::client::Client;
use super::super::log_lines::Decoder;
use super::super::proc_paths::confined;
use super::place::{Daemon, Place};
use super::registry::Registry;
use super::show::{self, Show};
use crate::random;

/// The container's limit, to have one.
const MEMORY: i64 = 64 << 20;

/// A container that says nothing for so long will not.
const GREETING: Duration = Duration::from_secs(10);

/// The last line of the greeting of `demo/main.rs`.
const GREETING_END: &str = "host up";

/// Seconds that the container may take to end.
const GRACE_S: i64 = 5;

/// What exists by now.
#[derive(Debug)]
pub(super) struct Steps {
    show: Show,
    place: Place,
    daemon: Option<Daemon>,
}

impl Steps {
    pub(super) fn new(place: Place) -> Self {
        Self { show: Show::new(), place, daemon: None }
    }

    /// Tells no more; gives what the daemon said last.
    pub(super) fn failed(&mut self) -> String {
        self.show.fall_silent();
        self.place.daemon_said()
    }

    /// From the daemon's start to the container's end.
    pub(super) async fn run(&mut self, registry: &Registry) -> anyhow::Result<()> {
        self.show.restart();
        let (daemon, version) = Daemon::start(&self.place).await?;
        let client = daemon.client.clone();
        self.daemon = Some(daemon);
        self.show.step("daemon", &format!("{version} answers"));

        let image = self.pull(&client, registry).await.context("pull the image")?;
        let sandbox = self.sandbox()?;
        let pod = self.run_pod(&client, &sandbox).await.context("run the pod")?;
        let container = self.start_container(&client, &sandbox, &pod, image).await?;
        let greeting = self.greeting().await.context("read the container's log")?;
        self.show.fact("log", "what the container wrote:");
        self.show.quote(&greeting);
        self.exec(&client, &container).await.context("run a command in the container")?;
        self.usage(&client, &pod, &container).await.context("read what the pod uses")?;
        self.stop(&client, &container).await.context("stop the container")
    }

    async fn pull(&mut self, client: &Client, registry: &Registry) -> anyhow::Result<String> {
        let spec = cri::ImageSpec { image: registry.reference(), ..Default::default() };
        let request = cri::PullImageRequest { image: Some(spec.clone()), ..Default::default() };
        let pulled = client.pull_image(request).await?.image_ref;
        let status = cri::ImageStatusRequest { image: Some(spec), ..Default::default() };
        let image = client.image_status(status).await?.image.context("the image is gone")?;
        self.show.step("image", &format!("{} pulled, {}", registry.reference(), show::bytes(image.size)));
        Ok(pulled)
    }

    fn sandbox(&self) -> anyhow::Result<cri::PodSandboxConfig> {
        let options =
            cri::NamespaceOption { pid: cri::NamespaceMode::Container.into(), ..Default::default() };
        let security =
            cri::LinuxSandboxSecurityContext { namespace_options: Some(options), ..Default::default() };
        Ok(cri::PodSandboxConfig {
            metadata: Some(cri::PodSandboxMetadata {
                name: "demo".into(),
                uid: random::hex::<16>()?,
                namespace: "hartpod".into(),
                attempt: 0,
            }),
            hostname: "demo".into(),
            log_directory: self.place.log_directory().to_string_lossy().into_owned(),
            linux: Some(cri::LinuxPodSandboxConfig {
                security_context: Some(security),
                ..Default::default()
            }),
            ..Default::default()
        })
    }

    async fn run_pod(&mut self, client: &Client, sandbox: &cri::PodSandboxConfig) -> anyhow::Result<String> {
        let request = cri::RunPodSandboxRequest { config: Some(sandbox.clone()), ..Default::default() };
        let pod = client.run_pod_sandbox(request).await?.pod_sandbox_id;
        self.show.step("pod", &format!("{:.12} ready, with a network of its own", pod));
        Ok(pod)
    }

    async fn start_container(
        &mut self,
        client: &Client,
        sandbox: &cri::PodSandboxConfig,
        pod: &str,
        image: String,
    ) -> anyhow::Result<String> {
        let security = confined(cri::NamespaceOption {
            pid: cri::NamespaceMode::Container.into(),
            ..Default::default()
        });
        let config = cri::ContainerConfig {
            metadata: Some(cri::ContainerMetadata { name: "greeter".into(), attempt: 0 }),
            image: Some(cri::ImageSpec { image, ..Default::default() }),
            log_path: LOG.into(),
            linux: Some(cri::LinuxContainerConfig {
                resources: Some(cri::LinuxContainerResources {
                    memory_limit_in_bytes: MEMORY,
                    ..Default::default()
                }),
                security_context: Some(security),
            }),
            ..Default::default()
        };
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: pod.to_owned(),
            config: Some(config),
            sandbox_config: Some(sandbox.clone()),
        };
        let id = client.create_container(request).await.context("create the container")?.container_id;
        self.show
            .step("container", &format!("{id:.12} created, {} at most", show::bytes(MEMORY.unsigned_abs())));
        let request = cri::StartContainerRequest { container_id: id.clone() };
        client.start_container(request).await.context("start the container")?;
        self.show.step("", "started");
        Ok(id)
    }

    /// Waits for the greeting in the log.
    async fn greeting(&self) -> anyhow::Result<String> {
        let path = self.place.log_directory().join(LOG);
        let deadline = Instant::now() + GREETING;
        loop {
            let text = written(&tokio::fs::read(&path).await.unwrap_or_default());
            if text.lines().any(|l| l.trim_start().starts_with(GREETING_END)) {
                return Ok(text);
            }
            if Instant::now() > deadline {
                bail!("there is no greeting in {}, but: {text:?}", path.display());
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    }

    async fn exec(&mut self, client: &Client, container: &str) -> anyhow::Result<()> {
        let command = ["/demo", "hello", "world"];
        let answer = client
            .exec_sync(cri::ExecSyncRequest {
                container_id: container.to_owned(),
                cmd: command.map(str::to_owned).to_vec(),
                timeout: 10,
            })
            .await?;
        if answer.exit_code != 0 {
            bail!("exit code {}: {}", answer.exit_code, String::from_utf8_lossy(&answer.stderr));
        }
        self.show.step("exec", &format!("{} in the container:", command.join(" ")));
        self.show.quote(&String::from_utf8_lossy(&answer.stdout));
        Ok(())
    }

    async fn usage(&mut self, client: &Client, pod: &str, container: &str) -> anyhow::Result<()> {
        let request = cri::ContainerStatsRequest { container_id: container.to_owned() };
        let stats = client.container_stats(request).await?.stats.unwrap_or_default();
        self.show.fact("uses", &format!("container: {}", describe(&stats)));

        let request = cri::PodSandboxStatusRequest { pod_sandbox_id: pod.to_owned(), verbose: true };
        let info = verbose(client.pod_sandbox_status(request).await?.info)?;
        for (who, pid) in [
            ("pod agent", info["pid"].as_u64()),
            ("daemon", self.daemon.as_ref().and_then(Daemon::pid).map(u64::from)),
        ] {
            if let Some(pss) = pid.and_then(pss) {
                self.show.fact("", &format!("{who}: {} memory (PSS)", show::bytes(pss)));
            }
        }
        Ok(())
    }

    async fn stop(&mut self, client: &Client, container: &str) -> anyhow::Result<()> {
        self.show.restart();
        let request = cri::StopContainerRequest { container_id: container.to_owned(), timeout: GRACE_S };
        client.stop_container(request).await?;
        let request = cri::ContainerStatusRequest { container_id: container.to_owned(), verbose: false };
        let status = client.container_status(request).await?.status.context("it is gone")?;
        if status.exit_code != 0 {
            bail!("it ended with exit code {}", status.exit_code);
        }
        self.show.step("stop", "the container ended, exit code 0");
        Ok(())
    }

    /// Takes back whatever exists, and makes sure of it.
    pub(super) async fn clean_up(mut self) -> anyhow::Result<()> {
        self.show.restart();
        if let Some(daemon) = self.daemon.take() {
            let daemon = match remove_pods(&daemon.client).await {
                Ok(()) => daemon,
                // A new daemon takes over the pods of one that died.
                Err(error) => {
                    tracing::debug!("first attempt: {error:#}");
                    drop(daemon);
                    let (second, _) = Daemon::start(&self.place).await?;
                    remove_pods(&second.client).await?;
                    second
                }
            };
            self.show.step("clean up", "pod removed");
            daemon.stop().await?;
        }
        let mounts = self.place.mounts();
        if !mounts.is_empty() {
            bail!("still mounted: {}", mounts.join(", "));
        }
        let place = self.place;
        let dir = place.dir.display().to_string();
        tokio::task::spawn_blocking(move || place.remove_blocking())
            .await?
            .with_context(|| format!("remove {dir}"))?;
        self.show.step("", "daemon ended, folder removed");
        Ok(())
    }
}

/// The container's log below the pod's.
const LOG: &str = "greeter.log";

async fn remove_pods(client: &Client) -> anyhow::Result<()> {
    for pod in client.list_pod_sandbox(cri::ListPodSandboxRequest::default()).await?.items {
        let pod_sandbox_id = pod.id;
        let stop = cri::StopPodSandboxRequest { pod_sandbox_id: pod_sandbox_id.clone() };
        client.stop_pod_sandbox(stop).await?;
        client.remove_pod_sandbox(cri::RemovePodSandboxRequest { pod_sandbox_id }).await?;
    }
    Ok(())
}

fn written(log: &[u8]) -> String {
    let pieces = Decoder::default().feed(log);
    let bytes: Vec<u8> = pieces.into_iter().flat_map(|p| p.bytes).collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// The JSON of a verbose status.
fn verbose(mut info: std::collections::BTreeMap<String, String>) -> anyhow::Result<serde_json::Value> {
    let text = info.remove("info").context("the status has no details")?;
    serde_json::from_str(&text).context("the status's details are not JSON")
}

fn describe(stats: &cri::ContainerStats) -> String {
    let memory = stats.memory.as_ref().and_then(|m| m.usage_bytes).map(|n| n.value);
    let cpu = stats.cpu.as_ref().and_then(|c| c.usage_core_nano_seconds).map(|n| n.value);
    let mut parts = Vec::new();
    parts.extend(memory.map(|bytes| format!("{} memory", show::bytes(bytes))));
    parts.extend(cpu.map(|nanos| format!("{} CPU", show::time(Duration::from_nanos(nanos)))));
    if parts.is_empty() { "the kernel does not count".to_owned() } else { parts.join(", ") }
}

/// Memory that would be free without this process: its share of what it shares (proc(5), smaps_rollup).
fn pss(pid: u64) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("Pss:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kib| kib * 1024)
}
