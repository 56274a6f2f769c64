//! The agent's side of a container or exec on its way to execve. Every step answers at once: the owner polls the
//! descriptor of whatever stage it holds, and asks again when that is readable.
//!
//! ```text
//! begin_create -> Creating --poll--> Created { waiting, .. } --open_gate--> Starting --poll--> Child
//! begin_exec   -> Execing  --poll--> Executed { child, .. }
//! ```
//!
//! Dropping a stage kills the process that it stands for; its zombie is left to [`crate::reap_orphans`].

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;

use crate::child::Child;
use crate::container_process::ContainerProcess;
use crate::failure::Failure;
use crate::request::ResolvedUser;

/// Why a container was not made.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The child said why.
    #[error(transparent)]
    Failed(#[from] Failure),
    /// The child ended without a word: killed by a memory limit, or by someone.
    #[error("the process that sets up the container died")]
    Died,
    /// What came over the report pipe is not a report.
    #[error("the report of the process that sets up the container makes no sense")]
    Garbled,
    /// Reading the report, or taking over the process, failed.
    #[error("{what}")]
    Agent {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// A container whose set-up is under way.
#[derive(Debug)]
pub struct Creating {
    pub(crate) channel: OwnedFd,
}

/// A container that is complete but for its execve.
#[derive(Debug)]
pub struct Created {
    /// For execs, namespaces of other containers, and its cgroup leaf.
    pub container: Arc<ContainerProcess>,
    /// The process at the gate.
    pub waiting: Waiting,
    /// What it will run as.
    pub user: ResolvedUser,
    /// Odd but handled.
    pub warnings: Vec<String>,
    /// The agent's side of its terminal, with [`crate::Stdio::Tty`].
    pub console: Option<OwnedFd>,
}

/// The process of a created container, waiting for its start.
#[derive(Debug)]
pub struct Waiting {
    pub(crate) child: Child,
}

/// A container whose execve is under way.
#[derive(Debug)]
pub struct Starting {
    pub(crate) channel: OwnedFd,
}

/// An exec that is under way.
#[derive(Debug)]
pub struct Execing {
    pub(crate) channel: OwnedFd,
}

/// A process that runs in a container.
#[derive(Debug)]
pub struct Executed {
    /// The process.
    pub child: Child,
    /// The agent's side of its terminal, with [`crate::Stdio::Tty`].
    pub console: Option<OwnedFd>,
}

impl Creating {
    /// `None`: not yet. After anything else the stage is over.
    ///
    /// # Errors
    /// See [`LaunchError`]; the process is dead or dying then.
    pub fn poll(&mut self) -> Result<Option<Created>, LaunchError> {
        Err(LaunchError::Died)
    }
}

impl Waiting {
    /// The process at the gate: watch it, it may die before its start.
    #[must_use]
    pub fn child(&self) -> &Child {
        &self.child
    }

    /// Lets it go on to execve.
    ///
    /// # Errors
    /// It is dead.
    pub fn open_gate(self) -> Result<Starting, LaunchError> {
        Err(LaunchError::Died)
    }
}

impl Starting {
    /// `None`: not yet. `Some`: execve succeeded, and this is the container's init, a child of this process. Its number
    /// differs from that of the waiting process when the container shares a pid namespace.
    ///
    /// # Errors
    /// `Failed(Failure::Command(_))` when the program cannot be executed.
    pub fn poll(&mut self) -> Result<Option<Child>, LaunchError> {
        Err(LaunchError::Died)
    }
}

impl Execing {
    /// `None`: not yet. `Some`: execve succeeded.
    ///
    /// # Errors
    /// `Failed(Failure::Command(_))` when the program cannot be executed.
    pub fn poll(&mut self) -> Result<Option<Executed>, LaunchError> {
        Err(LaunchError::Died)
    }
}

macro_rules! polled_by_its_channel {
    ($($stage:ident),*) => {$(
        impl AsFd for $stage {
            fn as_fd(&self) -> BorrowedFd<'_> {
                self.channel.as_fd()
            }
        }

        impl AsRawFd for $stage {
            fn as_raw_fd(&self) -> RawFd {
                self.channel.as_raw_fd()
            }
        }
    )*};
}

polled_by_its_channel!(Creating, Starting, Execing);
