//! RunPodSandbox: from a configuration to a pod that takes containers.
//!
//! The network and the agent are made side by side; the agent enters the network namespace as soon as that exists, while the CNI
//! plugins still work on it. Whatever fails, everything made so far is given back by the same steps as in StopPodSandbox.

mod error;
pub(super) mod in_guest;

use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hartpod_cni::{Attachment, netns};
use hartpod_container::cgroup::{Limits, PathError};
use hartpod_container::{IdMaps, IdRange, UserNamespace};
use hartpod_proto::SandboxId;
use hartpod_proto::pod::v1 as agent;
use hartpod_vm::tap::Tap;

pub(crate) use error::RunError;

use super::files;
use super::info::mode;
use super::network;
use super::teardown::{HeldAgent, Holdings, TearDownError, tear_down};
use super::{PodInfo, RunningAgent};
use crate::agent_client::AgentClient;
use crate::agent_process::AgentProcess;
use crate::backend::StartedAgent;
use crate::guest::VmmControl;
use crate::laps::Laps;
use crate::node::Node;
use crate::records::{PodRecord, PodStage, VERSION};
use crate::selinux::{self, SeLinux};
use crate::spec::{pod_hostname, pod_labels_blocking};
use crate::trace::step;

/// A pod that is up.
#[derive(Debug)]
pub(super) struct Up {
    pub(super) agent: RunningAgent,
    pub(super) ips: Vec<IpAddr>,
}

/// Brings a pod up, or undoes what was done.
pub(super) async fn bring_up(node: &Arc<Node>, info: &Arc<PodInfo>) -> Result<Up, RunError> {
    let mut held = Holdings {
        id: info.id.clone(),
        agent: HeldAgent::None,
        leaves: vec![own_leaf(node, info).map_err(RunError::CgroupParent)?],
        attachment: network::attachment(info).map_err(RunError::InvalidNetwork)?,
        state_dir: node.layout.agent(&info.id),
    };
    let error = match steps(node, info, &mut held).await {
        Ok(up) => return Ok(up),
        Err(error) => error,
    };
    match undo(node, held).await {
        Ok(()) => Err(error),
        Err(left) => Err(RunError::Left { error: Arc::new(error), left }),
    }
}

/// The cgroup leaf of the pod's agent, or of its VMM: what the pod costs besides its containers is counted there, and whatever is in it goes
/// with the pod.
pub(crate) fn own_leaf(node: &Node, info: &PodInfo) -> Result<hartpod_container::cgroup::Leaf, PathError> {
    node.leaf(info.cgroup_parent(), info.id.as_str())
}

async fn undo(node: &Arc<Node>, held: Holdings) -> Result<(), TearDownError> {
    let id = held.id.clone();
    tear_down(node, held).await?;
    let node = node.clone();
    let removed = tokio::task::spawn_blocking(move || node.records.remove_pod_blocking(&id)).await;
    if let Ok(Err(error)) = removed {
        // The next start finds a pod that never was, and removes it.
        tracing::warn!(error = %crate::chain(&error), "record of a pod that failed stays");
    }
    Ok(())
}

async fn steps(node: &Arc<Node>, info: &Arc<PodInfo>, held: &mut Holdings) -> Result<Up, RunError> {
    let mut laps = Laps::start();
    record(node, info, None, &[]).await?;
    laps.note("record");
    let up = match info.is_guest() {
        false => on_host(node, info, held, &mut laps).await?,
        true => in_guest::steps(node, info, held, &mut laps).await?,
    };
    record(node, info, Some(&up.agent), &up.ips).await?;
    laps.note("record");
    tracing::debug!(sandbox = %info.id, %laps, "brought up");
    Ok(up)
}

async fn on_host(
    node: &Arc<Node>,
    info: &Arc<PodInfo>,
    held: &mut Holdings,
    laps: &mut Laps,
) -> Result<Up, RunError> {
    // Both are awaited to their end even when one fails, so that there is something definite to undo.
    let (netns, agent) = tokio::join!(
        step("make network namespace", make_netns(info)),
        step("start agent", start_agent(node, info))
    );
    let (agent, _) = agent?;
    held.agent = HeldAgent::Running(Box::new(agent.clone()), None);
    netns?;
    laps.note("netns and start of the agent");
    let request = host_request(node, info, files_label_of(node, info).await?);
    let (ips, set_up) = tokio::join!(
        attach(node, info, held.attachment.as_ref()),
        set_up(node, info, &agent.client, request)
    );
    let ips = ips?;
    set_up?;
    laps.note("network and setup");
    Ok(Up { agent, ips })
}

/// Before anything is made (`agent` is none), and again when everything is.
async fn record(
    node: &Arc<Node>,
    info: &Arc<PodInfo>,
    agent: Option<&RunningAgent>,
    ips: &[IpAddr],
) -> Result<(), RunError> {
    let record = PodRecord {
        version: VERSION,
        id: info.id.clone(),
        stage: if agent.is_some() { PodStage::Up } else { PodStage::Starting },
        delivered: false,
        handler: info.handler.clone(),
        created_at: info.created_at,
        epoch: node.epoch.clone(),
        agent: agent.map(|a| a.process.record),
        netns: info.netns.clone(),
        ips: ips.to_vec(),
        config: info.config.clone(),
        vmm_uid: info.guest.as_ref().map(|guest| guest.user.uid),
        guest: info.guest.as_ref().and_then(|guest| guest.ceiling),
        resources: None,
        selinux_level: info.selinux_level().map(str::to_owned),
    };
    let is_up = agent.is_some();
    let (node, info) = (node.clone(), info.clone());
    blocking(&info.id.clone(), move || {
        let dir = node.records.pod_dir(&record.id);
        if is_up {
            files::write_hosts_blocking(&dir, &record.config, &record.ips)
                .map_err(|source| RunError::Files { id: record.id.clone(), source })?;
            label_files_blocking(&node, &info)?;
        }
        let written = node.records.write_pod_blocking(&record);
        written.map_err(|source| RunError::Record { id: record.id.clone(), source })
    })
    .await
}

async fn make_netns(info: &Arc<PodInfo>) -> Result<(), RunError> {
    let Some(path) = info.netns.clone() else { return Ok(()) };
    let (id, users) = (info.id.clone(), info.users());
    blocking(&info.id, move || make_netns_blocking(id, &path, users)).await
}

/// With a user namespace, one that belongs to it, by which the pod's agent finds it.
fn make_netns_blocking(id: SandboxId, path: &Path, users: Option<IdMaps>) -> Result<(), RunError> {
    let made = match users {
        None => netns::create_blocking(path),
        Some(users) => {
            let (_users, network) = UserNamespace::make_with_network(users)
                .map_err(|source| RunError::UserNamespace { id: id.clone(), source })?;
            netns::pin_blocking(path, network.as_fd())
        }
    };
    made.map_err(|source| RunError::Netns { id, source })
}

async fn start_agent(node: &Arc<Node>, info: &Arc<PodInfo>) -> Result<(RunningAgent, Option<Tap>), RunError> {
    let dir = node.layout.agent(&info.id);
    let door = node.backends.of(&info.handler)?.door();
    let started = {
        let (node, info, dir) = (node.clone(), info.clone(), dir.clone());
        blocking(&info.id.clone(), move || start_agent_blocking(&node, &info, dir)).await?
    };
    let process = AgentProcess::watch(started.record, started.pidfd)
        .map_err(|source| RunError::Watch { id: info.id.clone(), source })?;
    let client = AgentClient::new(dir.clone(), door);
    Ok((RunningAgent { client, process: Arc::new(process), vmm: VmmControl::new(dir) }, started.tap))
}

fn start_agent_blocking(node: &Node, info: &PodInfo, dir: PathBuf) -> Result<StartedAgent, RunError> {
    let id = || info.id.clone();
    if let Err(source) = make_state_dir(&dir) {
        return Err(RunError::StateDir { path: dir, source });
    }
    let leaf = own_leaf(node, info).map_err(RunError::CgroupParent)?;
    let backend = node.backends.of(&info.handler)?;
    let limits = match node.backends.guests(&info.handler) {
        Some(guests) => guests.leaf_limits(info).map_err(|source| RunError::Start { id: id(), source })?,
        None => Limits::default(),
    };
    let scope = node.scope_blocking(&leaf, &limits).map_err(|source| RunError::Scope { id: id(), source })?;
    let started =
        backend.start_blocking(info, &dir, &leaf).map_err(|source| RunError::Start { id: id(), source })?;
    drop(scope);
    // While the agent comes to life.
    let files = files::write_blocking(&node.records.pod_dir(&info.id), &info.config)
        .and_then(|()| files::make_log_dir_blocking(&info.config));
    match files {
        Ok(()) => Ok(started),
        Err(source) => {
            // Not watched yet, so it is ended here.
            let _ = rustix::process::pidfd_send_signal(&started.pidfd, rustix::process::Signal::KILL);
            let _ = rustix::process::waitid(
                rustix::process::WaitId::PidFd(std::os::fd::AsFd::as_fd(&started.pidfd)),
                rustix::process::WaitIdOptions::EXITED,
            );
            Err(RunError::Files { id: id(), source })
        }
    }
}

/// 0700: the sockets are the daemon's alone.
fn make_state_dir(dir: &std::path::Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().mode(0o700).create(dir)
}

async fn attach(
    node: &Node,
    info: &PodInfo,
    attachment: Option<&Attachment>,
) -> Result<Vec<IpAddr>, RunError> {
    let Some(attachment) = attachment else { return Ok(Vec::new()) };
    let began = std::time::Instant::now();
    let attached = step("CNI ADD", node.cni.add(attachment)).await;
    node.own_metrics.network("ADD", attached.is_ok(), began.elapsed());
    Ok(attached.map_err(|source| RunError::Network { id: info.id.clone(), source })?.ips)
}

async fn set_up(
    node: &Node,
    info: &PodInfo,
    client: &AgentClient,
    request: agent::SetUpPodRequest,
) -> Result<(), RunError> {
    let answer = client.set_up(request).await;
    let answer = answer.map_err(RunError::SetUp)?;
    node.warn_of(info, answer.warnings);
    Ok(())
}

/// What is the same wherever the agent is.
fn common_request(info: &PodInfo) -> agent::SetUpPodRequest {
    let namespaces = info.namespaces();
    let linux = info.config.linux.as_ref();
    agent::SetUpPodRequest {
        pod_id: info.id.to_string(),
        hostname: pod_hostname(&info.config).unwrap_or_default(),
        ipc: mode(namespaces.ipc).into(),
        pid: mode(namespaces.pid).into(),
        sysctls: linux.map(|l| l.sysctls.clone().into_iter().collect()).unwrap_or_default(),
        ..agent::SetUpPodRequest::default()
    }
}

fn host_request(node: &Node, info: &PodInfo, files_label: Option<String>) -> agent::SetUpPodRequest {
    let path = |path: PathBuf| path.to_string_lossy().into_owned();
    let users = info.users();
    agent::SetUpPodRequest {
        uids: users.as_ref().map(|maps| ranges(maps.uids())).unwrap_or_default(),
        gids: users.as_ref().map(|maps| ranges(maps.gids())).unwrap_or_default(),
        netns_path: info.netns.clone().map(path).unwrap_or_default(),
        cgroup_parent: node.parent(info.cgroup_parent()).to_owned(),
        layers_dir: path(node.images.layers_dir().to_owned()),
        containers_dir: path(node.layout.containers()),
        log_directory: info.config.log_directory.clone(),
        mount_label: files_label.unwrap_or_default(),
        ..common_request(info)
    }
}

fn ranges(ranges: &[IdRange]) -> Vec<agent::IdRange> {
    let range = |r: &IdRange| agent::IdRange { container_id: r.container, host_id: r.host, length: r.length };
    ranges.iter().map(range).collect()
}

/// The SELinux label of the pod's files, where there are any.
async fn files_label_of(node: &Arc<Node>, info: &Arc<PodInfo>) -> Result<Option<String>, RunError> {
    let Some(kernel) = node.spec_settings.selinux.clone() else { return Ok(None) };
    let pod = info.clone();
    let label = move || files_label_blocking(&kernel, &pod);
    blocking(&info.id, label).await.map(Some)
}

fn files_label_blocking(kernel: &SeLinux, info: &PodInfo) -> Result<String, RunError> {
    let labels = pod_labels_blocking(kernel, &info.config, None, info.selinux_level(), false);
    labels.map(|labels| labels.files).map_err(RunError::Label)
}

/// The container's processes have to read what the daemon has written.
fn label_files_blocking(node: &Node, info: &PodInfo) -> Result<(), RunError> {
    let Some(kernel) = node.spec_settings.selinux.as_ref().filter(|_| !info.is_guest()) else {
        return Ok(());
    };
    let label = files_label_blocking(kernel, info)?;
    for file in ["hostname", "hosts", "resolv.conf"] {
        let path = node.records.pod_dir(&info.id).join(file);
        match selinux::label_file_blocking(&path, &label) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(RunError::LabelFile { path, source });
            }
            _ => {}
        }
    }
    Ok(())
}

async fn blocking<T: Send + 'static>(
    id: &SandboxId,
    work: impl FnOnce() -> Result<T, RunError> + Send + 'static,
) -> Result<T, RunError> {
    let outcome = tokio::task::spawn_blocking(work).await;
    outcome.map_err(|source| RunError::BrokenOff { id: id.clone(), source })?
}
