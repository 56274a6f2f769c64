//! CreateContainer: from a configuration to a process that waits to be let go.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hartpod_container::cgroup::{Leaf, LimitError, Limits, PathError};
use hartpod_container::hooks::{Budget, hooks_of};
use hartpod_images::Image;
use hartpod_proto::ContainerId;
use hartpod_proto::pod::v1 as agent;
use tokio::task::JoinError;

use super::{PodInfo, RunningAgent, SandboxState};
use crate::agent_client::AgentError;
use crate::container::ContainerInfo;
use crate::guest::{
    self, DiskError, DiskImages, GuestLog, LogError, LogTokens, MAX_CONTAINERS, Place, VolumeError,
};
use crate::image_use::Busy;
use crate::laps::Laps;
use crate::node::Node;
use crate::poststop::poststop_blocking;
use crate::records::{ContainerRecord, RecordError, VERSION};
use crate::scratch::{self, ScratchError};
use crate::spec::{ContainerPlan, SpecError, SpecInput, container_spec_blocking};
use crate::systemd::{Placeholder, ScopeError, destroy_leaf_blocking};
use crate::trace::step;
use crate::validate::{InvalidRequest, Kind};

/// Where the agent of a guest writes the pod's files (pod.proto).
const GUEST_FILES: &str = "/run/hartpod/files";

/// For the processes of a container that failed to be gone.
const LEAF_END: Duration = Duration::from_secs(10);
/// For the poststop hooks of a container that failed: those before may have used up nearly all of the call's time.
const LAST_HOOKS: Duration = Duration::from_secs(10);

/// A container was not made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CreateError {
    #[error(transparent)]
    Invalid(#[from] InvalidRequest),
    #[error("pod sandbox {pod} is {}{}", state.adjective(), because(reason))]
    PodNotReady { pod: String, state: SandboxState, reason: String },
    #[error("container name {name} is taken by container {holder}")]
    NameTaken { name: String, holder: ContainerId },
    #[error("no image {reference:?}: pull it first")]
    NoImage { reference: String },
    #[error("ImageVolumeMountFailed: config.mounts[{mount}].image: no image {reference:?}: pull it first")]
    NoVolumeImage { mount: usize, reference: String },
    #[error(transparent)]
    ImageBusy(#[from] Busy),
    #[error("container {target:?}, whose pid namespace is to be joined, does not run in this pod")]
    NoTarget { target: String },
    #[error("no random id")]
    NoId(#[source] io::Error),
    #[error("a guest has room for {} containers at a time, and this one has them", MAX_CONTAINERS)]
    NoSlot,
    #[error("disk of container {id}")]
    Disk { id: ContainerId, source: DiskError },
    #[error("volume {} of container {id}", path.display())]
    Volume { id: ContainerId, path: PathBuf, source: VolumeError },
    #[error("log of container {id}")]
    Log { id: ContainerId, source: LogError },
    #[error("cgroup of container {id}")]
    Cgroup { id: ContainerId, source: PathError },
    #[error("cgroup of container {id}")]
    Scope { id: ContainerId, source: ScopeError },
    #[error("limits of container {id}")]
    Limits { id: ContainerId, source: LimitError },
    #[error(transparent)]
    Spec(#[from] SpecError),
    #[error("encode the spec of container {id}")]
    Encode { id: ContainerId, source: serde_json::Error },
    #[error("record of container {id}")]
    Record { id: ContainerId, source: RecordError },
    #[error("writable layer of container {id}")]
    Scratch { id: ContainerId, source: ScratchError },
    /// The agent says what it tried and with which container.
    #[error(transparent)]
    Agent(AgentError),
    #[error("container {id}: work of the daemon broke off")]
    BrokenOff { id: ContainerId, source: JoinError },
}

fn because(reason: &str) -> String {
    if reason.is_empty() { String::new() } else { format!(": {reason}") }
}

/// A container that waits.
#[derive(Debug)]
pub(super) struct Made {
    pub(super) state: agent::ContainerState,
    pub(super) stop_signal: i32,
}

/// What a container is made from.
#[derive(Debug, Clone)]
pub(super) struct Making {
    pub(super) pod: Arc<PodInfo>,
    pub(super) info: Arc<ContainerInfo>,
    pub(super) image: Arc<Image>,
    /// Images that it mounts, as often as it does.
    pub(super) volumes: Vec<Arc<Image>>,
    pub(super) agent: RunningAgent,
    pub(super) leaf: Leaf,
    /// Pid of the container whose pid namespace is joined.
    pub(super) target_pid: Option<u32>,
    /// The highest `oom_score_adj` of the pod's containers, this one's included.
    pub(super) oom_score: i64,
}

/// A container was not made.
#[derive(Debug)]
pub(super) struct NotMade {
    pub(super) error: CreateError,
    /// A slot that its guest may still hold.
    pub(super) held: Option<u32>,
}

/// Makes it, or undoes what was done.
pub(super) async fn make(node: Arc<Node>, making: Making) -> Result<Made, NotMade> {
    match steps(&node, &making).await {
        Ok(made) => Ok(made),
        Err(error) => {
            let held = undo(node, making).await;
            Err(NotMade { error, held })
        }
    }
}

async fn steps(node: &Arc<Node>, making: &Making) -> Result<Made, CreateError> {
    let id = &making.info.id;
    let mut laps = Laps::start();
    let (plan, json) = {
        let (node, making) = (node.clone(), making.clone());
        let planned = async move {
            let planned = tokio::task::spawn_blocking(move || plan_blocking(&node, &making)).await;
            planned.map_err(|source| CreateError::BrokenOff { id: id.clone(), source })?
        };
        step("plan container", planned).await?
    };
    for warning in &plan.warnings {
        node.warn_once(&making.pod.id, warning);
    }
    laps.note("plan and record");
    let stop_signal = plan.stop_signal;
    let answer = match making.info.slot {
        None => {
            let scope = scope(node, making, &plan).await?;
            let bundle = hooks_of(&plan.spec).map(|_| node.records.bundle_dir(&making.pod.id, id));
            let request = agent::CreateContainerRequest {
                bundle: bundle.unwrap_or_default().to_string_lossy().into_owned(),
                ..on_host(making, plan, json)
            };
            let made = making.agent.client.create(request).await;
            // It has a process now, or is to end.
            drop(scope);
            made.map_err(CreateError::Agent)?
        }
        Some(slot) => in_guest(node, making, slot, (plan, json), &mut laps).await?,
    };
    laps.note("agent");
    tracing::debug!(container = %id, %laps, "made");
    node.warn_of(&making.pod, answer.warnings);
    Ok(Made { state: answer.state.unwrap_or_default(), stop_signal })
}

/// With systemd's driver, the cgroup that the agent finds.
async fn scope(
    node: &Arc<Node>,
    making: &Making,
    plan: &ContainerPlan,
) -> Result<Option<Placeholder>, CreateError> {
    if node.systemd.is_none() {
        return Ok(None);
    }
    let id = || making.info.id.clone();
    let resources = plan.spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    let limits = resources.map_or_else(|| Ok(Limits::default()), Limits::from_oci);
    let limits = limits.map_err(|source| CreateError::Limits { id: id(), source })?;
    let (node, leaf) = (node.clone(), making.leaf.clone());
    let made = tokio::task::spawn_blocking(move || node.scope_blocking(&leaf, &limits)).await;
    made.map_err(|source| CreateError::BrokenOff { id: id(), source })?
        .map_err(|source| CreateError::Scope { id: id(), source })
}

/// The record comes before the first thing that it stands for. It is not touched again when the container is made: the agent
/// knows the container from then on, and a daemon that finds the record asks it.
fn plan_blocking(node: &Node, making: &Making) -> Result<(ContainerPlan, Vec<u8>), CreateError> {
    let Making { pod, info, image, agent, target_pid, .. } = making;
    let id = || info.id.clone();
    let plan = container_spec_blocking(&SpecInput {
        sandbox: &pod.config,
        container: &info.config,
        image: &image.config,
        image_name: &info.image_ref,
        image_volumes: &info.image_volumes,
        selinux_level: pod.selinux_level(),
        sandbox_id: &pod.id,
        container_id: &info.id,
        netns: pod.netns.as_deref(),
        agent_pid: u32::try_from(agent.process.record.pid).ok().filter(|_| !pod.is_guest()),
        // The holder is the agent's own business.
        holder_pid: None,
        target_pid: *target_pid,
        sandbox_dir: &if pod.is_guest() { GUEST_FILES.into() } else { node.records.pod_dir(&pod.id) },
        kind: Kind::of(&pod.handler),
        cgroup_path: info.cgroup_path.clone(),
        settings: if pod.is_guest() { &node.guest_spec_settings } else { &node.spec_settings },
    })?;
    let json = serde_json::to_vec(&plan.spec).map_err(|source| CreateError::Encode { id: id(), source })?;
    let record = ContainerRecord {
        version: VERSION,
        id: id(),
        delivered: false,
        created_at: info.created_at,
        started_at: 0,
        exit: None,
        user: None,
        image_id: info.image_id.clone(),
        image_ref: info.image_ref.clone(),
        stop_signal: plan.stop_signal,
        config: info.config.clone(),
        slot: info.slot,
        image_volumes: info.image_volumes.clone(),
        resources: None,
    };
    node.records
        .write_container_blocking(&pod.id, &record)
        .and_then(|()| node.records.write_spec_blocking(&pod.id, &info.id, &json))
        .map_err(|source| CreateError::Record { id: id(), source })?;
    if hooks_of(&plan.spec).is_some() {
        node.records
            .write_bundle_blocking(&pod.id, &info.id, &json)
            .map_err(|source| CreateError::Record { id: id(), source })?;
    }
    scratch::make_blocking(&node.layout.scratch(&info.id))
        .map_err(|source| CreateError::Scratch { id: id(), source })?;
    Ok((plan, json))
}

/// A disk of its own, and a log that the VMM writes.
async fn in_guest(
    node: &Node,
    making: &Making,
    slot: u32,
    (plan, json): (ContainerPlan, Vec<u8>),
    laps: &mut Laps,
) -> Result<agent::CreateContainerResponse, CreateError> {
    let id = || making.info.id.clone();
    let log = |source| CreateError::Log { id: id(), source };
    let vmm = &making.agent.vmm;
    let place = Place { vmm: vmm.clone(), container: id(), slot };
    let disk = DiskImages::new(&making.image, &making.volumes);
    let filled = step("fill disk", guest::fill(node, place, &disk)).await;
    filled.map_err(|source| CreateError::Disk { id: id(), source })?;
    laps.note("disk");
    let process = &making.agent.process;
    if let Err(error) = guest::set_score(process.record.pid, process.pidfd(), making.oom_score) {
        let warning = format!("oom_score_adj of the VMM is not {}: {error}", making.oom_score);
        node.warn_once(&making.pod.id, &warning);
    }
    let log_to = match &plan.log_path {
        Some(path) => {
            let directory = &making.pod.config.log_directory;
            let log_of = GuestLog::new(vmm.clone(), id(), directory, path).map_err(log)?;
            // Opened now: its disk may be slow, and the tokens are good for seconds.
            let file = log_of.open().await.map_err(log)?;
            Some((log_of, file, LogTokens::new(plan.tty).map_err(log)?))
        }
        None => None,
    };
    let kind = agent::root_fs::Kind::Disk(agent::Disk {
        slot,
        layers: disk.layers(),
        volume_layers: disk.volume_layers(),
    });
    let images = volume_images(making, |image| agent::VolumeImage {
        name: image.id.to_string(),
        partitions: disk.partitions(image),
        ..agent::VolumeImage::default()
    });
    let (json, volumes_slot) = match plan.volumes.is_empty() {
        true => (json, 0),
        false => (share_volumes(node, making, &plan).await?, guest::VOLUMES_SLOT),
    };
    laps.note("volumes");
    let mut request =
        agent::CreateContainerRequest { images, volumes_slot, ..request(making, plan, json, kind) };
    if let (Some((_, _, tokens)), Some(stdio)) = (&log_to, &mut request.stdio) {
        stdio.stdout_token = tokens.stdout.as_str().to_owned();
        stdio.stderr_token =
            tokens.stderr.as_ref().map(|token| token.as_str().to_owned()).unwrap_or_default();
    }
    let answer = making.agent.client.create(request).await.map_err(CreateError::Agent)?;
    if let Some((log_of, file, tokens)) = log_to {
        log_of.begin(file, tokens).await.map_err(log)?;
    }
    Ok(answer)
}

/// Shares the container's volumes with its guest; the spec, whose mounts come from there.
async fn share_volumes(node: &Node, making: &Making, plan: &ContainerPlan) -> Result<Vec<u8>, CreateError> {
    let id = || making.info.id.clone();
    let shared = guest::share_volumes(node, &making.pod, &making.agent, &making.info.id, &plan.volumes).await;
    let shared = shared.map_err(|(path, source)| CreateError::Volume { id: id(), path, source })?;
    let mut spec = plan.spec.clone();
    guest::take_from_volumes(&mut spec, &plan.volumes, &shared);
    serde_json::to_vec(&spec).map_err(|source| CreateError::Encode { id: id(), source })
}

fn on_host(making: &Making, plan: ContainerPlan, json: Vec<u8>) -> agent::CreateContainerRequest {
    let log_path = plan.log_path.clone().unwrap_or_default();
    let kind = agent::root_fs::Kind::Overlay(agent::Overlay {
        layers: making.image.layers.clone(),
        scratch: making.info.id.to_string(),
    });
    let images = volume_images(making, |image| agent::VolumeImage {
        name: image.id.to_string(),
        layers: image.layers.clone(),
        ..agent::VolumeImage::default()
    });
    agent::CreateContainerRequest {
        images,
        log_path: log_path.to_string_lossy().into_owned(),
        ..request(making, plan, json, kind)
    }
}

/// Each image once.
fn volume_images(making: &Making, volume: impl Fn(&Image) -> agent::VolumeImage) -> Vec<agent::VolumeImage> {
    let by_id: BTreeMap<_, _> = making.volumes.iter().map(|image| (&image.id, image)).collect();
    by_id.into_values().map(|image| volume(image)).collect()
}

fn request(
    making: &Making,
    plan: ContainerPlan,
    spec_json: Vec<u8>,
    rootfs: agent::root_fs::Kind,
) -> agent::CreateContainerRequest {
    agent::CreateContainerRequest {
        container_id: making.info.id.to_string(),
        spec_json,
        rootfs: Some(agent::RootFs { kind: Some(rootfs) }),
        user: plan.user,
        pid: plan.pid.into(),
        pid_target: plan.pid_target,
        stdio: Some(agent::Stdio { tty: plan.tty, ..agent::Stdio::default() }),
        log_path: String::new(),
        stdin: plan.stdin,
        stdin_once: plan.stdin_once,
        strict_groups: plan.strict_groups,
        images: Vec::new(),
        volumes_slot: 0,
        bundle: String::new(),
    }
}

/// The agent undoes its own part when it can; the rest does not depend on it. A slot that could not be emptied is the answer.
async fn undo(node: Arc<Node>, making: Making) -> Option<u32> {
    let id = making.info.id.clone();
    if making.agent.process.is_alive() {
        if let Err(error) = making.agent.client.remove(&id).await {
            tracing::debug!(container = %id, %error, "agent keeps a container that failed");
        }
    }
    let mut held = making.info.slot.filter(|_| making.agent.process.is_alive());
    if let Some(slot) = held {
        match guest::take_back(&making.agent.vmm, id.clone(), slot).await {
            Ok(()) => held = None,
            Err(error) => {
                tracing::warn!(container = %id, error = %crate::chain(&error), "disk of a container that failed stays");
            }
        }
    }
    let undone = tokio::task::spawn_blocking(move || {
        let id = &making.info.id;
        if let Err(error) =
            destroy_leaf_blocking(node.systemd.as_ref(), &making.leaf, Instant::now() + LEAF_END)
        {
            tracing::warn!(container = %id, %error, "cgroup of a container that failed stays");
        }
        if let Err(error) = node.trash.throw_blocking(&node.layout.scratch(id)) {
            tracing::warn!(container = %id, error = %crate::chain(&error), "folder of a container that failed stays");
        }
        poststop_blocking(&node.records, &making.pod.id, id, Budget::of(LAST_HOOKS));
        if let Err(error) = node.records.remove_container_blocking(&making.pod.id, id) {
            tracing::warn!(container = %id, error = %crate::chain(&error), "record of a container that failed stays");
        }
    });
    let _ = undone.await;
    held
}
