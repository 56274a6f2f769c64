//! `hartpod run`: one pod by hand, through the daemon's socket like any other client.

mod output;
mod pull;

use std::io::Write as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use hartpod_proto::cri::v1 as cri;

use super::client::Client;
use super::interrupts::Interrupts;
use super::proc_paths::confined;
use crate::config::{Config, Overrides};
use crate::random;
use output::Output;

/// Seconds between asking a container to stop and killing it; a second Ctrl-C kills at once.
const GRACE_S: i64 = 10;

/// How often the container is asked about and its log looked at.
const LOOK: Duration = Duration::from_millis(20);

/// One pod by hand.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// The daemon's socket [default: the one of the configuration]
    #[arg(long, value_name = "FILE")]
    socket: Option<PathBuf>,
    /// Runtime handler, as a RuntimeClass names it [default: the daemon's own]
    #[arg(long, value_name = "NAME", default_value = "", hide_default_value = true)]
    handler: String,
    /// Use the node's network instead of one of the pod's own
    #[arg(long)]
    host_network: bool,
    /// Set an environment variable; may be repeated
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = name_and_value)]
    env: Vec<(String, String)>,
    /// The image, e.g. busybox or registry.example/app:1; pulled unless it is there
    pub image: String,
    /// Program and arguments in place of the image's own
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}

fn name_and_value(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("not NAME=VALUE".to_owned()),
    }
}

/// Runs the pod, shows its output, removes it, and gives the container's exit code.
pub async fn run(args: RunArgs) -> anyhow::Result<ExitCode> {
    let socket = match &args.socket {
        Some(socket) => socket.clone(),
        None => Config::load(None, Overrides::default())?.socket,
    };
    let client = Client::new(&socket);
    client
        .version(cri::VersionRequest::default())
        .await
        .with_context(|| format!("no daemon answers at {}: is `hartpod serve` running?", socket.display()))?;
    let mut stop = Interrupts::new()?;
    let image = tokio::select! {
        image = pull::pull(&client, &args.image) => image?,
        () = stop.next() => bail!("interrupted"),
    };
    let mut pod = Pod::new(client)?;
    let ended = pod.run(&args, image, &mut stop).await;
    let removed = pod.remove().await;
    let code = ended?;
    removed?;
    Ok(code)
}

/// The pod, as far as it exists.
#[derive(Debug)]
struct Pod {
    client: Client,
    name: String,
    log_directory: PathBuf,
    id: Option<String>,
}

/// The container's log below the pod's.
const LOG: &str = "0.log";

impl Pod {
    fn new(client: Client) -> anyhow::Result<Self> {
        let name = format!("run-{}", random::hex::<4>()?);
        let log_directory = std::env::temp_dir().join(format!("hartpod-{name}"));
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(&log_directory)
            .with_context(|| format!("make {}", log_directory.display()))?;
        Ok(Self { client, name, log_directory, id: None })
    }

    async fn run(
        &mut self,
        args: &RunArgs,
        image: String,
        stop: &mut Interrupts,
    ) -> anyhow::Result<ExitCode> {
        let sandbox = sandbox(args, &self.name, &self.log_directory)?;
        let request = cri::RunPodSandboxRequest {
            config: Some(sandbox.clone()),
            runtime_handler: args.handler.clone(),
        };
        let pod = self.client.run_pod_sandbox(request).await.context("run the pod")?.pod_sandbox_id;
        self.id = Some(pod.clone());
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: pod,
            config: Some(container(args, image)),
            sandbox_config: Some(sandbox),
        };
        let container_id =
            self.client.create_container(request).await.context("create the container")?.container_id;
        let request = cri::StartContainerRequest { container_id: container_id.clone() };
        self.client.start_container(request).await.context("start the container")?;
        self.follow(&container_id, stop).await
    }

    /// Shows the output until the container has ended; an interrupt, or nobody who reads, makes it end.
    async fn follow(&self, container: &str, stop: &mut Interrupts) -> anyhow::Result<ExitCode> {
        let mut output = Output::open(&self.log_directory.join(LOG))?;
        let mut grace = GRACE_S;
        let mut stopping = tokio::task::JoinSet::new();
        loop {
            tokio::select! {
                () = stop.next() => {
                    if grace > 0 {
                        let _ = writeln!(std::io::stderr(), "hartpod: asking the container to end; once more kills it");
                    }
                    stopping.spawn(end(self.client.clone(), container.to_owned(), grace));
                    grace = 0;
                }
                Some(ended) = stopping.join_next() => ended??,
                () = tokio::time::sleep(LOOK) => {}
            }
            // Asked before the log is read: what was written before the end is then in it.
            let status = self.status(container).await?;
            if output.copy().is_err() && stopping.is_empty() {
                stopping.spawn(end(self.client.clone(), container.to_owned(), grace));
            }
            if status.state == cri::ContainerState::ContainerExited as i32 {
                return Ok(outcome(&status));
            }
        }
    }

    async fn status(&self, container: &str) -> anyhow::Result<cri::ContainerStatus> {
        let request = cri::ContainerStatusRequest { container_id: container.to_owned(), verbose: false };
        let answer = self.client.container_status(request).await.context("ask about the container")?;
        answer.status.context("the daemon says nothing about the container")
    }

    async fn remove(self) -> anyhow::Result<()> {
        let removed = match self.id {
            Some(id) => remove(&self.client, id).await,
            None => Ok(()),
        };
        let _ = std::fs::remove_dir_all(&self.log_directory);
        removed
    }
}

async fn end(client: Client, container_id: String, timeout: i64) -> anyhow::Result<()> {
    let request = cri::StopContainerRequest { container_id, timeout };
    client.stop_container(request).await.context("stop the container")?;
    Ok(())
}

async fn remove(client: &Client, pod_sandbox_id: String) -> anyhow::Result<()> {
    let stop = cri::StopPodSandboxRequest { pod_sandbox_id: pod_sandbox_id.clone() };
    client.stop_pod_sandbox(stop).await.context("stop the pod")?;
    let remove = cri::RemovePodSandboxRequest { pod_sandbox_id };
    client.remove_pod_sandbox(remove).await.context("remove the pod")?;
    Ok(())
}

/// A container's code as a process's: 128 + signal fits, more does not.
fn outcome(status: &cri::ContainerStatus) -> ExitCode {
    if !matches!(status.reason.as_str(), "" | "Completed" | "Error") {
        let _ =
            writeln!(std::io::stderr(), "hartpod: the container ended: {} {}", status.reason, status.message);
    }
    ExitCode::from(u8::try_from(status.exit_code & 0xff).unwrap_or(u8::MAX))
}

fn pid_of_its_own() -> cri::NamespaceOption {
    cri::NamespaceOption { pid: cri::NamespaceMode::Container.into(), ..Default::default() }
}

fn sandbox(args: &RunArgs, name: &str, log_directory: &Path) -> anyhow::Result<cri::PodSandboxConfig> {
    let mut options = pid_of_its_own();
    if args.host_network {
        options.network = cri::NamespaceMode::Node.into();
    }
    let security =
        cri::LinuxSandboxSecurityContext { namespace_options: Some(options), ..Default::default() };
    Ok(cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: name.to_owned(),
            uid: random::hex::<16>()?,
            namespace: "default".into(),
            attempt: 0,
        }),
        hostname: if args.host_network { String::new() } else { name.to_owned() },
        log_directory: log_directory.to_string_lossy().into_owned(),
        linux: Some(cri::LinuxPodSandboxConfig { security_context: Some(security), ..Default::default() }),
        ..Default::default()
    })
}

fn container(args: &RunArgs, image: String) -> cri::ContainerConfig {
    let mut options = pid_of_its_own();
    if args.host_network {
        options.network = cri::NamespaceMode::Node.into();
    }
    let security = confined(options);
    let env = |(key, value): &(String, String)| cri::KeyValue {
        key: key.clone(),
        value: value.clone().into_bytes(),
    };
    cri::ContainerConfig {
        metadata: Some(cri::ContainerMetadata { name: "main".into(), attempt: 0 }),
        image: Some(cri::ImageSpec { image, user_specified_image: args.image.clone(), ..Default::default() }),
        command: args.command.clone(),
        envs: args.env.iter().map(env).collect(),
        log_path: LOG.into(),
        linux: Some(cri::LinuxContainerConfig { security_context: Some(security), ..Default::default() }),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variable_has_a_name_and_a_value() {
        assert_eq!(name_and_value("A=b=c"), Ok(("A".into(), "b=c".into())));
        assert_eq!(name_and_value("A="), Ok(("A".into(), String::new())));
        assert!(name_and_value("A").is_err());
        assert!(name_and_value("=b").is_err());
    }

    #[test]
    fn what_is_asked_for_passes_the_daemons_own_checks() {
        let args = RunArgs {
            socket: None,
            handler: String::new(),
            host_network: true,
            env: vec![("A".into(), "b".into())],
            image: "busybox".into(),
            command: vec!["ls".into()],
        };
        let sandbox = sandbox(&args, "run-1", Path::new("/tmp/hartpod-run-1")).unwrap();
        crate::validate::sandbox(&sandbox, crate::validate::Kind::Namespaces).unwrap();
        crate::validate::container(&container(&args, "sha256:1".into())).unwrap();
    }
}
