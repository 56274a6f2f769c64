//! This process as the agent of one pod.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use crate::child::Child;
use crate::container_process::ContainerProcess;
use crate::host_mounts::HostMounts;
use crate::launch::{Creating, Execing, LaunchError};
use crate::request::{ContainerRequest, ExecRequest, PodSetup};

/// The pod that this process is the agent of: it is in the pod's network, IPC and UTS namespaces, and in a private
/// mount namespace that holds nothing but what containers are made from.
#[derive(Debug)]
pub struct Pod {
    host: HostMounts,
    holder: Option<Child>,
}

/// Why this process could not become the agent of a pod.
#[derive(Debug, thiserror::Error)]
pub enum SetUpError {
    /// The caller has threads, which would stay behind in the old namespaces.
    #[error("the agent has {count} threads, it must have one")]
    Threads {
        /// How many.
        count: usize,
    },
    /// The pod's network namespace file.
    #[error("network namespace {}", .path.display())]
    NetworkNamespace {
        /// On the host.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A folder that the containers are made from.
    #[error("folder {}", .path.display())]
    Folder {
        /// On the host.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A kernel parameter that is not the pod's own to set.
    #[error("sysctl `{key}` does not belong to the pod's own namespaces")]
    ForeignSysctl {
        /// Its name.
        key: String,
    },
    /// A kernel parameter was refused.
    #[error("set sysctl `{key}` to `{value}`")]
    Sysctl {
        /// Its name.
        key: String,
        /// As given.
        value: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// Any other step.
    #[error("{what}")]
    Step {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

impl Pod {
    /// Makes this process the agent of a pod; also returns what was odd but handled. After an error the process is
    /// good for nothing but exiting.
    ///
    /// # Errors
    /// See [`SetUpError`].
    pub fn set_up(setup: PodSetup) -> Result<(Self, Vec<String>), SetUpError> {
        Err(SetUpError::Threads { count: setup.containers_dir.as_os_str().len() })
    }

    /// Init of the shared pid namespace.
    #[must_use]
    pub fn holder(&self) -> Option<&Child> {
        self.holder.as_ref()
    }

    /// The host's mounts, for roles that work on the host's files (log writers).
    #[must_use]
    pub fn host(&self) -> &HostMounts {
        &self.host
    }

    /// Starts making a container: its cgroup leaf is there when this returns, all else is done by a child that the
    /// result stands for. On an error, and after a failure of the later stages, the leaf may exist: destroy it.
    ///
    /// # Errors
    /// The request makes no sense, or the leaf or the child could not be made.
    pub fn begin_create(&self, request: ContainerRequest<'_>) -> Result<Creating, LaunchError> {
        drop(request);
        Err(LaunchError::Died)
    }

    /// Starts one more process in a running container, in a cgroup sub-leaf of its own.
    ///
    /// # Errors
    /// The request makes no sense, or the sub-leaf or the child could not be made.
    pub fn begin_exec(
        &self,
        container: &ContainerProcess,
        request: ExecRequest,
    ) -> Result<Execing, LaunchError> {
        drop((container, request));
        Err(LaunchError::Died)
    }
}

/// Opens the namespace file of a process.
pub(crate) fn open_namespace(pid: &str, kind: &str) -> io::Result<OwnedFd> {
    Ok(std::fs::File::open(format!("/proc/{pid}/ns/{kind}"))?.into())
}
