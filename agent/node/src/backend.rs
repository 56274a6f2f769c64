//! What can run a pod: the node knows a backend by this trait, and the runtime handler's name picks one.

mod host;
mod vm;

use std::fmt::Debug;
use std::fs::File;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use hartpod_container::cgroup::{CgroupError, Leaf};
use hartpod_container::launcher::{self, LauncherError};
use hartpod_vm::tap::Tap;

pub(crate) use vm::VmBackend;

use self::host::HostBackend;
use crate::agent_client::Door;
use crate::config::{Config, NoAgent, NoVmm};
use crate::pod::PodInfo;
use crate::records::AgentRecord;

/// Runtime handlers of namespace pods; the kubelet sends "" for pods without a RuntimeClass.
const HOST: [&str; 2] = ["", "container"];
/// Of pods in guests.
const VM: &str = "vm";
/// What an agent or a VMM has to say outside of its protocols, below its folder.
pub(crate) const LOG: &str = "agent.log";

/// Starts the agents of pods, finds them again, and knows why they ended. The process that it starts is the agent itself, or the VMM that
/// the agent is inside of.
pub(crate) trait Backend: Debug + Send + Sync {
    /// Starts an agent with its sockets in `dir` and its process in `leaf`, which is made.
    fn start_blocking(&self, pod: &PodInfo, dir: &Path, leaf: &Leaf) -> Result<StartedAgent, StartError>;

    /// Waits until the agent that was just started takes calls.
    fn await_ready_blocking(&self, _dir: &Path, _process: BorrowedFd<'_>) -> Result<(), StartError> {
        Ok(())
    }

    /// How its agents are reached.
    fn door(&self) -> Door;

    /// The agent of an earlier daemon, if it still runs.
    fn adopt_blocking(&self, record: AgentRecord) -> Option<StartedAgent> {
        launcher::adopt(record.pid, record.start_time).map(started)
    }
}

/// Why an agent whose folder is `dir` has ended, or its guest, as far as it said so itself.
pub(crate) fn last_words_blocking(handler: &str, dir: &Path) -> Option<String> {
    match is_guest(handler) {
        true => vm::last_words_blocking(dir),
        false => last_said_blocking(dir).map(|line| format!("it last said: {line}")),
    }
}

/// An agent's process.
#[derive(Debug)]
pub(crate) struct StartedAgent {
    pub(crate) record: AgentRecord,
    /// Readable once it has ended.
    pub(crate) pidfd: OwnedFd,
    /// The other end of a new guest's network card, until it is connected.
    pub(crate) tap: Option<Tap>,
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
    #[error(transparent)]
    Vm(Box<vm::VmStartError>),
}

/// A runtime handler that is not there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoHandler {
    #[error("runtime handler {VM:?}: guests run on riscv64 only, by its H extension")]
    Architecture,
    #[error("runtime handler {VM:?}")]
    NoVmm(#[source] NoVmm),
    #[error("no runtime handler {name:?}; there is \"container\" (also \"\") and {VM:?}")]
    Unknown { name: String },
}

/// Why there are no backends.
#[derive(Debug, thiserror::Error)]
pub enum BackendsError {
    #[error(transparent)]
    NoAgent(#[from] NoAgent),
    #[error(transparent)]
    Agent(#[from] LauncherError),
}

/// All backends of this node.
#[derive(Debug)]
pub(crate) struct Backends {
    host: HostBackend,
    vm: Result<VmBackend, NoHandler>,
}

impl Backends {
    /// Loads the pod agent's program.
    pub(crate) fn open_blocking(config: &Config) -> Result<Self, BackendsError> {
        let vm = if cfg!(target_arch = "riscv64") {
            Ok(VmBackend::new(config))
        } else {
            Err(NoHandler::Architecture)
        };
        Ok(Self { host: HostBackend::open_blocking(&config.pod.agent_path()?)?, vm })
    }

    /// The backend behind a runtime handler.
    pub(crate) fn of(&self, handler: &str) -> Result<&dyn Backend, NoHandler> {
        match handler {
            name if HOST.contains(&name) => Ok(&self.host),
            VM => self.vm.as_ref().map(|vm| vm as &dyn Backend).map_err(Clone::clone),
            name => Err(NoHandler::Unknown { name: name.to_owned() }),
        }
    }

    /// The backend of guests, if `handler` is theirs.
    pub(crate) fn guests(&self, handler: &str) -> Option<&VmBackend> {
        self.vm.as_ref().ok().filter(|_| is_guest(handler))
    }

    /// The names of the runtime handlers of this node: guests' while there is a VMM to start.
    pub(crate) fn handlers(&self) -> Vec<&'static str> {
        let guests = self.vm.as_ref().is_ok_and(|vm| vm.program().is_ok());
        HOST.into_iter().chain(guests.then_some(VM)).collect()
    }
}

/// Whether pods of this runtime handler are guests.
pub(crate) fn is_guest(handler: &str) -> bool {
    handler == VM
}

fn started(agent: launcher::AgentProcess) -> StartedAgent {
    let record = AgentRecord { pid: agent.pid, start_time: agent.start_time };
    StartedAgent { record, pidfd: agent.pidfd, tap: None }
}

/// A file, not the daemon's own stderr: the agent outlives the daemon, and whoever reads that.
pub(crate) fn log_file(path: &Path) -> Result<File, StartError> {
    let log = File::options().create(true).append(true).open(path);
    log.map_err(|source| StartError::Log { path: path.to_owned(), source })
}

/// What an agent or a VMM last wrote to its log.
fn last_said_blocking(dir: &Path) -> Option<String> {
    const TAIL: u64 = 1024;
    last_line_blocking(&dir.join(LOG), TAIL).map(|line| printable(&line))
}

/// The last line of a file that is not empty, as far as it is within the last `tail` bytes.
fn last_line_blocking(path: &Path, tail: u64) -> Option<String> {
    use std::io::{Read as _, Seek as _, SeekFrom};

    let mut file = File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(tail))).ok()?;
    let mut end = Vec::new();
    file.take(tail).read_to_end(&mut end).ok()?;
    let text = String::from_utf8_lossy(&end);
    text.lines().rev().map(str::trim).find(|l| !l.is_empty()).map(str::to_owned)
}

/// What others said, without what a terminal would obey, and which may be a guest's choice.
pub(crate) fn printable(text: &str) -> String {
    let obeyed = |c: char| {
        c.is_control()
            || matches!(c, '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
    };
    text.chars().map(|c| if obeyed(c) { ' ' } else { c }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_line_of_a_log_is_the_last_word() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join(LOG);
        assert_eq!(last_said_blocking(dir.path()), None);
        std::fs::write(&log, format!("{}\nlast words\n\n", "x".repeat(5000))).unwrap();
        assert_eq!(last_said_blocking(dir.path()).unwrap(), "last words");
        assert_eq!(last_words_blocking("", dir.path()).unwrap(), "it last said: last words");
    }

    #[test]
    fn what_a_terminal_would_obey_is_not_passed_on() {
        assert_eq!(printable("a\u{1b}[2Jb\u{9b}c\rd\u{202e}e \u{e9}"), "a [2Jb c d e \u{e9}");
    }

    #[test]
    fn a_handler_that_is_not_there_is_named_with_those_that_are() {
        let text = NoHandler::Unknown { name: "kata".into() }.to_string();
        assert_eq!(text, "no runtime handler \"kata\"; there is \"container\" (also \"\") and \"vm\"");
    }
}
