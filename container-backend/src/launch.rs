//! The agent's side of a container or exec on its way to execve. Every step answers at once: the owner polls the
//! descriptor of whatever stage it holds, and asks again when that is readable.
//!
//! ```text
//! begin_create -> Creating [--poll_hook_point, pass_hook_point-->] --poll--> Created { waiting, .. } --open_gate--> Starting --poll--> Child
//! begin_exec   -> Execing  --poll--> Executed { child, .. }
//! ```
//!
//! Dropping a stage kills the process that it stands for; its zombie is left to [`crate::reap_orphans`].

use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;

use crate::cgroup::{CgroupError, LimitError, PathError};
use crate::channel::Channel;
use crate::child::Child;
use crate::container_process::ContainerProcess;
use crate::errno::Errno;
use crate::failure::{CommandError, Failure};
use crate::report::{CLONE, Told};
use crate::request::ResolvedUser;
use crate::user_namespace::UserNamespace;

/// Why a container was not made, or a program not executed.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The child said why.
    #[error(transparent)]
    Failed(#[from] Failure),
    /// The spec asks for what is not supported, or makes no sense.
    #[error("the container's spec: {why}")]
    Spec {
        /// The reason.
        why: String,
    },
    /// The name of a cgroup.
    #[error(transparent)]
    CgroupName(#[from] PathError),
    /// A limit that makes no sense.
    #[error(transparent)]
    Limit(#[from] LimitError),
    /// The seccomp profile.
    #[error(transparent)]
    Seccomp(#[from] crate::seccomp::ProfileError),
    /// The cgroup leaf could not be made.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The child ended without a word: killed by a memory limit, or by someone.
    #[error("the process that sets up the container died")]
    Died,
    /// What came over the report pipe is not a report.
    #[error("the report of the process that sets up the container makes no sense")]
    Garbled,
    /// A step on the agent's side.
    #[error("{what}")]
    Agent {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

pub(crate) fn agent<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> LaunchError {
    move |source| LaunchError::Agent { what, source: source.into() }
}

/// A container whose set-up is under way.
#[derive(Debug)]
pub struct Creating {
    pipe: Arc<File>,
    pub(crate) channel: Option<Channel>,
    pub(crate) draft: Option<Draft>,
}

/// What is known of a container before it exists.
#[derive(Debug)]
pub(crate) struct Draft {
    pub(crate) id: hartpod_proto::ContainerId,
    pub(crate) leaf: crate::cgroup::Leaf,
    pub(crate) settings: crate::container::settings::ProcessSettings,
    pub(crate) argv0: String,
    pub(crate) own_cgroup_namespace: bool,
    pub(crate) pid: DraftPid,
    pub(crate) users: Option<Arc<UserNamespace>>,
    pub(crate) gate: OwnedFd,
    pub(crate) warnings: Vec<String>,
}

/// Where the pid namespace will come from.
#[derive(Debug)]
pub(crate) enum DraftPid {
    /// That of the waiting process.
    Own,
    /// The host's.
    Node,
    Joined(Arc<OwnedFd>),
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
    channel: Channel,
    gate: OwnedFd,
    argv0: String,
}

/// A container whose execve is under way.
#[derive(Debug)]
pub struct Starting {
    pipe: Arc<File>,
    channel: Option<Channel>,
    argv0: String,
}

/// An exec that is under way.
#[derive(Debug)]
pub struct Execing {
    pipe: Arc<File>,
    channel: Option<Channel>,
    argv0: String,
    console: Option<OwnedFd>,
    warnings: Vec<String>,
}

/// A process that runs in a container.
#[derive(Debug)]
pub struct Executed {
    /// The process.
    pub child: Child,
    /// The agent's side of its terminal, with [`crate::Stdio::Tty`].
    pub console: Option<OwnedFd>,
    /// Odd but handled.
    pub warnings: Vec<String>,
}

/// A stage was polled after its end.
pub(crate) const OVER: LaunchError = LaunchError::Garbled;

impl Creating {
    pub(crate) fn new(channel: Channel, draft: Draft) -> Self {
        Self { pipe: channel.pipe(), channel: Some(channel), draft: Some(draft) }
    }

    /// `None`: not yet. After anything else the stage is over.
    ///
    /// # Errors
    /// See [`LaunchError`]; the process is dead or dying then.
    pub fn poll(&mut self) -> Result<Option<Created>, LaunchError> {
        let channel = self.channel.as_mut().ok_or(OVER)?;
        let ready = match channel.next()? {
            None => return Ok(None),
            Some(Told::Ready(ready)) => ready,
            Some(Told::Failed(failure)) => return Err(failure.into()),
            Some(Told::End) => return Err(LaunchError::Died),
            Some(_) => return Err(LaunchError::Garbled),
        };
        let (Some(channel), Some(draft)) = (self.channel.take(), self.draft.take()) else { return Err(OVER) };
        let console = channel.take_console().map_err(agent("take over the terminal"))?;
        let pid = channel.child().map_or(0, Child::pid).to_string();
        let namespace =
            |kind| crate::pod::open_namespace(&pid, kind).map_err(agent("open the container's namespaces"));
        let container = ContainerProcess {
            id: draft.id,
            leaf: draft.leaf,
            settings: draft.settings,
            user: ready.user.clone(),
            home: ready.home,
            users: draft.users,
            mounts: namespace("mnt")?,
            cgroup_namespace: draft.own_cgroup_namespace.then(|| namespace("cgroup")).transpose()?,
            pid_namespace: match draft.pid {
                DraftPid::Own => Some(Arc::new(namespace("pid")?)),
                DraftPid::Node => None,
                DraftPid::Joined(namespace) => Some(namespace),
            },
        };
        let warnings = draft.warnings.into_iter().chain(ready.warnings).collect();
        Ok(Some(Created {
            container: Arc::new(container),
            waiting: Waiting { channel, gate: draft.gate, argv0: draft.argv0 },
            user: ready.user,
            warnings,
            console,
        }))
    }
}

impl Waiting {
    /// The process at the gate: watch it, it may die before its start.
    #[must_use]
    pub fn child(&self) -> Option<&Child> {
        self.channel.child()
    }

    /// Lets it go on to execve.
    ///
    /// # Errors
    /// It is dead.
    pub fn open_gate(self) -> Result<Starting, LaunchError> {
        File::from(self.gate).write_all(b"g").map_err(|_| LaunchError::Died)?;
        Ok(Starting { pipe: self.channel.pipe(), channel: Some(self.channel), argv0: self.argv0 })
    }
}

impl Starting {
    /// `None`: not yet. `Some`: execve succeeded, and this is the container's init, a child of this process. Its number
    /// differs from that of the waiting process when the container shares a pid namespace.
    ///
    /// # Errors
    /// `Failed(Failure::Command(_))` when the program cannot be executed.
    pub fn poll(&mut self) -> Result<Option<Child>, LaunchError> {
        let Some(told) = self.channel.as_mut().ok_or(OVER)?.next()? else { return Ok(None) };
        match told {
            Told::End => self.channel.take().ok_or(OVER)?.finish().map(Some),
            other => Err(failure_of(other, &self.argv0)),
        }
    }
}

impl Execing {
    pub(crate) fn new(channel: Channel, argv0: String) -> Self {
        Self { pipe: channel.pipe(), channel: Some(channel), argv0, console: None, warnings: Vec::new() }
    }

    /// `None`: not yet. `Some`: execve succeeded.
    ///
    /// # Errors
    /// `Failed(Failure::Command(_))` when the program cannot be executed.
    pub fn poll(&mut self) -> Result<Option<Executed>, LaunchError> {
        loop {
            let channel = self.channel.as_mut().ok_or(OVER)?;
            match channel.next()? {
                None => return Ok(None),
                Some(Told::Ready(ready)) => {
                    self.console = channel.take_console().map_err(agent("take over the terminal"))?;
                    self.warnings = ready.warnings;
                }
                Some(Told::End) => {
                    let child = self.channel.take().ok_or(OVER)?.finish()?;
                    let (console, warnings) = (self.console.take(), std::mem::take(&mut self.warnings));
                    return Ok(Some(Executed { child, console, warnings }));
                }
                Some(other) => return Err(failure_of(other, &self.argv0)),
            }
        }
    }
}

pub(crate) fn failure_of(told: Told, argv0: &str) -> LaunchError {
    match told {
        Told::Failed(failure) => failure.into(),
        Told::ExecFailed(errno) => {
            Failure::from(CommandError::Refused { name: argv0.to_owned(), errno }).into()
        }
        Told::LastStage(CLONE, Errno::NOMEM) => Failure::PidNamespace.into(),
        Told::LastStage(step, errno) => Failure::Step { step: step.into(), errno }.into(),
        Told::AtHooks | Told::Ready(_) | Told::HandedOver | Told::End => LaunchError::Garbled,
    }
}

macro_rules! polled_by_its_channel {
    ($($stage:ident),*) => {$(
        impl AsFd for $stage {
            /// The descriptor to poll; the same one for all stages of a launch.
            fn as_fd(&self) -> BorrowedFd<'_> {
                self.pipe.as_fd()
            }
        }

        impl AsRawFd for $stage {
            fn as_raw_fd(&self) -> RawFd {
                self.pipe.as_raw_fd()
            }
        }
    )*};
}

polled_by_its_channel!(Creating, Starting, Execing);
