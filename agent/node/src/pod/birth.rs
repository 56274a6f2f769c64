//! The beginning of a pod's owning task.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use tokio::sync::{mpsc, watch};
use tokio::time::Instant;

use super::bring_up::bring_up;
use super::command::{Done, Message};
use super::entry::RestoredContainer;
use super::task::PodTask;
use super::unheard::{Unheard, Word};
use super::{PodHandle, PodInfo, PodSnapshot, RunningAgent, SandboxState};
use crate::names::Names;
use crate::node::Node;
use crate::records::PodResources;

/// A pod that an earlier daemon made.
#[derive(Debug)]
pub(crate) struct Restored {
    pub(crate) info: Arc<PodInfo>,
    pub(crate) state: SandboxState,
    pub(crate) reason: String,
    pub(crate) ips: Vec<IpAddr>,
    pub(crate) delivered: bool,
    pub(crate) agent: Option<RunningAgent>,
    pub(crate) word: Word,
    pub(crate) resources: Option<Arc<PodResources>>,
    pub(crate) containers: Vec<RestoredContainer>,
}

/// The ends of a handle's channels.
#[derive(Debug)]
pub(crate) struct Unborn {
    pod: Restored,
    sender: mpsc::UnboundedSender<Message>,
    messages: mpsc::UnboundedReceiver<Message>,
    snapshot: watch::Sender<Arc<PodSnapshot>>,
}

/// A handle for a pod that does not exist yet, and what [`spawn`] needs to make it exist.
pub(crate) fn new_pod(info: Arc<PodInfo>) -> (PodHandle, Unborn) {
    let restored = Restored {
        info,
        state: SandboxState::Starting,
        reason: String::new(),
        ips: Vec::new(),
        delivered: false,
        agent: None,
        word: Word::Heard,
        resources: None,
        containers: Vec::new(),
    };
    restored_pod(restored)
}

/// The same for a pod that an earlier daemon made.
pub(crate) fn restored_pod(pod: Restored) -> (PodHandle, Unborn) {
    let (sender, messages) = mpsc::unbounded_channel();
    let snapshot = PodSnapshot {
        info: pod.info.clone(),
        state: pod.state,
        reason: pod.reason.clone(),
        ips: pod.ips.clone(),
        network_warning: String::new(),
        agent: pod.agent.clone(),
        resources: pod.resources.clone(),
        containers: pod.containers.iter().map(|c| Arc::new(c.snapshot.clone())).collect(),
    };
    let (snapshot, receiver) = watch::channel(Arc::new(snapshot));
    let handle = PodHandle { info: pod.info.clone(), messages: sender.clone(), snapshot: receiver };
    (handle, Unborn { pod, sender, messages, snapshot })
}

/// Starts the owning task; a pod that is starting is brought up.
pub(crate) fn spawn(node: Arc<Node>, unborn: Unborn) {
    let Unborn { pod, sender, messages, snapshot } = unborn;
    let mut task = PodTask {
        node,
        info: pod.info,
        state: pod.state,
        reason: pod.reason,
        ips: pod.ips,
        network_warning: String::new(),
        agent: pod.agent,
        news: None,
        unheard: (pod.word == Word::Awaited)
            .then(|| Unheard::new(Instant::now(), pod.containers.iter().map(|c| c.snapshot.info.id.clone()))),
        delivered: pod.delivered,
        resources: pod.resources,
        resizing: None,
        containers: BTreeMap::new(),
        names: Names::default(),
        held_slots: BTreeSet::new(),
        up_waiters: Vec::new(),
        stop_waiters: Vec::new(),
        remove_waiters: Vec::new(),
        pod_dirty: false,
        recording: false,
        deferred: Vec::new(),
        happened: Vec::new(),
        messages,
        sender,
        snapshot,
    };
    for container in pod.containers {
        task.restore_container(container);
    }
    if task.state == SandboxState::Starting {
        let (node, info) = (task.node.clone(), task.info.clone());
        task.start(async move { Done::BringUp(bring_up(&node, &info).await) });
    }
    if let Some(agent) = task.agent.clone() {
        task.follow(agent);
    }
    tokio::spawn(task.run());
}
