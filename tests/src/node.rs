//! A node: the real daemon with folders, network and cgroup of its own.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use serde_json::Value;
use tokio::process::{Child, Command};

use crate::client::Client;
use crate::cni::{CniDir, SUBNET};
use crate::eventually::{eventually, patient, within};
use crate::guest;
use crate::pod::PodBuilder;
use crate::process;
use crate::registry;

/// How long a daemon may take from its start to its first answer, and from SIGTERM to its end.
const DAEMON_PATIENCE: Duration = Duration::from_secs(15);
/// How long a CNI plugin may take.
const PLUGIN_PATIENCE: Duration = Duration::from_secs(20);

/// Names another daemon with the same command line: to try the tests themselves on something known.
pub const DAEMON: &str = "HARTPOD_E2E_DAEMON";

/// The folder with `hartpod` and `hartpod-pod`: `HARTPOD_BIN_DIR`, or where `make build` puts them.
pub fn bin_dir() -> PathBuf {
    std::env::var_os("HARTPOD_BIN_DIR").map_or_else(
        || Path::new(env!("CARGO_MANIFEST_DIR")).with_file_name("target").join("hartpod"),
        PathBuf::from,
    )
}

/// A node that is not there yet.
#[derive(Debug)]
pub struct NodeBuilder {
    dir: PathBuf,
    cgroup_root: String,
    network: Option<Value>,
    cni: CniDir,
    settings: String,
    agent: PathBuf,
    plugin_timeout: Duration,
    log_filter: Option<String>,
}

/// A node; clones are handles of the same one.
#[derive(Debug, Clone)]
pub struct Node {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    cgroup_root: String,
    cni: CniDir,
    client: Client,
    image: String,
    log_filter: String,
    uids: AtomicU32,
    /// Guards the daemon's process while tests stop, kill and start it.
    daemon: Mutex<Option<Child>>,
}

impl NodeBuilder {
    /// `dir` is the node's own; `cgroup_root` starts with `/` and holds all its pods' cgroups.
    pub fn new(dir: &Path, cgroup_root: &str) -> Result<Self> {
        for folder in ["root", "state", "logs", "certs.d"] {
            let folder = dir.join(folder);
            fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
        }
        let cni = CniDir::create(&dir.join("cni"))?;
        Ok(Self {
            dir: dir.to_owned(),
            cgroup_root: cgroup_root.to_owned(),
            network: Some(cni.bridge(&[SUBNET])),
            cni,
            settings: String::new(),
            agent: bin_dir().join("hartpod-pod"),
            plugin_timeout: patient(PLUGIN_PATIENCE),
            log_filter: None,
        })
    }

    /// Another CNI configuration, or none at all.
    #[must_use]
    pub fn network(mut self, make: impl FnOnce(&CniDir) -> Option<Value>) -> Self {
        self.network = make(&self.cni);
        self
    }

    /// More lines of config.toml, such as `[images]\nmax_layer_gib = 1`.
    #[must_use]
    pub fn settings(mut self, toml: &str) -> Self {
        toml.clone_into(&mut self.settings);
        self
    }

    /// How long plugins may take, where a test waits for just that.
    #[must_use]
    pub fn plugin_timeout(mut self, limit: Duration) -> Self {
        self.plugin_timeout = limit;
        self
    }

    /// What the daemon logs, in RUST_LOG's words [default: the test's own RUST_LOG, or `info`]
    #[must_use]
    pub fn log_filter(mut self, filter: &str) -> Self {
        self.log_filter = Some(filter.to_owned());
        self
    }

    /// Starts the daemon and waits for its first answer.
    pub async fn start(self) -> Result<Node> {
        let this = &self;
        if let Some(network) = &this.network {
            this.cni.write("10-pods", network)?;
        }
        this.write_registry_hosts()?;
        this.write_config()?;
        let socket = self.dir.join("state/hartpod.sock");
        let node = Node {
            inner: Arc::new(Inner {
                client: Client::new(&socket),
                image: format!("{}/busybox:1", registry::NAME),
                uids: AtomicU32::new(1),
                log_filter: self
                    .log_filter
                    .or_else(|| std::env::var("RUST_LOG").ok())
                    .unwrap_or_else(|| "info".to_owned()),
                daemon: Mutex::new(None),
                dir: self.dir,
                cgroup_root: self.cgroup_root,
                cni: self.cni,
            }),
        };
        node.start().await?;
        Ok(node)
    }

    fn write_registry_hosts(&self) -> Result<()> {
        let dir = self.dir.join("certs.d").join(registry::NAME);
        fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
        let address = registry::ADDRESS;
        let hosts = format!(
            "server = \"http://{address}\"\n[host.\"http://{address}\"]\ncapabilities = [\"pull\", \"resolve\"]\n"
        );
        fs::write(dir.join("hosts.toml"), hosts).context("write hosts.toml")
    }

    fn write_config(&self) -> Result<()> {
        let bin_dirs: Vec<String> =
            self.cni.bin_dirs.iter().map(|dir| format!("{:?}", dir.display().to_string())).collect();
        let hosts = format!("hosts_dir = {:?}", self.dir.join("certs.d"));
        let settings = with_keys(&self.settings, "[images]", &hosts);
        let settings = with_keys(&settings, "[vm]", guest::SETTINGS);
        // Nodes of one test share its loopback.
        let settings = with_keys(&settings, "[metrics]", "listen = \"127.0.0.1:0\"");
        let cni = format!(
            "conf_dir = {:?}\nbin_dirs = [{}]\nplugin_timeout_s = {}",
            self.cni.conf_dir,
            bin_dirs.join(", "),
            self.plugin_timeout.as_secs(),
        );
        let settings = with_keys(&settings, "[cni]", &cni);
        let config = with_keys(&settings, "[pod]", &format!("agent = {:?}\n", self.agent));
        fs::write(self.dir.join("config.toml"), config).context("write config.toml")
    }
}

/// Adds to a section what every node needs; the test may have keys of its own in it.
fn with_keys(settings: &str, section: &str, keys: &str) -> String {
    let keys = format!("{section}\n{keys}");
    if settings.contains(section) { settings.replace(section, &keys) } else { format!("{settings}\n{keys}") }
}

impl Node {
    pub fn client(&self) -> &Client {
        &self.inner.client
    }

    /// The image that containers run when a test names no other.
    pub fn image(&self) -> &str {
        &self.inner.image
    }

    pub fn pod(&self, name: &str) -> PodBuilder {
        PodBuilder::new(self, name)
    }

    pub fn cni(&self) -> &CniDir {
        &self.inner.cni
    }

    pub fn dir(&self) -> &Path {
        &self.inner.dir
    }

    pub fn root(&self) -> PathBuf {
        self.inner.dir.join("root")
    }

    pub fn state(&self) -> PathBuf {
        self.inner.dir.join("state")
    }

    pub fn socket(&self) -> PathBuf {
        self.state().join("hartpod.sock")
    }

    /// Where the daemon puts what removed containers wrote; it is deleted behind the calls.
    pub fn trash(&self) -> PathBuf {
        self.root().join("containers/trash")
    }

    /// Waits until what removed containers wrote is deleted.
    pub async fn trash_is_empty(&self) -> Result<()> {
        let count = async || Ok(fs::read_dir(self.trash()).map_or(0, Iterator::count));
        eventually("the trash to be empty", count, |count| *count == 0).await?;
        Ok(())
    }

    pub fn log_root(&self) -> PathBuf {
        self.inner.dir.join("logs")
    }

    pub fn cgroup_root(&self) -> &str {
        &self.inner.cgroup_root
    }

    pub(crate) fn next_uid(&self, name: &str) -> String {
        format!("{name}-{}", self.inner.uids.fetch_add(1, Ordering::Relaxed))
    }

    fn daemon(&self) -> MutexGuard<'_, Option<Child>> {
        self.inner.daemon.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The daemon's pid, or an error when it does not run.
    pub fn daemon_pid(&self) -> Result<i32> {
        let pid = self.daemon().as_ref().and_then(Child::id).context("the daemon does not run")?;
        i32::try_from(pid).context("pid out of range")
    }

    /// Starts the daemon (again) and waits until it answers.
    pub async fn start(&self) -> Result<()> {
        self.spawn()?;
        let answer = async || {
            if let Some(status) = self.ended()? {
                bail!("the daemon ended at once ({status}):\n{}", self.log_tail(30));
            }
            Ok(self
                .client()
                .version(k8s_cri::v1::VersionRequest::default())
                .await
                .map_err(|status| status.code()))
        };
        let _ = within(DAEMON_PATIENCE, "the daemon's first answer", answer, Result::is_ok).await?;
        Ok(())
    }

    /// Starts the daemon and does not wait for anything.
    pub fn spawn(&self) -> Result<()> {
        let mut daemon = self.daemon();
        if daemon.is_some() {
            bail!("the daemon runs already");
        }
        let log =
            File::options().create(true).append(true).open(self.log_file()).context("open daemon.log")?;
        let state = self.state();
        // Another daemon with the same command line: to try the tests on something known.
        let program =
            std::env::var_os("HARTPOD_E2E_DAEMON").map_or_else(|| bin_dir().join("hartpod"), PathBuf::from);
        let child = Command::new(&program)
            .arg("serve")
            .arg("--config")
            .arg(self.inner.dir.join("config.toml"))
            .arg("--root")
            .arg(self.root())
            .arg("--state")
            .arg(&state)
            .arg("--socket")
            .arg(self.socket())
            .env("RUST_LOG", &self.inner.log_filter)
            .stdin(Stdio::null())
            .stdout(log.try_clone().context("share daemon.log")?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("start {}", program.display()))?;
        *daemon = Some(child);
        Ok(())
    }

    fn ended(&self) -> Result<Option<ExitStatus>> {
        let mut daemon = self.daemon();
        let Some(child) = daemon.as_mut() else { return Ok(None) };
        let status = child.try_wait().context("look at the daemon")?;
        if status.is_some() {
            *daemon = None;
        }
        Ok(status)
    }

    /// kill -9, and waits until it is gone.
    pub async fn kill(&self) -> Result<()> {
        self.end(Signal::SIGKILL).await?;
        Ok(())
    }

    /// Asks the daemon to end and returns how it did. Pods run on.
    pub async fn stop(&self) -> Result<ExitStatus> {
        self.end(Signal::SIGTERM).await
    }

    async fn end(&self, signal: Signal) -> Result<ExitStatus> {
        process::signal(self.daemon_pid()?, signal)?;
        let mut child = self.daemon().take().context("the daemon does not run")?;
        let limit = patient(DAEMON_PATIENCE);
        let end = tokio::time::timeout(limit, child.wait()).await;
        end.with_context(|| format!("the daemon did not end within {limit:?} of {signal}"))?
            .context("wait for the daemon")
    }

    /// kill -9 and a new daemon.
    pub async fn crash(&self) -> Result<()> {
        self.kill().await?;
        self.start().await
    }

    pub fn is_running(&self) -> bool {
        self.daemon().is_some()
    }

    /// Every pod agent that runs in this test's pid namespace.
    pub fn agents(&self) -> Result<Vec<process::Process>> {
        let all = process::all()?.into_iter();
        Ok(all.filter(|one| one.name.starts_with("hartpod-pod") && one.state != 'Z').collect())
    }

    pub fn log_file(&self) -> PathBuf {
        self.inner.dir.join("daemon.log")
    }

    /// The last lines of the daemon's log.
    pub fn log_tail(&self, lines: usize) -> String {
        let text = fs::read_to_string(self.log_file()).unwrap_or_default();
        let all: Vec<&str> = text.lines().collect();
        all[all.len().saturating_sub(lines)..].join("\n")
    }

    /// Stops and removes every pod, as a kubelet does when it drains the node.
    pub async fn remove_all_pods(&self) -> Result<()> {
        for pod in self.client().pods().await.context("ListPodSandbox")? {
            let request = k8s_cri::v1::StopPodSandboxRequest { pod_sandbox_id: pod.id.clone() };
            self.client()
                .stop_pod_sandbox(request)
                .await
                .with_context(|| format!("StopPodSandbox {}", pod.id))?;
            let request = k8s_cri::v1::RemovePodSandboxRequest { pod_sandbox_id: pod.id.clone() };
            self.client()
                .remove_pod_sandbox(request)
                .await
                .with_context(|| format!("RemovePodSandbox {}", pod.id))?;
        }
        Ok(())
    }
}
