//! What a new daemon makes of the records of the last one.
//!
//! The agents of pods run on when the daemon dies, at whatever instruction. So: running agents are adopted and asked what became
//! of their containers; pods without an agent are not ready and their containers have ended; what was being made and never
//! reported is undone; what was being stopped or removed is left for the call to be repeated. All decisions are pure functions
//! over what was found ([`judge`]); this file finds and acts.

mod judge;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hartpod_container::cgroup::Leaf;
use hartpod_container::hooks::Budget;
use hartpod_proto::pod::v1 as agent;
use hartpod_proto::{ContainerId, SandboxId};
use tokio::task::JoinSet;

use self::judge::{ContainerVerdict, PodFacts, PodVerdict};
use crate::agent_client::AgentClient;
use crate::agent_process::AgentProcess;
use crate::clock;
use crate::container::{ContainerInfo, ContainerSnapshot, ContainerState, Exit, User};
use crate::guest::{GuestInfo, VmmControl};
use crate::image_use::ImageUse;
use crate::names::{ConfigHash, Progress};
use crate::node::Node;
use crate::pod::{
    self, HeldAgent, Holdings, PodInfo, Restored, RestoredContainer, RunningAgent, SandboxState, Word,
    kill_leaves,
};
use crate::poststop::poststop_blocking;
use crate::records::{ContainerRecord, LoadedPod, PodRecord};
use crate::systemd::destroy_leaf_blocking;
use hartpod_proto::cri::v1 as cri;

/// How long the daemon's start waits for leftovers to be cleared away; what takes longer goes on behind.
const CLEARING: Duration = Duration::from_secs(10);
/// For the processes of a leaf to be gone after they were killed.
const LEAF_END: Duration = Duration::from_secs(10);
/// For an agent to tell of its containers before the daemon answers its first call; all agents are asked at once. The pod's task
/// waits for those that take longer.
const FIRST_WORD: Duration = Duration::from_secs(2);

/// For the hooks of a container that was being made, which the daemon's start waits for.
const HOOKS: Duration = Duration::from_secs(10);
/// For an agent to undo its part of a container that was being made: the rest does not depend on it.
const HELP: Duration = Duration::from_secs(3);

/// Brings every recorded pod back. When it returns, lists and status calls tell the truth, or what the records say of pods whose
/// agents do not answer.
pub(crate) async fn recover(node: &Arc<Node>, pods: Vec<LoadedPod>) {
    let mut found = JoinSet::new();
    for pod in pods {
        let node = node.clone();
        found.spawn(async move { examine(&node, pod).await });
    }
    let mut clearing = JoinSet::new();
    while let Some(examined) = found.join_next().await {
        match examined {
            Ok(Examined::Keep(pod)) => restore(node, *pod),
            Ok(Examined::Undo(info)) => {
                let node = node.clone();
                clearing.spawn(async move { undo(node, info).await });
            }
            Err(error) => tracing::error!(%error, "a pod could not be examined"),
        }
    }
    if tokio::time::timeout(CLEARING, async { while clearing.join_next().await.is_some() {} }).await.is_err()
    {
        tracing::warn!(pods = clearing.len(), "unfinished pods are still being undone");
        clearing.detach_all();
    }
}

enum Examined {
    Keep(Box<Restored>),
    Undo(Arc<PodInfo>),
}

/// What a record alone says.
fn pod_info(node: &Node, record: &PodRecord) -> Arc<PodInfo> {
    let request = cri::RunPodSandboxRequest {
        config: Some(record.config.clone()),
        runtime_handler: record.handler.clone(),
    };
    Arc::new(PodInfo {
        id: record.id.clone(),
        name: pod::pod_name(&record.config),
        hash: ConfigHash::of(&request),
        handler: record.handler.clone(),
        config: record.config.clone(),
        created_at: record.created_at,
        netns: record.netns.clone(),
        guest: guest_info(node, record),
        selinux_level: record
            .selinux_level
            .clone()
            .and_then(|level| Some(node.spec_settings.selinux.as_ref()?.levels.retake(level))),
    })
}

fn guest_info(node: &Node, record: &PodRecord) -> Option<GuestInfo> {
    let backend = node.backends.guests(&record.handler)?;
    Some(GuestInfo::found(record.guest, backend.retake_user(record.vmm_uid?)))
}

async fn examine(node: &Arc<Node>, pod: LoadedPod) -> Examined {
    let LoadedPod { record, containers, lost_containers } = pod;
    let info = pod_info(node, &record);
    let same_epoch = record.epoch == node.epoch;
    let agent = if same_epoch { adopt(node, &record) } else { None };
    let told = match &agent {
        Some(agent) => first_word(&record.id, agent).await,
        None => None,
    };
    let facts = PodFacts { same_epoch, agent_runs: agent.is_some(), agent_answers: told.is_some() };
    let verdict = judge::pod(&record, facts);
    if verdict == PodVerdict::Undo {
        return Examined::Undo(info);
    }
    // One that is silent would be waited for; the steps that undo a container do not depend on it.
    let mut helper = agent.as_ref().filter(|_| told.is_some());
    let mut known = told.map(|t| by_id(t.containers)).unwrap_or_default();
    if info.is_guest() {
        let now = clock::now();
        for record in &containers {
            known.entry(record.id.clone()).and_modify(|told| judge::of_guest(told, record, now));
        }
    }
    let leaves = containers.iter().filter_map(|c| node.leaf(info.cgroup_parent(), c.id.as_str()).ok());
    let words = if verdict == PodVerdict::Lost {
        kill_leaves(leaves.collect()).await;
        last_words(node, &info).await
    } else {
        None
    };
    for id in lost_containers {
        helper = forget_container(node, &info, &id, helper).await;
    }
    let mut restored = Vec::new();
    for container in containers {
        match judge::container(&container, verdict, known.get(&container.id)) {
            ContainerVerdict::Undo => helper = forget_container(node, &info, &container.id, helper).await,
            ContainerVerdict::Keep(state, exit) => {
                let known = known.get(&container.id);
                restored.extend(restore_container(node, &info, container, (state, exit), known));
            }
        }
    }
    Examined::Keep(Box::new(Restored {
        state: verdict.state(),
        reason: verdict.reason(info.heart(), words.as_deref()),
        ips: if verdict.state() == SandboxState::Stopped { Vec::new() } else { record.ips },
        delivered: record.delivered,
        resources: record.resources.map(Arc::new),
        word: verdict.word(),
        agent,
        containers: restored,
        info,
    }))
}

/// How the agent of a lost pod ended, or its guest.
async fn last_words(node: &Arc<Node>, info: &Arc<PodInfo>) -> Option<String> {
    let (node, info) = (node.clone(), info.clone());
    let words = tokio::task::spawn_blocking(move || pod::last_words_blocking(&node, &info)).await;
    words.ok().flatten()
}

async fn first_word(sandbox: &SandboxId, agent: &RunningAgent) -> Option<agent::DescribeResponse> {
    match tokio::time::timeout(FIRST_WORD, agent.client.describe()).await {
        Ok(Ok(told)) => Some(told),
        Ok(Err(error)) => {
            tracing::warn!(%sandbox, %error, "a running agent does not tell of its containers");
            None
        }
        Err(_) => {
            tracing::warn!(%sandbox, "a running agent does not tell of its containers yet");
            None
        }
    }
}

fn adopt(node: &Node, record: &PodRecord) -> Option<RunningAgent> {
    let backend = node.backends.of(&record.handler).ok()?;
    let started = backend.adopt_blocking(record.agent?)?;
    let process = AgentProcess::watch(started.record, started.pidfd).ok()?;
    let dir = node.layout.agent(&record.id);
    let client = AgentClient::new(dir.clone(), backend.door());
    Some(RunningAgent { client, process: Arc::new(process), vmm: VmmControl::new(dir) })
}

fn by_id(states: Vec<agent::ContainerState>) -> BTreeMap<ContainerId, agent::ContainerState> {
    states.into_iter().filter_map(|s| Some((s.container_id.parse().ok()?, s))).collect()
}

/// Nothing for a container whose cgroup cannot be named, which its record would not exist with.
fn restore_container(
    node: &Arc<Node>,
    pod: &PodInfo,
    record: ContainerRecord,
    (state, exit): (ContainerState, Option<Exit>),
    known: Option<&agent::ContainerState>,
) -> Option<RestoredContainer> {
    let leaf: Leaf = node.leaf(pod.cgroup_parent(), record.id.as_str()).ok()?;
    let ended = state == ContainerState::Exited;
    let dirty = exit.is_some() != record.exit.is_some();
    let image_uses = if ended { Vec::new() } else { uses(node, &record) };
    let user = record.user.map(|u| User { uid: u.uid, gid: u.gid, groups: u.groups });
    let info = ContainerInfo {
        pod: pod.id.clone(),
        name: pod::container_name(&record.config),
        image_id: record.image_id,
        image_ref: record.image_ref,
        created_at: record.created_at,
        log_path: pod::log_path(pod, &record.config),
        cgroup_path: pod::cgroup_path(pod, &leaf),
        slot: record.slot,
        image_volumes: record.image_volumes,
        config: record.config,
        id: record.id,
    };
    let snapshot = ContainerSnapshot {
        info: Arc::new(info),
        state,
        stop_signal: record.stop_signal,
        pid: if ended { 0 } else { known.map_or(0, |k| k.pid) },
        started_at: match record.started_at {
            0 => known.map_or(0, |k| k.started_at),
            recorded => recorded,
        },
        exit,
        user: known.and_then(|k| k.user.clone()).map(User::from).or(user),
        resources: record.resources.map(Arc::new),
    };
    Some(RestoredContainer { snapshot, leaf, delivered: record.delivered, image_uses, dirty })
}

/// What its layers are of.
fn uses(node: &Arc<Node>, record: &ContainerRecord) -> Vec<ImageUse> {
    let volumes = record.image_volumes.iter().map(|volume| &volume.image_id);
    let images: BTreeSet<&String> = volumes.chain([&record.image_id]).collect();
    images.into_iter().filter_map(|image| node.image_uses.begin(image, &record.id).ok()).collect()
}

fn restore(node: &Arc<Node>, pod: Restored) {
    let settled = pod.delivered || pod.state != SandboxState::Ready;
    let progress = if settled { Progress::Settled } else { Progress::Undelivered };
    tracing::info!(
        sandbox = %pod.info.id,
        name = %pod.info.name,
        state = pod.state.adjective(),
        containers = pod.containers.len(),
        reason = pod.reason,
        "sandbox taken over"
    );
    let containers: Vec<_> = pod.containers.iter().map(|c| c.snapshot.info.clone()).collect();
    let (handle, unborn) = pod::restored_pod(pod);
    node.registry.restore(handle, progress);
    for container in containers {
        node.registry.add_container(&container.id, &container.pod);
    }
    pod::spawn(node.clone(), unborn);
}

/// A pod whose RunPodSandbox never finished. What cannot be given back is kept as a pod that is not ready, for the kubelet to
/// stop and remove.
async fn undo(node: Arc<Node>, info: Arc<PodInfo>) {
    let held = Holdings {
        id: info.id.clone(),
        agent: HeldAgent::Unknown,
        leaves: pod::own_leaf(&node, &info).ok().into_iter().collect(),
        attachment: pod::attachment(&info).ok().flatten(),
        state_dir: node.layout.agent(&info.id),
    };
    if let Err(left) = pod::tear_down(&node, held).await {
        let reason = format!("it was never ready, and could not be undone: {left}");
        let restored = Restored {
            info,
            state: SandboxState::NotReady,
            reason,
            ips: Vec::new(),
            delivered: true,
            agent: None,
            word: Word::Heard,
            resources: None,
            containers: Vec::new(),
        };
        return restore(&node, restored);
    }
    tracing::info!(sandbox = %info.id, name = %info.name, "unfinished sandbox undone");
    let removed = tokio::task::spawn_blocking(move || node.records.remove_pod_blocking(&info.id));
    if let Ok(Err(error)) = removed.await {
        tracing::warn!(error = %crate::chain(&error), "record of an undone pod stays");
    }
}

/// A container that was being made, or whose record cannot be read. The agent is the answer if it helped: one that did not is not asked again,
/// for the daemon's start waits for this.
async fn forget_container<'a>(
    node: &Arc<Node>,
    pod: &PodInfo,
    id: &ContainerId,
    agent: Option<&'a RunningAgent>,
) -> Option<&'a RunningAgent> {
    tracing::info!(container = %id, sandbox = %pod.id, "unfinished container undone");
    let mut helper = agent;
    if let Some(agent) = agent {
        let removed = tokio::time::timeout(HELP, agent.client.remove(id)).await;
        if let Ok(Err(_)) | Err(_) = removed {
            tracing::warn!(container = %id, "the agent did not remove a container");
            helper = None;
        }
    }
    let (node, pod_id, id) = (node.clone(), pod.id.clone(), id.clone());
    let leaf = node.leaf(pod.cgroup_parent(), id.as_str());
    let forgotten = tokio::task::spawn_blocking(move || {
        if let Some(Err(error)) =
            leaf.ok().map(|l| destroy_leaf_blocking(node.systemd.as_ref(), &l, Instant::now() + LEAF_END))
        {
            tracing::warn!(container = %id, %error, "cgroup of an unfinished container stays");
        }
        if let Err(error) = node.trash.throw_blocking(&node.layout.scratch(&id)) {
            tracing::warn!(container = %id, error = %crate::chain(&error), "folder of an unfinished container stays");
        }
        poststop_blocking(&node.records, &pod_id, &id, Budget::of(HOOKS));
        if let Err(error) = node.records.remove_container_blocking(&pod_id, &id) {
            tracing::warn!(container = %id, error = %crate::chain(&error), "record of an unfinished container stays");
        }
    });
    let _ = forgotten.await;
    helper
}
