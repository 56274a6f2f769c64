//! What can run a pod: the node knows a backend by this trait, and the runtime handler's name picks one.

use std::fmt::Debug;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use hartpod_container::cgroup::{CgroupError, Leaf, Limits, PathError, Tree};
use hartpod_container::launcher::{self, AgentImage, LauncherError};
use hartpod_proto::SandboxId;

use crate::records::AgentRecord;

/// Runtime handlers that exist; the kubelet sends "" for pods without a RuntimeClass.
pub(crate) const HANDLERS: [&str; 2] = ["", "container"];
/// Pods in lightweight guests, once they are there.
const VM: &str = "vm";
/// What an agent has to say outside of pod/v1, below its folder.
const LOG: &str = "agent.log";

/// Starts the agents of pods, finds them again, and tells what their own resources are counted in.
pub(crate) trait Backend: Debug + Send + Sync {
    /// Starts an agent with its sockets in `dir` and its process in `leaf`, which is made.
    fn start_blocking(&self, dir: &Path, leaf: &Leaf) -> Result<StartedAgent, StartError>;

    /// The agent of an earlier daemon, if it still runs.
    fn adopt_blocking(&self, record: AgentRecord) -> Option<StartedAgent>;

    /// The cgroup leaf of the agent itself: what the pod costs besides its containers is counted there, and whatever is in it
    /// goes with the pod.
    fn own_leaf(&self, cgroups: &Tree, parent: &str, pod: &SandboxId) -> Result<Leaf, PathError>;
}

/// An agent's process.
#[derive(Debug)]
pub(crate) struct StartedAgent {
    pub(crate) record: AgentRecord,
    /// Readable once it has ended.
    pub(crate) pidfd: OwnedFd,
}

/// An agent could not be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error("open {}", path.display())]
    Log { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    #[error(transparent)]
    Launch(#[from] LauncherError),
}

/// A runtime handler that is not there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoHandler {
    #[error("runtime handler {VM:?} is not built yet; there is \"container\" (also \"\")")]
    NotBuilt,
    #[error("no runtime handler {name:?}; there is \"container\" (also \"\")")]
    Unknown { name: String },
}

/// All backends of this node.
#[derive(Debug)]
pub(crate) struct Backends {
    host: HostBackend,
}

impl Backends {
    /// Loads the pod agent's program.
    pub(crate) fn open_blocking(agent: &Path) -> Result<Self, LauncherError> {
        Ok(Self { host: HostBackend { image: AgentImage::load(agent)? } })
    }

    /// The backend behind a runtime handler.
    pub(crate) fn of(&self, handler: &str) -> Result<&dyn Backend, NoHandler> {
        match handler {
            "" | "container" => Ok(&self.host),
            VM => Err(NoHandler::NotBuilt),
            name => Err(NoHandler::Unknown { name: name.to_owned() }),
        }
    }
}

/// Pods as namespaces of this host.
#[derive(Debug)]
struct HostBackend {
    image: AgentImage,
}

impl Backend for HostBackend {
    fn start_blocking(&self, dir: &Path, leaf: &Leaf) -> Result<StartedAgent, StartError> {
        // Born there: moving a process later waits for the kernel, 7 to 14 ms, and until then a crash of ours would leave it
        // in nobody's cgroup.
        for warning in leaf.create(&Limits::default())? {
            tracing::debug!(cgroup = leaf.cgroup_path(), %warning, "cgroup of an agent made");
        }
        let cgroup = leaf.open_unified()?;
        let path = dir.join(LOG);
        // A file, not the daemon's own stderr: the agent outlives the daemon, and whoever reads that.
        let log = std::fs::OpenOptions::new().create(true).append(true).open(&path);
        let log = log.map_err(|source| StartError::Log { path, source })?;
        let agent = launcher::spawn(&self.image, dir, log.as_fd(), Some(cgroup.as_fd()))?;
        Ok(started(agent))
    }

    fn adopt_blocking(&self, record: AgentRecord) -> Option<StartedAgent> {
        launcher::adopt(record.pid, record.start_time).map(started)
    }

    fn own_leaf(&self, cgroups: &Tree, parent: &str, pod: &SandboxId) -> Result<Leaf, PathError> {
        cgroups.leaf(parent, pod.as_str())
    }
}

fn started(agent: launcher::AgentProcess) -> StartedAgent {
    let record = AgentRecord { pid: agent.pid, start_time: agent.start_time };
    StartedAgent { record, pidfd: agent.pidfd }
}

/// The last line that an agent wrote outside of pod/v1, for a word on why it ended.
pub(crate) fn last_words_blocking(dir: &Path) -> Option<String> {
    use std::io::{Read as _, Seek as _, SeekFrom};

    const TAIL: u64 = 1024;
    let mut log = std::fs::File::open(dir.join(LOG)).ok()?;
    let length = log.metadata().ok()?.len();
    log.seek(SeekFrom::Start(length.saturating_sub(TAIL))).ok()?;
    let mut tail = Vec::new();
    log.take(TAIL).read_to_end(&mut tail).ok()?;
    let text = String::from_utf8_lossy(&tail);
    text.lines().rev().map(str::trim).find(|l| !l.is_empty()).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_of_an_agent_is_its_last_word() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(last_words_blocking(dir.path()), None);
        std::fs::write(dir.path().join(LOG), format!("{}\nlast words\n\n", "x".repeat(5000))).unwrap();
        assert_eq!(last_words_blocking(dir.path()).unwrap(), "last words");
    }

    #[test]
    fn a_handler_that_is_not_there_is_named_with_those_that_are() {
        let text = NoHandler::Unknown { name: "kata".into() }.to_string();
        assert_eq!(text, "no runtime handler \"kata\"; there is \"container\" (also \"\")");
        assert!(NoHandler::NotBuilt.to_string().starts_with("runtime handler \"vm\" is not built yet"));
    }
}
