//! What is known of a pod at one moment.

use std::net::IpAddr;
use std::sync::Arc;

use hartpod_proto::ContainerId;
use hartpod_proto::cri::v1 as cri;

use super::{PodInfo, SandboxState};
use crate::agent_client::AgentClient;
use crate::agent_process::AgentProcess;
use crate::container::ContainerSnapshot;
use crate::guest::VmmControl;
use crate::records::PodResources;

/// The pod's agent.
#[derive(Debug, Clone)]
pub(crate) struct RunningAgent {
    pub(crate) client: AgentClient,
    pub(crate) process: Arc<AgentProcess>,
    /// Of one in a guest: what is asked of the VMM.
    pub(crate) vmm: VmmControl,
}

/// A pod at one moment. Lists and status calls are answered from it.
#[derive(Debug, Clone)]
pub(crate) struct PodSnapshot {
    pub(crate) info: Arc<PodInfo>,
    pub(crate) state: SandboxState,
    /// Why it is not ready, or empty.
    pub(crate) reason: String,
    pub(crate) ips: Vec<IpAddr>,
    /// What the network's plugins are not content with, or empty.
    pub(crate) network_warning: String,
    pub(crate) agent: Option<RunningAgent>,
    /// What it was told of its size since its start.
    pub(crate) resources: Option<Arc<PodResources>>,
    /// In the order of their creation.
    pub(crate) containers: Vec<Arc<ContainerSnapshot>>,
}

impl PodSnapshot {
    /// What the kubelet calls its state; nothing while it is brought up.
    pub(crate) fn cri_state(&self) -> Option<cri::PodSandboxState> {
        match self.state {
            SandboxState::Starting => None,
            SandboxState::Ready => Some(cri::PodSandboxState::SandboxReady),
            SandboxState::Silent
            | SandboxState::NotReady
            | SandboxState::Stopping
            | SandboxState::Stopped
            | SandboxState::Removing => Some(cri::PodSandboxState::SandboxNotready),
        }
    }

    /// The container, if it is one of this pod and was made.
    pub(crate) fn container(&self, id: &ContainerId) -> Option<&Arc<ContainerSnapshot>> {
        self.containers.iter().find(|c| c.info.id == *id)
    }
}

#[cfg(test)]
pub(crate) fn test_pod(digits: &str, state: SandboxState, labels: &[(&str, &str)]) -> PodSnapshot {
    use crate::names::ConfigHash;

    let config = cri::PodSandboxConfig {
        metadata: Some(cri::PodSandboxMetadata {
            name: "web".into(),
            uid: "u".into(),
            namespace: "default".into(),
            attempt: 1,
        }),
        labels: labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        ..Default::default()
    };
    let info = PodInfo {
        id: digits.repeat(64 / digits.len()).parse().unwrap(),
        name: super::info::pod_name(&config),
        hash: ConfigHash::of(&config),
        handler: String::new(),
        config,
        created_at: 3,
        netns: Some("/var/run/netns/hartpod-x".into()),
        guest: None,
        selinux_level: None,
    };
    PodSnapshot {
        info: Arc::new(info),
        state,
        reason: String::new(),
        ips: vec!["10.0.0.2".parse().unwrap(), "fd00::2".parse().unwrap()],
        network_warning: String::new(),
        agent: None,
        resources: None,
        containers: Vec::new(),
    }
}
