//! What is known of a container at one moment.

use std::path::PathBuf;
use std::sync::Arc;

use hartpod_proto::cri::v1 as cri;
use hartpod_proto::pod::v1 as pod;
use hartpod_proto::{ContainerId, SandboxId};

use super::{ContainerState, Exit};
use crate::names::ContainerName;

/// What never changes of a container.
#[derive(Debug)]
pub(crate) struct ContainerInfo {
    pub(crate) id: ContainerId,
    pub(crate) pod: SandboxId,
    pub(crate) name: ContainerName,
    pub(crate) config: cri::ContainerConfig,
    /// Id of the image.
    pub(crate) image_id: String,
    /// A repository digest of the image, or its id.
    pub(crate) image_ref: String,
    /// Nanoseconds since the Unix epoch.
    pub(crate) created_at: i64,
    /// Absolute; none discards the output.
    pub(crate) log_path: Option<PathBuf>,
    /// Path of its leaf below the hierarchies' roots.
    pub(crate) cgroup_path: String,
    /// Where its disk is, in a guest.
    pub(crate) slot: Option<u32>,
    /// Images that it mounts.
    pub(crate) image_volumes: Vec<ImageVolume>,
}

/// An image that a container mounts.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub(crate) struct ImageVolume {
    /// Which of the configuration's mounts it is.
    pub(crate) mount: usize,
    /// Id of the image.
    pub(crate) image_id: String,
}

impl ContainerInfo {
    /// What the request that made it asked for.
    pub(crate) fn resources(&self) -> Option<&cri::LinuxContainerResources> {
        self.config.linux.as_ref()?.resources.as_ref()
    }
}

/// What a container's process runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
}

impl From<pod::ResolvedUser> for User {
    fn from(user: pod::ResolvedUser) -> Self {
        Self { uid: user.uid, gid: user.gid, groups: user.additional_gids }
    }
}

/// A container at one moment.
#[derive(Debug, Clone)]
pub(crate) struct ContainerSnapshot {
    pub(crate) info: Arc<ContainerInfo>,
    pub(crate) state: ContainerState,
    /// Signal that asks it to stop.
    pub(crate) stop_signal: i32,
    /// Pid of its init in the node's pid namespace; 0 when there is none.
    pub(crate) pid: i32,
    /// Nanoseconds since the Unix epoch; 0 when it has not started.
    pub(crate) started_at: i64,
    pub(crate) exit: Option<Exit>,
    pub(crate) user: Option<User>,
    /// What it has since its resources were changed.
    pub(crate) resources: Option<Arc<cri::LinuxContainerResources>>,
}

#[cfg(test)]
pub(crate) fn test_container(
    digits: &str,
    state: ContainerState,
    labels: &[(&str, &str)],
) -> ContainerSnapshot {
    let labels = labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
    let metadata = Some(cri::ContainerMetadata { name: "c".into(), attempt: 0 });
    let info = ContainerInfo {
        id: digits.repeat(64 / digits.len()).parse().unwrap(),
        pod: "ab".repeat(32).parse().unwrap(),
        name: ContainerName { name: "c".into(), attempt: 0 },
        config: cri::ContainerConfig { labels, metadata, ..Default::default() },
        image_id: "sha256:1".into(),
        image_ref: "docker.io/library/a@sha256:2".into(),
        created_at: 5,
        log_path: Some("/var/log/pods/p/c/0.log".into()),
        cgroup_path: "/kubepods/p/c".into(),
        slot: None,
        image_volumes: Vec::new(),
    };
    ContainerSnapshot {
        info: Arc::new(info),
        state,
        stop_signal: 15,
        pid: 7,
        started_at: 6,
        exit: None,
        user: None,
        resources: None,
    }
}
