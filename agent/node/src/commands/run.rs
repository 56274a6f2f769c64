//! `hartpod run`: one pod by hand, through the daemon's socket like any other client.
//!
//! Without `-i` and `-t` the output is taken from the container's log. With one of them the container has no log: `run` attaches to it
//! before it starts, so that nothing it says is missed, and carries bytes between it and the standard streams.

mod ending;
mod input;
mod link;
mod output;
mod pull;
mod request;
mod session;
mod terminal;
mod tls;

use std::io::Write as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::Args;
use hartpod_proto::cri::v1 as cri;

use super::client::Client;
use super::interrupts::Interrupts;
use crate::config::{Config, Overrides};
use crate::random;
use ending::Ending;
use link::Link;
use output::Output;
use session::{Over, Session};
use terminal::{RawTerminal, is_terminal};

/// How often the container is asked about and its log looked at.
const LOOK: Duration = Duration::from_millis(20);

/// One pod by hand.
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Configuration file of the daemon [default: /etc/hartpod/config.toml when it exists]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
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
    /// Give the container what comes on standard input; its end is the end of the container's
    #[arg(short, long)]
    interactive: bool,
    /// Give the container a terminal; with -i it takes over the one on standard input, Ctrl-C included
    #[arg(short, long)]
    tty: bool,
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

impl RunArgs {
    fn is_attached(&self) -> bool {
        self.interactive || self.tty
    }

    fn config(&self) -> anyhow::Result<Config> {
        Ok(Config::load(self.config.as_deref(), Overrides::default())?)
    }
}

/// Runs the pod, shows its output, removes it, and gives the container's exit code.
pub async fn run(args: RunArgs) -> anyhow::Result<ExitCode> {
    if args.tty && !is_terminal() {
        bail!("the input device is not a TTY: -t needs a terminal on standard input");
    }
    let socket = match &args.socket {
        Some(socket) => socket.clone(),
        None => args.config()?.socket,
    };
    let client = Client::new(&socket);
    client
        .version(cri::VersionRequest::default())
        .await
        .with_context(|| format!("no daemon answers at {}: is `hartpod serve` running?", socket.display()))?;
    let mut stop = if args.tty { Interrupts::and_hangups()? } else { Interrupts::new()? };
    let image = tokio::select! {
        image = pull::pull(&client, &args.image) => image?,
        () = stop.next() => bail!("interrupted"),
    };
    let mut pod = Pod::new(client)?;
    let ended = pod.run(&args, image, &mut stop).await;
    let removed = pod.remove().await;
    if let (Err(_), Err(error)) = (&ended, &removed) {
        let _ = writeln!(std::io::stderr(), "hartpod: {error:#}");
    }
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
        let sandbox = request::sandbox(args, &self.name, &self.log_directory)?;
        let request = cri::RunPodSandboxRequest {
            config: Some(sandbox.clone()),
            runtime_handler: args.handler.clone(),
        };
        let pod = self.client.run_pod_sandbox(request).await.context("run the pod")?.pod_sandbox_id;
        self.id = Some(pod.clone());
        let request = cri::CreateContainerRequest {
            pod_sandbox_id: pod,
            config: Some(request::container(args, image)),
            sandbox_config: Some(sandbox),
        };
        let container =
            self.client.create_container(request).await.context("create the container")?.container_id;
        let mut ending = Ending::new(self.client.clone(), container.clone());
        if args.is_attached() {
            self.talk(args, &container, &mut ending, stop).await?;
            return self.follow(&container, None, ending, stop).await;
        }
        self.start(&container).await?;
        let output = Output::open(&self.log_directory.join(request::LOG))?;
        self.follow(&container, Some(output), ending, stop).await
    }

    async fn start(&self, container: &str) -> anyhow::Result<()> {
        let request = cri::StartContainerRequest { container_id: container.to_owned() };
        self.client.start_container(request).await.context("start the container")?;
        Ok(())
    }

    /// Starts the container, attached to it, and carries bytes both ways until its streams are over. Then the terminal is as it was.
    async fn talk(
        &self,
        args: &RunArgs,
        container: &str,
        ending: &mut Ending,
        stop: &mut Interrupts,
    ) -> anyhow::Result<()> {
        let request = cri::AttachRequest {
            container_id: container.to_owned(),
            stdin: args.interactive,
            stdout: true,
            // A terminal's errors come with its output.
            stderr: !args.tty,
            tty: args.tty,
        };
        let url = self.client.attach(request).await.context("attach to the container")?.url;
        let link = Link::open(&url, args).await.context("attach to the container")?;
        let session = Session::new(link, args).await?;
        self.start(container).await?;
        // Only now: until then Ctrl-C is for this program.
        let raw = (args.interactive && args.tty).then(RawTerminal::enter).transpose();
        let _raw = raw.context("take over the terminal")?;
        let mut session = std::pin::pin!(session.carry());
        loop {
            tokio::select! {
                () = stop.next() => ending.ask(),
                asked = ending.asked() => asked?,
                over = &mut session => {
                    if over? == Over::Left {
                        ending.begin();
                    }
                    return Ok(());
                }
            }
        }
    }

    /// Shows the output until the container has ended; an interrupt, or nobody who reads, makes it end.
    async fn follow(
        &self,
        container: &str,
        mut output: Option<Output>,
        mut ending: Ending,
        stop: &mut Interrupts,
    ) -> anyhow::Result<ExitCode> {
        loop {
            tokio::select! {
                () = stop.next() => ending.ask(),
                asked = ending.asked() => asked?,
                () = tokio::time::sleep(LOOK) => {}
            }
            // Asked before the log is read: what was written before the end is then in it.
            let status = self.status(container).await?;
            if output.as_mut().is_some_and(|output| output.copy().is_err()) {
                ending.begin();
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

async fn remove(client: &Client, pod_sandbox_id: String) -> anyhow::Result<()> {
    let stop = cri::StopPodSandboxRequest { pod_sandbox_id: pod_sandbox_id.clone() };
    client.stop_pod_sandbox(stop).await.with_context(|| format!("stop the pod {pod_sandbox_id}"))?;
    let remove = cri::RemovePodSandboxRequest { pod_sandbox_id: pod_sandbox_id.clone() };
    client.remove_pod_sandbox(remove).await.with_context(|| format!("remove the pod {pod_sandbox_id}"))?;
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
}
