//! Runs one plugin: environment and stdin in, exit status and stdout out.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::{Child, Command};
use tokio::time::{sleep, timeout};
use tracing::debug;

use crate::error::paths;

/// Most that a plugin may print to stdout, bytes.
pub(crate) const MAX_STDOUT: usize = 1024 * 1024;

/// What is kept of a plugin's stderr, bytes; the rest is read and dropped.
const MAX_STDERR: usize = 16 * 1024;

/// What is quoted of a plugin's output in an error, characters.
const MAX_QUOTE: usize = 512;

/// How long a plugin's children may keep its stdout open after it exited.
const DRAIN: Duration = Duration::from_secs(1);

/// An installer may be writing the plugin at this moment (ETXTBSY); libcni waits up to five seconds too.
const BUSY_RETRIES: u32 = 20;
const BUSY_PAUSE: Duration = Duration::from_millis(250);

/// The service manager's words to us, which must not reach anyone else.
const NOT_INHERITED: [&str; 6] =
    ["NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "WATCHDOG_USEC", "WATCHDOG_PID"];

/// What a plugin is asked to do (`CNI_COMMAND`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verb {
    /// Join a pod to the network.
    Add,
    /// See whether a pod's network is as it should be.
    Check,
    /// Take a pod from the network.
    Del,
    /// Tell whether ADD would work.
    Status,
    /// Give back what is of none of the pods that are named.
    Gc,
    /// Tell the versions of the spec that it speaks.
    Version,
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Add => "ADD",
            Self::Check => "CHECK",
            Self::Del => "DEL",
            Self::Status => "STATUS",
            Self::Gc => "GC",
            Self::Version => "VERSION",
        })
    }
}

/// A plugin failed.
#[derive(Debug, thiserror::Error)]
#[error("CNI {verb} of plugin `{plugin}`")]
pub struct PluginError {
    /// The plugin's name (`type`).
    pub plugin: String,
    /// What it was asked.
    pub verb: Verb,
    /// How it failed.
    #[source]
    pub failure: Failure,
}

/// How a plugin failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// It is not installed.
    #[error("not found in {}", paths(searched))]
    Missing {
        /// Where it was looked for.
        searched: Vec<PathBuf>,
    },
    /// It could not be started.
    #[error("start {}", path.display())]
    Start {
        /// The executable.
        path: PathBuf,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Waiting for it, or talking to it, failed.
    #[error("wait for the plugin")]
    Wait(#[source] io::Error),
    /// It took too long; it was killed with its process group.
    #[error("no answer within {limit:?}")]
    TimedOut {
        /// How long it had.
        limit: Duration,
    },
    /// It printed too much; it was killed with its process group.
    #[error("more than {MAX_STDOUT} bytes of output")]
    TooMuchOutput,
    /// It said what is wrong.
    #[error("{0}")]
    Refused(Refusal),
    /// It failed without saying why in the way the spec wants.
    #[error("{status} without a CNI error; stdout {stdout:?}, stderr {stderr:?}")]
    Died {
        /// How it ended.
        status: ExitStatus,
        /// The beginning of what it printed.
        stdout: String,
        /// The end of what it printed.
        stderr: String,
    },
    /// It claims success and its output is no result.
    #[error("unusable output {stdout:?}: {problem}")]
    Garbage {
        /// The beginning of what it printed.
        stdout: String,
        /// What is wrong with it.
        problem: String,
    },
}

/// An error as the spec has plugins report it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Refusal {
    /// 0 to 99 are the spec's (7: invalid configuration, 11: try again later), the others the plugin's own.
    pub code: u64,
    /// What is wrong.
    #[serde(default)]
    pub msg: String,
    /// More about it.
    #[serde(default)]
    pub details: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (code {})", quote(&self.msg), self.code)?;
        if !self.details.is_empty() {
            write!(f, ": {}", quote(&self.details))?;
        }
        Ok(())
    }
}

/// One call of a plugin.
#[derive(Debug)]
pub(crate) struct Invocation<'a> {
    pub(crate) verb: Verb,
    pub(crate) path: &'a Path,
    /// The `CNI_*` variables; everything else is inherited, as plugins find iptables and the like by `PATH`.
    pub(crate) env: Vec<(&'static str, String)>,
    pub(crate) stdin: Vec<u8>,
    pub(crate) limit: Duration,
}

/// Looks a plugin up as libcni does: the first folder that has a regular file of that name.
pub(crate) fn find_blocking(name: &str, dirs: &[PathBuf]) -> Result<PathBuf, Failure> {
    let is_file = |path: &PathBuf| std::fs::metadata(path).is_ok_and(|metadata| metadata.is_file());
    let found = dirs.iter().map(|dir| dir.join(name)).find(is_file);
    found.ok_or_else(|| Failure::Missing { searched: dirs.to_vec() })
}

impl Invocation<'_> {
    /// Runs the plugin and returns what it printed. Dropped half way, it kills the plugin.
    pub(crate) async fn run(self) -> Result<Vec<u8>, Failure> {
        let limit = self.limit;
        timeout(limit, self.talk()).await.unwrap_or(Err(Failure::TimedOut { limit }))
    }

    async fn talk(self) -> Result<Vec<u8>, Failure> {
        let mut child = self.start().await?;
        let mut group = Group::of(&child);
        let (mut stdout, mut stderr) = (Vec::new(), Tail::default());
        let (stdin, out, err) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        let streams = async {
            tokio::try_join!(feed(stdin, &self.stdin), read_all(out, &mut stdout), stderr.read(err)).map(drop)
        };
        let status = wait_for(&mut child, &mut group, streams).await?;
        self.judge(status, stdout, stderr)
    }

    async fn start(&self) -> Result<Child, Failure> {
        let mut command = Command::new(self.path);
        for name in NOT_INHERITED {
            command.env_remove(name);
        }
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        // A group of its own, so that a hanging plugin goes together with what it started.
        command.process_group(0);
        let mut retries = 0;
        loop {
            match command.spawn() {
                Ok(child) => return Ok(child),
                Err(e) if e.kind() == io::ErrorKind::ExecutableFileBusy && retries < BUSY_RETRIES => {
                    retries += 1;
                    sleep(BUSY_PAUSE).await;
                }
                Err(source) => return Err(Failure::Start { path: self.path.to_owned(), source }),
            }
        }
    }

    fn judge(&self, status: ExitStatus, stdout: Vec<u8>, stderr: Tail) -> Result<Vec<u8>, Failure> {
        if status.success() {
            if !stderr.kept.is_empty() {
                debug!(plugin = %self.path.display(), verb = %self.verb, stderr = stderr.text(), "plugin said");
            }
            return Ok(stdout);
        }
        match serde_json::from_slice::<Refusal>(&stdout) {
            Ok(refusal) => Err(Failure::Refused(refusal)),
            Err(_) => Err(Failure::Died { status, stdout: quote_bytes(&stdout), stderr: stderr.text() }),
        }
    }
}

/// Waits for the plugin's end and that of its streams, whichever comes last; but not for children that keep a stream.
async fn wait_for(
    child: &mut Child,
    group: &mut Group,
    streams: impl Future<Output = Result<(), Failure>>,
) -> Result<ExitStatus, Failure> {
    let mut streams = std::pin::pin!(streams);
    tokio::select! {
        talked = &mut streams => {
            talked?;
            let status = child.wait().await.map_err(Failure::Wait)?;
            group.disarm();
            Ok(status)
        }
        status = child.wait() => {
            let status = status.map_err(Failure::Wait)?;
            group.disarm();
            if let Ok(talked) = timeout(DRAIN, streams).await {
                talked?;
            }
            Ok(status)
        }
    }
}

async fn feed(stdin: Option<impl tokio::io::AsyncWrite + Unpin>, text: &[u8]) -> Result<(), Failure> {
    let Some(mut stdin) = stdin else { return Ok(()) };
    match stdin.write_all(text).await {
        // A plugin need not read what it does not care about.
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(Failure::Wait(e)),
        _ => Ok(()),
    }
}

async fn read_all(stream: Option<impl AsyncRead + Unpin>, text: &mut Vec<u8>) -> Result<(), Failure> {
    let Some(stream) = stream else { return Ok(()) };
    stream.take(MAX_STDOUT as u64 + 1).read_to_end(text).await.map_err(Failure::Wait)?;
    if text.len() > MAX_STDOUT { Err(Failure::TooMuchOutput) } else { Ok(()) }
}

/// The end of a stream.
#[derive(Debug, Default)]
struct Tail {
    kept: Vec<u8>,
}

impl Tail {
    async fn read(&mut self, stream: Option<impl AsyncRead + Unpin>) -> Result<(), Failure> {
        let Some(mut stream) = stream else { return Ok(()) };
        loop {
            let read = stream.read_buf(&mut self.kept).await.map_err(Failure::Wait)?;
            if read == 0 {
                return Ok(());
            }
            let surplus = self.kept.len().saturating_sub(MAX_STDERR);
            self.kept.drain(..surplus);
        }
    }

    fn text(&self) -> String {
        let text = String::from_utf8_lossy(&self.kept);
        let text = text.trim();
        let surplus = text.chars().count().saturating_sub(MAX_QUOTE);
        text.chars().skip(surplus).collect()
    }
}

/// Kills the plugin's process group unless the plugin was reaped: until then nobody else can have its number.
#[derive(Debug)]
struct Group(Option<Pid>);

impl Group {
    fn of(child: &Child) -> Self {
        Self(child.id().and_then(|id| i32::try_from(id).ok()).map(Pid::from_raw))
    }

    fn disarm(&mut self) {
        self.0 = None;
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(leader) = self.0 {
            // Only fails when there is nothing left to kill. Tokio reaps the child.
            let _ = killpg(leader, Signal::SIGKILL);
        }
    }
}

pub(crate) fn quote_bytes(bytes: &[u8]) -> String {
    quote(&String::from_utf8_lossy(&bytes[..bytes.len().min(4 * MAX_QUOTE)]))
}

/// At most [`MAX_QUOTE`] characters, none of which a terminal or a log would obey.
fn quote(text: &str) -> String {
    let visible = |c: char| if c.is_control() { ' ' } else { c };
    text.trim().chars().take(MAX_QUOTE).map(visible).collect()
}
