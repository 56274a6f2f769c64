//! A pod in a guest that is none, on a node of its own.

use std::sync::Arc;

use hartpod_proto::cri::v1 as cri;
use hartpod_proto::pod::v1 as agent;
use hartpod_proto::{ContainerId, SandboxId};
use hartpod_vm::launcher::STATUS_FILE;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::fake_guest::{self, Behaviour, Vmm};
use crate::agent_client::{AgentClient, Door};
use crate::agent_process::AgentProcess;
use crate::container::{ContainerInfo, ContainerSnapshot, ContainerState};
use crate::guest::VmmControl;
use crate::names::{ConfigHash, ContainerName};
use crate::node::Node;
use crate::pod::{
    self, PodHandle, PodInfo, PodSnapshot, Restored, RestoredContainer, RunningAgent, SandboxState, Word,
};
use crate::records::AgentRecord;
use crate::serve::test_node;

/// Below which no cgroup is ever made.
const PARENT: &str = "/hartpod-unit-test";

/// A pod whose guest is the test's.
pub(super) struct Ward {
    pub(super) guest: Arc<Behaviour>,
    pub(super) pod: PodHandle,
    pub(super) agent: RunningAgent,
    pub(super) node: Arc<Node>,
    _dir: tempfile::TempDir,
}

/// Digits of an id, said once.
pub(super) fn id(digits: &str) -> ContainerId {
    digits.repeat(64 / digits.len()).parse().unwrap()
}

/// A state as an agent tells it.
pub(super) fn told(id: &ContainerId, phase: agent::Phase) -> agent::WatchResponse {
    let state =
        agent::ContainerState { container_id: id.to_string(), phase: phase.into(), ..Default::default() };
    agent::WatchResponse { change: Some(agent::watch_response::Change::Container(state)) }
}

impl Ward {
    /// With these containers, which run.
    pub(super) fn open(vmm: Vmm, word: Word, containers: &[ContainerId]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let node = Arc::new(test_node(dir.path()));
        let info = pod_info();
        let vmm_dir = node.layout.agent(&info.id);
        std::fs::create_dir_all(&vmm_dir).unwrap();
        let guest = fake_guest::serve(&vmm_dir, vmm);
        let client = AgentClient::new(vmm_dir.clone(), Door::Vsock);
        let agent = RunningAgent { client, process: Arc::new(spawn()), vmm: VmmControl::new(vmm_dir) };
        let running = (4..).zip(containers).map(|(slot, id)| running(&node, &info, id, slot));
        let (pod, unborn) = pod::restored_pod(Restored {
            state: SandboxState::Ready,
            reason: String::new(),
            ips: Vec::new(),
            delivered: true,
            agent: Some(agent.clone()),
            word,
            resources: None,
            containers: running.collect(),
            info,
        });
        pod::spawn(node.clone(), unborn);
        Self { guest, pod, agent, node, _dir: dir }
    }

    /// What the VMM has written down.
    pub(super) fn write_status(&self, status: &str) {
        std::fs::write(self.node.layout.agent(&self.pod.info.id).join(STATUS_FILE), status).unwrap();
    }

    pub(super) fn snapshot(&self) -> Arc<PodSnapshot> {
        self.pod.snapshot()
    }

    pub(super) fn state_of(&self, id: &ContainerId) -> Option<ContainerState> {
        self.snapshot().container(id).map(|container| container.state)
    }
}

impl Drop for Ward {
    fn drop(&mut self) {
        let _ = self.agent.process.kill();
    }
}

fn pod_info() -> Arc<PodInfo> {
    let options = cri::NamespaceOption { network: cri::NamespaceMode::Node.into(), ..Default::default() };
    let security =
        cri::LinuxSandboxSecurityContext { namespace_options: Some(options), ..Default::default() };
    let linux = cri::LinuxPodSandboxConfig {
        cgroup_parent: PARENT.into(),
        security_context: Some(security),
        ..Default::default()
    };
    let config = cri::PodSandboxConfig { linux: Some(linux), ..Default::default() };
    let id: SandboxId = "ab".repeat(32).parse().unwrap();
    Arc::new(PodInfo {
        id,
        name: pod::pod_name(&config),
        hash: ConfigHash::of(&config),
        handler: "vm".into(),
        config,
        created_at: 1,
        netns: None,
        guest: None,
        selinux_level: None,
    })
}

fn running(node: &Node, pod: &PodInfo, id: &ContainerId, slot: u32) -> RestoredContainer {
    let leaf = node.leaf(PARENT, id.as_str()).unwrap();
    let metadata = Some(cri::ContainerMetadata { name: id.to_string(), attempt: 0 });
    let info = ContainerInfo {
        id: id.clone(),
        pod: pod.id.clone(),
        name: ContainerName { name: id.to_string(), attempt: 0 },
        config: cri::ContainerConfig { metadata, ..Default::default() },
        image_id: "sha256:1".into(),
        image_ref: "sha256:1".into(),
        created_at: 5,
        log_path: None,
        cgroup_path: leaf.cgroup_path().to_owned(),
        slot: Some(slot),
        image_volumes: Vec::new(),
    };
    let snapshot = ContainerSnapshot {
        info: Arc::new(info),
        state: ContainerState::Running,
        stop_signal: 15,
        pid: 7,
        started_at: 6,
        exit: None,
        user: None,
        resources: None,
    };
    RestoredContainer { snapshot, leaf, delivered: true, image_uses: Vec::new(), dirty: false }
}

/// Stands for the VMM.
fn spawn() -> AgentProcess {
    #[allow(clippy::zombie_processes)] // it is reaped by whoever watches it
    let child = std::process::Command::new("/bin/sleep").arg("1000").spawn().unwrap();
    let pidfd = pidfd_open(Pid::from_child(&child), PidfdFlags::empty()).unwrap();
    AgentProcess::watch(AgentRecord { pid: child.id().try_into().unwrap(), start_time: 0 }, pidfd).unwrap()
}
