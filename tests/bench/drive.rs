//! Drives an endpoint as a kubelet would and takes the times.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use hartpod_tests::client::image_spec;
use hartpod_tests::{cri, metrics};
use tonic::{Code, Status};

use crate::endpoint::Endpoint;
use crate::samples::Samples;
use crate::streams::{self, StreamLoad, Streams};
use crate::weigh::{self, Baseline};

/// Pods that are started at the same time in the parallel part.
const PARALLEL: usize = 8;

/// For so long scrapes may have the same answer, which costs nothing.
const SHARED: Duration = Duration::from_millis(1100);

/// What to do.
#[derive(Debug, Clone)]
pub(crate) struct Load {
    pub(crate) pods: u32,
    pub(crate) image: String,
    pub(crate) handler: String,
    pub(crate) streams: StreamLoad,
}

/// What came out.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    pub(crate) name: String,
    pub(crate) pods: u32,
    /// By what was timed; the names sort in the order of a pod's life.
    pub(crate) calls: BTreeMap<&'static str, Samples>,
    pub(crate) pods_per_second: f64,
    pub(crate) cpu_seconds_per_pod: f64,
    /// PSS in KiB of each process of the runtime, by name.
    pub(crate) weights: BTreeMap<String, Vec<u64>>,
    pub(crate) daemon_kib: u64,
    pub(crate) streams: Option<Streams>,
}

/// One pod with one container that runs.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) pod: String,
    pub(crate) container: String,
}

pub(crate) struct Driver<'a> {
    pub(crate) endpoint: &'a Endpoint,
    load: &'a Load,
    /// Guards the samples; pods go up and down at the same time.
    samples: Mutex<BTreeMap<&'static str, Samples>>,
    logs: std::path::PathBuf,
}

/// The order in which the table shows them.
pub(crate) const CALLS: &[&str] = &[
    "RunPodSandbox",
    "CreateContainer",
    "StartContainer",
    "pod up",
    "pod up, host network",
    "ExecSync true",
    "Version",
    "Status",
    "ListPodSandbox",
    "PodSandboxStatus",
    "ListContainers",
    "ContainerStatus",
    "ListContainerStats",
    "scrape of /metrics",
    "ListImages",
    "ImageStatus",
    "PullImage, present",
    "StopContainer",
    "StopPodSandbox",
    "RemovePodSandbox",
    "pod down",
];

/// Takes all figures of one endpoint.
pub(crate) async fn measure(endpoint: &Endpoint, load: &Load) -> Result<Figures> {
    endpoint
        .client
        .pull(&load.image)
        .await
        .with_context(|| format!("{}: pull {}", endpoint.name, load.image))?;
    let logs = std::env::temp_dir().join(format!("hartpod-bench-{}-logs", std::process::id()));
    let driver = Driver { endpoint, load, samples: Mutex::default(), logs };
    let figures = driver.all().await;
    // Logs are worth nothing; their folder may be gone.
    let _ = std::fs::remove_dir_all(&driver.logs);
    figures.with_context(|| endpoint.name.clone())
}

impl Driver<'_> {
    async fn all(&self) -> Result<Figures> {
        // What is done for the first time (caches, chains, a bridge) is not counted.
        let warm = self.up("warm-up", Network::Pod).await?;
        self.down(&warm).await?;
        self.samples().clear();
        let (streams, name) = (self.streams().await?, self.endpoint.name.clone());
        if self.load.pods == 0 {
            return Ok(Figures { name, streams, ..Figures::default() });
        }
        self.samples().clear();

        let baseline = Baseline::now()?;
        let cpu = weigh::machine_cpu_seconds()?;
        let mut running = Vec::new();
        for number in 0..self.load.pods {
            running.push(self.up(&format!("one-{number}"), Network::Pod).await?);
        }
        let cpu = weigh::machine_cpu_seconds()? - cpu;
        self.questions(&running).await?;
        // Let what was just started come to rest: its memory is still being touched.
        tokio::time::sleep(Duration::from_secs(1)).await;
        let weights = baseline.weights()?;
        let daemon_kib = hartpod_tests::process::pss_kib(self.endpoint.daemon).unwrap_or(0);
        for one in &running {
            self.down(one).await?;
        }
        self.host_network().await?;
        let pods_per_second = self.parallel().await?;
        Ok(Figures {
            name,
            pods: self.load.pods,
            calls: std::mem::take(&mut self.samples()),
            pods_per_second,
            cpu_seconds_per_pod: cpu / f64::from(self.load.pods),
            weights,
            daemon_kib,
            streams,
        })
    }

    async fn streams(&self) -> Result<Option<Streams>> {
        match self.load.streams.stream_mib {
            0 => Ok(None),
            _ => streams::measure(self, self.load.streams).await.map(Some),
        }
    }

    fn samples(&self) -> std::sync::MutexGuard<'_, BTreeMap<&'static str, Samples>> {
        self.samples.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    async fn timed<T>(
        &self,
        name: &'static str,
        call: impl Future<Output = Result<T, Status>>,
    ) -> Result<T, Status> {
        let start = Instant::now();
        let answer = call.await?;
        self.samples().entry(name).or_default().add(start.elapsed());
        Ok(answer)
    }

    async fn up(&self, name: &str, network: Network) -> Result<Running> {
        self.up_with(name, network, ["sleep", "100000"]).await
    }

    /// One whose container runs a command.
    pub(crate) async fn up_with<const N: usize>(
        &self,
        name: &str,
        network: Network,
        command: [&str; N],
    ) -> Result<Running> {
        let config = self.pod_config(name, network);
        std::fs::create_dir_all(&config.log_directory)
            .with_context(|| format!("create {}", config.log_directory))?;
        let client = &self.endpoint.client;
        let life = async {
            let run = client.run_pod_sandbox(config.clone(), &self.load.handler);
            let pod = self.timed("RunPodSandbox", run).await?;
            let request = cri::CreateContainerRequest {
                pod_sandbox_id: pod.clone(),
                config: Some(self.container_config(&config, &command)),
                sandbox_config: Some(config.clone()),
            };
            let container = self.timed("CreateContainer", client.create_container(request)).await?;
            let request = cri::StartContainerRequest { container_id: container.clone() };
            self.timed("StartContainer", client.start_container(request)).await?;
            Ok(Running { pod, container })
        };
        let name = match network {
            Network::Pod => "pod up",
            Network::Node => "pod up, host network",
        };
        Ok(self.timed(name, life).await?)
    }

    pub(crate) async fn down(&self, one: &Running) -> Result<()> {
        let client = &self.endpoint.client;
        let life = async {
            let request = cri::StopContainerRequest { container_id: one.container.clone(), timeout: 0 };
            self.timed("StopContainer", client.stop_container(request)).await?;
            let request = cri::StopPodSandboxRequest { pod_sandbox_id: one.pod.clone() };
            self.timed("StopPodSandbox", client.stop_pod_sandbox(request)).await?;
            let request = cri::RemovePodSandboxRequest { pod_sandbox_id: one.pod.clone() };
            self.timed("RemovePodSandbox", client.remove_pod_sandbox(request)).await
        };
        self.timed("pod down", life).await?;
        Ok(())
    }

    /// Everything that is asked of a node while its pods run.
    async fn questions(&self, running: &[Running]) -> Result<()> {
        let client = &self.endpoint.client;
        for round in 0..20 {
            let Some(one) = running.get(round % running.len().max(1)) else { return Ok(()) };
            let cmd = vec!["true".to_owned()];
            let exec = cri::ExecSyncRequest { container_id: one.container.clone(), cmd, timeout: 30 };
            self.timed("ExecSync true", client.exec_sync(exec)).await?;
            self.timed("Version", client.version(cri::VersionRequest::default())).await?;
            self.timed("Status", client.status(cri::StatusRequest::default())).await?;
            self.timed("ListPodSandbox", client.pods()).await?;
            let request = cri::PodSandboxStatusRequest { pod_sandbox_id: one.pod.clone(), verbose: false };
            self.timed("PodSandboxStatus", client.pod_sandbox_status(request)).await?;
            self.timed("ListContainers", client.containers()).await?;
            let request = cri::ContainerStatusRequest { container_id: one.container.clone(), verbose: false };
            self.timed("ContainerStatus", client.container_status(request)).await?;
            self.timed("ListImages", client.list_images(cri::ListImagesRequest::default())).await?;
            self.timed("ImageStatus", client.image(&self.load.image)).await?;
            self.timed("PullImage, present", client.pull(&self.load.image)).await?;
            let stats = client.list_container_stats(cri::ListContainerStatsRequest::default());
            match self.timed("ListContainerStats", stats).await {
                Err(status) if status.code() != Code::Unimplemented => return Err(status.into()),
                _ => {}
            }
            if let Some(address) = &self.endpoint.metrics {
                tokio::time::sleep(SHARED).await;
                let start = Instant::now();
                metrics::scrape_once(address).await?;
                self.samples().entry("scrape of /metrics").or_default().add(start.elapsed());
            }
        }
        Ok(())
    }

    async fn host_network(&self) -> Result<()> {
        let kept = self.samples().clone();
        let mut times = Samples::default();
        for number in 0..10 {
            let start = Instant::now();
            let one = self.up(&format!("host-{number}"), Network::Node).await?;
            times.add(start.elapsed());
            self.down(&one).await?;
        }
        // Calls of these pods would blur the others' medians.
        *self.samples() = kept;
        self.samples().insert("pod up, host network", times);
        Ok(())
    }

    async fn parallel(&self) -> Result<f64> {
        let kept = self.samples().clone();
        let number = (self.load.pods / 8).max(1) * 8;
        let names: Vec<String> = (0..number).map(|number| format!("many-{number}")).collect();
        let start = Instant::now();
        let ups = stream::iter(&names).map(|name| self.up(name, Network::Pod)).buffer_unordered(PARALLEL);
        let running: Vec<Running> = ups.try_collect().await?;
        let per_second = f64::from(number) / start.elapsed().as_secs_f64();
        stream::iter(&running)
            .map(|one| self.down(one))
            .buffer_unordered(PARALLEL)
            .try_collect::<Vec<()>>()
            .await?;
        *self.samples() = kept;
        Ok(per_second)
    }

    fn pod_config(&self, name: &str, network: Network) -> cri::PodSandboxConfig {
        let uid = format!("{name}-{}-{}", std::process::id(), self.endpoint.daemon);
        let options = cri::NamespaceOption {
            network: match network {
                Network::Pod => cri::NamespaceMode::Pod.into(),
                Network::Node => cri::NamespaceMode::Node.into(),
            },
            pid: cri::NamespaceMode::Container.into(),
            ..Default::default()
        };
        let security =
            cri::LinuxSandboxSecurityContext { namespace_options: Some(options), ..Default::default() };
        cri::PodSandboxConfig {
            metadata: Some(cri::PodSandboxMetadata {
                name: name.into(),
                uid: uid.clone(),
                namespace: "bench".into(),
                attempt: 0,
            }),
            // A pod on the node's network has the node's name.
            hostname: if matches!(network, Network::Pod) { name.into() } else { String::new() },
            log_directory: self.logs.join(uid).display().to_string(),
            linux: Some(cri::LinuxPodSandboxConfig {
                security_context: Some(security),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    fn container_config(&self, pod: &cri::PodSandboxConfig, command: &[&str]) -> cri::ContainerConfig {
        let options = pod
            .linux
            .clone()
            .and_then(|linux| linux.security_context)
            .and_then(|security| security.namespace_options);
        let security =
            cri::LinuxContainerSecurityContext { namespace_options: options, ..Default::default() };
        cri::ContainerConfig {
            metadata: Some(cri::ContainerMetadata { name: "idle".into(), attempt: 0 }),
            image: Some(image_spec(&self.load.image)),
            command: command.iter().map(|word| (*word).to_owned()).collect(),
            log_path: "idle.log".into(),
            linux: Some(cri::LinuxContainerConfig { resources: None, security_context: Some(security) }),
            ..Default::default()
        }
    }
}

/// Whose network a pod uses.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Network {
    Pod,
    Node,
}
