//! Pods as namespaces of this host.

use std::os::fd::AsFd as _;
use std::path::Path;

use hartpod_container::cgroup::{Leaf, Limits};
use hartpod_container::launcher::{self, AgentImage, LauncherError};

use super::{Backend, LOG, StartError, StartedAgent, log_file, started};
use crate::agent_client::Door;
use crate::pod::PodInfo;

#[derive(Debug)]
pub(super) struct HostBackend {
    image: AgentImage,
}

impl HostBackend {
    /// Loads the pod agent's program.
    pub(super) fn open_blocking(agent: &Path) -> Result<Self, LauncherError> {
        Ok(Self { image: AgentImage::load(agent)? })
    }
}

impl Backend for HostBackend {
    fn start_blocking(&self, _: &PodInfo, dir: &Path, leaf: &Leaf) -> Result<StartedAgent, StartError> {
        // Born there: moving a process later waits for the kernel, 7 to 14 ms, and until then a crash of ours would leave it
        // in nobody's cgroup.
        for warning in leaf.create(&Limits::default())? {
            tracing::debug!(cgroup = leaf.cgroup_path(), %warning, "cgroup of an agent made");
        }
        let cgroup = leaf.open_unified()?;
        let log = log_file(&dir.join(LOG))?;
        let agent = launcher::spawn(&self.image, dir, log.as_fd(), Some(cgroup.as_fd()))?;
        Ok(started(agent))
    }

    fn door(&self) -> Door {
        Door::Sockets
    }
}
