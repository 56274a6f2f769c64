//! Where the demo happens: a folder of its own with a daemon of its own.

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use anyhow::{Context as _, bail};
use hartpod_proto::cri::v1 as cri;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};

use super::super::client::Client;
use super::image::PROGRAM;
use crate::config::{self, Config};
use crate::random;

/// `f_type` of overlayfs (linux/magic.h), which cannot be the upper part of another overlay.
const OVERLAYFS_SUPER_MAGIC: i64 = 0x794c_7630;

/// A daemon that takes longer to answer, or to end, does not do so.
const DAEMON: Duration = Duration::from_secs(15);

/// The plugin's file name, see `demo/main.rs`.
const PLUGIN: &str = "hartpod-demo";

/// The folder, made for this run and removed with it.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) dir: PathBuf,
    pub(super) config: Config,
}

impl Place {
    /// Makes the folder with everything that a daemon needs to know about `registry` (HOST:PORT, plain HTTP).
    pub(super) fn make_blocking(registry: &str) -> anyhow::Result<Self> {
        let dir = base().join(format!("hartpod-demo-{}", random::hex::<4>()?));
        fs::DirBuilder::new().mode(0o700).create(&dir).with_context(|| format!("make {}", dir.display()))?;
        let place = Self { config: config(&dir), dir };
        if let Err(error) = place.fill(registry) {
            let _ = fs::remove_dir_all(&place.dir);
            return Err(error);
        }
        Ok(place)
    }

    fn fill(&self, registry: &str) -> anyhow::Result<()> {
        let write = |path: PathBuf, text: &str| -> anyhow::Result<()> {
            let parent = path.parent().context("a file has a folder")?;
            fs::create_dir_all(parent).with_context(|| format!("make {}", parent.display()))?;
            fs::write(&path, text).with_context(|| format!("write {}", path.display()))
        };
        let server = format!("server = \"http://{registry}\"\n");
        write(self.config.images.hosts_dir.join(registry).join("hosts.toml"), &server)?;
        let network =
            format!(r#"{{"cniVersion":"1.0.0","name":"hartpod-demo","plugins":[{{"type":"{PLUGIN}"}}]}}"#);
        write(self.config.cni.conf_dir.join("10-demo.conflist"), &network)?;
        write(self.config_file(), &toml::to_string(&self.config)?)?;
        fs::create_dir_all(self.log_directory())?;
        let bin = self.config.cni.bin_dirs.first().context("the demo has a folder for its plugin")?;
        fs::create_dir_all(bin)?;
        let plugin = bin.join(PLUGIN);
        fs::write(&plugin, PROGRAM).with_context(|| format!("write {}", plugin.display()))?;
        fs::set_permissions(&plugin, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        Ok(())
    }

    fn config_file(&self) -> PathBuf {
        self.dir.join("config.toml")
    }

    fn daemon_log(&self) -> PathBuf {
        self.dir.join("daemon.log")
    }

    /// Where the pod's logs go.
    pub(super) fn log_directory(&self) -> PathBuf {
        self.dir.join("logs")
    }

    /// The last lines that the daemon logged, for an error.
    pub(super) fn daemon_said(&self) -> String {
        let text = fs::read_to_string(self.daemon_log()).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    /// What is still mounted in the folder.
    pub(super) fn mounts(&self) -> Vec<String> {
        let table = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let dir = self.dir.to_string_lossy();
        let points = table.lines().filter_map(|l| l.split(' ').nth(4));
        points.filter(|p| p.starts_with(&*dir)).map(str::to_owned).collect()
    }

    /// Removes the folder.
    pub(super) fn remove_blocking(&self) -> io::Result<()> {
        fs::remove_dir_all(&self.dir)
    }
}

fn config(dir: &Path) -> Config {
    let state = dir.join("state");
    Config {
        root: dir.join("root"),
        socket: state.join("hartpod.sock"),
        state,
        cni: config::Cni {
            conf_dir: dir.join("cni/conf"),
            bin_dirs: vec![dir.join("cni/bin")],
            ..config::Cni::default()
        },
        images: config::Images { hosts_dir: dir.join("registries"), ..config::Images::default() },
        pod: config::Pod { netns_dir: dir.join("netns"), ..config::Pod::default() },
        metrics: config::Metrics { enabled: false, ..config::Metrics::default() },
        ..Config::default()
    }
}

/// The temporary folder, or, where that is an overlay (as in many containers), a tmpfs.
fn base() -> PathBuf {
    let usable = |dir: &PathBuf| {
        // The type of f_type differs by architecture.
        #[allow(clippy::unnecessary_cast)]
        rustix::fs::statfs(dir).is_ok_and(|s| s.f_type as i64 != OVERLAYFS_SUPER_MAGIC)
    };
    [std::env::temp_dir(), "/run".into(), "/dev/shm".into()]
        .into_iter()
        .find(usable)
        .unwrap_or_else(std::env::temp_dir)
}

/// The demo's daemon: this program again.
#[derive(Debug)]
pub(super) struct Daemon {
    child: Child,
    pub(super) client: Client,
}

impl Daemon {
    /// Starts it and waits until it answers; gives its version.
    pub(super) async fn start(place: &Place) -> anyhow::Result<(Self, String)> {
        let log = fs::File::create(place.daemon_log())?;
        let mut child = Command::new(std::env::current_exe().context("find this program")?)
            .arg("serve")
            .arg("--config")
            .arg(place.config_file())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            // A terminal's Ctrl-C is for the demo, which then ends the daemon in good order.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .context("start the daemon")?;
        let client = Client::new(&place.config.socket);
        let answered = tokio::select! {
            version = first_answer(&client) => version,
            ended = child.wait() => bail!("the daemon ended at once: {}", ended?),
            () = tokio::time::sleep(DAEMON) => bail!("the daemon does not answer"),
        };
        Ok((Self { child, client }, answered))
    }

    /// Its process.
    pub(super) fn pid(&self) -> Option<u32> {
        self.child.id()
    }

    /// Asks it to end, and makes it end when it does not.
    pub(super) async fn stop(mut self) -> anyhow::Result<()> {
        if let Some(pid) = self.child.id().and_then(|p| i32::try_from(p).ok()) {
            kill(Pid::from_raw(pid), Signal::SIGTERM).context("ask the daemon to end")?;
        }
        match tokio::time::timeout(DAEMON, self.child.wait()).await {
            Ok(status) => check(status?),
            Err(_) => {
                self.child.kill().await.context("end the daemon")?;
                bail!("the daemon did not end when asked to")
            }
        }
    }
}

fn check(status: ExitStatus) -> anyhow::Result<()> {
    if status.success() { Ok(()) } else { bail!("the daemon ended badly: {status}") }
}

/// Tries until the socket is there and somebody answers; the caller bounds it.
async fn first_answer(client: &Client) -> String {
    loop {
        if let Ok(answer) = client.version(cri::VersionRequest::default()).await {
            return format!("{} {}", answer.runtime_name, answer.runtime_version);
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
