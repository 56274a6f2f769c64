//! The owner of one pod: takes commands and news one after another, starts the work, never waits for it.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use hartpod_proto::ContainerId;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::bring_up::{RunError, Up, bring_up};
use super::command::{Command, Done, Message, News, Reply};
use super::containers::Entry;
use super::remove::{RemovePodError, remove_pod};
use super::state::{Refused, SandboxEvent, SandboxState};
use super::teardown::{HeldAgent, Holdings, TearDownError, tear_down};
use super::unheard::{Unheard, Word};
use super::{PodHandle, PodInfo, PodSnapshot, RunningAgent, network, watch as news};
use crate::container::{ContainerState, Exit};
use crate::names::{ContainerName, Names, Progress};
use crate::node::Node;
use crate::records::{PodRecord, PodStage, VERSION};

pub(crate) use super::containers::{RestoredContainer, StartError};

/// A pod was not stopped.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StopError {
    #[error("pod sandbox {id}")]
    Refused { id: String, source: Refused },
    #[error("stop pod sandbox {id}")]
    TearDown { id: String, source: TearDownError },
}

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
    pub(crate) containers: Vec<RestoredContainer>,
}

/// Waits until no record is being written.
#[derive(Debug)]
pub(super) enum Deferred {
    RemoveContainer(ContainerId),
    RemovePod,
    FinishStop,
}

/// See the module.
pub(super) struct PodTask {
    pub(super) node: Arc<Node>,
    pub(super) info: Arc<PodInfo>,
    pub(super) state: SandboxState,
    pub(super) reason: String,
    ips: Vec<IpAddr>,
    pub(super) agent: Option<RunningAgent>,
    /// Passes on the agent's news until the agent has ended.
    news: Option<JoinHandle<()>>,
    /// Until the first word of an agent that an earlier daemon started.
    pub(super) unheard: Option<Unheard>,
    delivered: bool,
    pub(super) containers: BTreeMap<ContainerId, Entry>,
    pub(super) names: Names<ContainerName, ContainerId>,

    up_waiters: Vec<Reply<(), RunError>>,
    stop_waiters: Vec<Reply<(), StopError>>,
    remove_waiters: Vec<Reply<(), RemovePodError>>,

    /// Records that are behind.
    pod_dirty: bool,
    recording: bool,
    deferred: Vec<Deferred>,

    messages: mpsc::UnboundedReceiver<Message>,
    sender: mpsc::UnboundedSender<Message>,
    snapshot: watch::Sender<Arc<PodSnapshot>>,
}

/// Whether the task goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Next {
    Continue,
    /// The pod is gone.
    End,
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
        agent: pod.agent.clone(),
        containers: pod.containers.iter().map(|c| Arc::new(c.snapshot.clone())).collect(),
    };
    let (snapshot, receiver) = watch::channel(Arc::new(snapshot));
    let handle = PodHandle { info: pod.info.clone(), messages: sender.clone(), snapshot: receiver };
    (handle, Unborn { pod, sender, messages, snapshot })
}

/// The ends of a handle's channels.
#[derive(Debug)]
pub(crate) struct Unborn {
    pod: Restored,
    sender: mpsc::UnboundedSender<Message>,
    messages: mpsc::UnboundedReceiver<Message>,
    snapshot: watch::Sender<Arc<PodSnapshot>>,
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
        agent: pod.agent,
        news: None,
        unheard: (pod.word == Word::Awaited)
            .then(|| Unheard::new(Instant::now(), pod.containers.iter().map(|c| c.snapshot.info.id.clone()))),
        delivered: pod.delivered,
        containers: BTreeMap::new(),
        names: Names::default(),
        up_waiters: Vec::new(),
        stop_waiters: Vec::new(),
        remove_waiters: Vec::new(),
        pod_dirty: false,
        recording: false,
        deferred: Vec::new(),
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

impl PodTask {
    async fn run(mut self) {
        loop {
            let due =
                self.next_deadline().into_iter().chain(self.unheard.as_ref().and_then(|u| u.until)).min();
            let message = tokio::select! {
                message = self.messages.recv() => message,
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    let now = Instant::now();
                    self.on_deadline(now);
                    self.on_silence(now);
                    continue;
                }
            };
            let next = match message {
                Some(Message::Command(command)) => self.on_command(command),
                Some(Message::Done(done)) => self.on_done(done),
                Some(Message::News(news)) => self.on_news(news),
                // Cannot be: the task holds a sender itself.
                None => Next::End,
            };
            if next == Next::End {
                return;
            }
        }
    }

    fn on_command(&mut self, command: Command) -> Next {
        match command {
            Command::AwaitUp(reply) if self.state == SandboxState::Starting => self.up_waiters.push(reply),
            Command::AwaitUp(reply) => drop(reply.send(self.is_up())),
            Command::UpDelivered => {
                self.delivered = true;
                self.node.registry.advance(&self.info, Progress::Settled);
                self.mark_pod();
            }
            Command::Stop(reply) => self.on_stop(reply),
            Command::Remove(reply) => self.on_remove(reply),
            Command::Create(config, reply) => self.on_create(*config, reply),
            Command::CreateDelivered(id) => self.on_create_delivered(&id),
            Command::Start(id, reply) => self.on_start(&id, reply),
            Command::StopContainer(id, grace, reply) => self.on_stop_container(&id, grace, reply),
            Command::RemoveContainer(id, reply) => self.on_remove_container(&id, reply),
        }
        Next::Continue
    }

    /// What a request hears that waits for a pod which is no longer starting.
    fn is_up(&self) -> Result<(), Arc<RunError>> {
        if self.state == SandboxState::Ready {
            return Ok(());
        }
        Err(Arc::new(RunError::NotUp { id: self.info.id.clone(), reason: self.reason.clone() }))
    }

    fn on_done(&mut self, done: Done) -> Next {
        match done {
            Done::BringUp(outcome) => return self.on_brought_up(outcome),
            Done::TearDown(outcome) => self.on_torn_down(outcome),
            Done::RemovePod(outcome) => return self.on_pod_removed(outcome),
            Done::Create(id, outcome) => self.on_created(&id, outcome),
            Done::Start(id, outcome) => self.on_started(&id, outcome),
            Done::Signal(id, outcome) => self.on_signalled(&id, outcome),
            Done::Kill(id, outcome) => self.on_killed(&id, outcome),
            Done::Remove(id, outcome) => self.on_container_removed(&id, outcome),
            Done::Recorded => {
                self.recording = false;
                self.record();
            }
            Done::LeavesKilled => self.on_leaves_killed(),
        }
        Next::Continue
    }

    fn on_news(&mut self, news: News) -> Next {
        match news {
            News::Container(state) => self.on_container_news(state),
            News::Synced(known) => self.on_synced(&known),
            News::Lost(how) => self.on_agent_lost(&how),
        }
        Next::Continue
    }

    fn on_brought_up(&mut self, outcome: Result<Up, RunError>) -> Next {
        let waiters = std::mem::take(&mut self.up_waiters);
        let error = match outcome {
            Ok(up) => {
                self.move_on(SandboxEvent::Up);
                self.ips = up.ips;
                self.follow(up.agent.clone());
                self.agent = Some(up.agent);
                self.node.registry.advance(&self.info, Progress::Undelivered);
                self.publish();
                for waiter in waiters {
                    let _ = waiter.send(Ok(()));
                }
                tracing::info!(sandbox = %self.info.id, name = %self.info.name, ips = ?self.ips, "sandbox ready");
                return Next::Continue;
            }
            Err(error) => error,
        };
        let next = if matches!(error, RunError::Left { .. }) {
            self.move_on(SandboxEvent::UpFailed);
            self.reason = crate::chain(&error);
            self.node.registry.advance(&self.info, Progress::Settled);
            self.publish();
            Next::Continue
        } else {
            self.node.registry.forget(&self.info);
            Next::End
        };
        let error = Arc::new(error);
        for waiter in waiters {
            let _ = waiter.send(Err(error.clone()));
        }
        next
    }

    fn follow(&mut self, agent: RunningAgent) {
        let dir = self.node.layout.agent(&self.info.id);
        self.news = Some(news::follow(agent, dir, self.sender.clone()));
    }

    fn on_stop(&mut self, reply: Reply<(), StopError>) {
        match self.state {
            SandboxState::Stopped | SandboxState::Removing => drop(reply.send(Ok(()))),
            state => match state.on(SandboxEvent::StopAsked) {
                Ok(_) => {
                    self.stop_waiters.push(reply);
                    self.begin_stop();
                }
                Err(source) => {
                    let id = self.info.id.to_string();
                    let _ = reply.send(Err(Arc::new(StopError::Refused { id, source })));
                }
            },
        }
    }

    fn begin_stop(&mut self) {
        if self.state == SandboxState::Stopping {
            return;
        }
        self.move_on(SandboxEvent::StopAsked);
        self.node.registry.advance(&self.info, Progress::Settled);
        self.publish();
        let held = self.holdings();
        let node = self.node.clone();
        self.start(async move { Done::TearDown(tear_down(&node, held).await) });
    }

    fn holdings(&mut self) -> Holdings {
        let backend = self.node.backends.of(&self.info.handler);
        let own = backend.map(|b| b.own_leaf(&self.node.cgroups, self.info.cgroup_parent(), &self.info.id));
        // Both were checked when the pod was made; without them there is nothing of that kind to give back.
        let own = own.ok().and_then(Result::ok);
        Holdings {
            id: self.info.id.clone(),
            agent: match self.agent.clone() {
                Some(agent) => HeldAgent::Running(agent, self.news.take()),
                None => HeldAgent::None,
            },
            leaves: own.into_iter().chain(self.containers.values().map(|c| c.leaf.clone())).collect(),
            attachment: network::attachment(&self.info).ok().flatten(),
            state_dir: self.node.layout.agent(&self.info.id),
        }
    }

    fn on_torn_down(&mut self, outcome: Result<(), TearDownError>) {
        if self.agent.as_ref().is_some_and(|a| !a.process.is_alive()) {
            self.agent = None;
        }
        match outcome {
            Ok(()) => {
                self.end_containers(&Exit::killed("killed when its pod was stopped"));
                self.move_on(SandboxEvent::StopDone);
                self.reason.clear();
                self.ips.clear();
                self.mark_pod();
                self.publish();
                self.when_recorded(Deferred::FinishStop);
            }
            Err(source) => {
                self.move_on(SandboxEvent::StopFailed);
                let error = StopError::TearDown { id: self.info.id.to_string(), source };
                self.reason = crate::chain(&error);
                self.publish();
                let error = Arc::new(error);
                for waiter in std::mem::take(&mut self.stop_waiters) {
                    let _ = waiter.send(Err(error.clone()));
                }
                self.fail_removal(RemovePodError::Stop(error));
            }
        }
    }

    fn finish_stop(&mut self) {
        tracing::info!(sandbox = %self.info.id, "sandbox stopped");
        for waiter in std::mem::take(&mut self.stop_waiters) {
            let _ = waiter.send(Ok(()));
        }
        self.remove_if_wanted();
    }

    fn on_remove(&mut self, reply: Reply<(), RemovePodError>) {
        if self.state == SandboxState::Starting {
            let source = Refused { state: self.state, event: SandboxEvent::RemoveAsked };
            let id = self.info.id.to_string();
            let _ = reply.send(Err(Arc::new(RemovePodError::Refused { id, source })));
            return;
        }
        self.remove_waiters.push(reply);
        match self.state {
            SandboxState::Ready | SandboxState::Silent | SandboxState::NotReady => self.begin_stop(),
            SandboxState::Stopped => self.remove_if_wanted(),
            SandboxState::Starting | SandboxState::Stopping | SandboxState::Removing => {}
        }
    }

    /// Also called when a container is done with: the pod's removal waits for work on its containers.
    pub(super) fn remove_if_wanted(&mut self) {
        let wanted = self.state == SandboxState::Stopped && !self.remove_waiters.is_empty();
        let busy = self.containers.values().any(Entry::is_being_worked_on);
        if wanted && !busy {
            self.move_on(SandboxEvent::RemoveAsked);
            self.when_recorded(Deferred::RemovePod);
        }
    }

    fn remove_now(&mut self) {
        let containers = self.containers.iter().map(|(id, c)| (id.clone(), c.leaf.clone())).collect();
        let (node, info) = (self.node.clone(), self.info.clone());
        self.start(async move { Done::RemovePod(remove_pod(node, info, containers).await) });
    }

    fn on_pod_removed(&mut self, outcome: Result<(), RemovePodError>) -> Next {
        match outcome {
            Ok(()) => {
                self.node.registry.forget(&self.info);
                for waiter in std::mem::take(&mut self.remove_waiters) {
                    let _ = waiter.send(Ok(()));
                }
                tracing::info!(sandbox = %self.info.id, "sandbox removed");
                Next::End
            }
            Err(error) => {
                self.move_on(SandboxEvent::RemoveFailed);
                self.fail_removal(error);
                Next::Continue
            }
        }
    }

    fn fail_removal(&mut self, error: RemovePodError) {
        let error = Arc::new(error);
        for waiter in std::mem::take(&mut self.remove_waiters) {
            let _ = waiter.send(Err(error.clone()));
        }
    }

    fn on_agent_lost(&mut self, how: &str) {
        self.move_on(SandboxEvent::AgentLost);
        if self.state != SandboxState::NotReady {
            // Its end was wanted.
            return;
        }
        self.reason = format!("the pod's agent is gone: {how}");
        tracing::error!(sandbox = %self.info.id, reason = self.reason, "sandbox not ready");
        self.agent = None;
        self.node.registry.advance(&self.info, Progress::Settled);
        self.publish();
        let leaves: Vec<_> = self.containers.values().map(|c| c.leaf.clone()).collect();
        self.start(async move {
            super::containers::kill_leaves(leaves).await;
            Done::LeavesKilled
        });
    }

    fn on_leaves_killed(&mut self) {
        self.end_containers(&Exit::killed("killed because the pod's agent was gone"));
        self.publish();
    }

    /// Moves the sandbox on; an event that does not fit was let through by a mistake of ours and changes nothing.
    pub(super) fn move_on(&mut self, event: SandboxEvent) {
        match self.state.on(event) {
            Ok(state) => self.state = state,
            Err(refused) => tracing::warn!(sandbox = %self.info.id, %refused, "ignored"),
        }
    }

    pub(super) fn publish(&mut self) {
        let mut containers: Vec<_> = self.containers.values().map(|c| Arc::new(c.snapshot())).collect();
        containers.sort_by_key(|c| c.info.created_at);
        self.snapshot.send_replace(Arc::new(PodSnapshot {
            info: self.info.clone(),
            state: self.state,
            reason: self.reason.clone(),
            ips: self.ips.clone(),
            agent: self.agent.clone(),
            containers,
        }));
    }

    /// Starts work; its end comes back as a message.
    pub(super) fn start(&self, work: impl Future<Output = Done> + Send + 'static) {
        let sender = self.sender.clone();
        tokio::spawn(async move {
            let done = work.await;
            let _ = sender.send(Message::Done(done));
        });
    }

    /// Has the pod's record written soon.
    fn mark_pod(&mut self) {
        self.pod_dirty = true;
        self.record();
    }

    /// Does it once no record is being written or behind: deleting and writing the same file must not cross.
    pub(super) fn when_recorded(&mut self, then: Deferred) {
        self.deferred.push(then);
        self.record();
    }

    /// Writes what is behind, one batch at a time; then does what waited for that.
    pub(super) fn record(&mut self) {
        if self.recording {
            return;
        }
        let pod = std::mem::take(&mut self.pod_dirty).then(|| self.pod_record());
        let containers: Vec<_> =
            self.containers.values_mut().filter_map(|c| c.take_record(&self.info.id)).collect();
        if pod.is_none() && containers.is_empty() {
            for then in std::mem::take(&mut self.deferred) {
                match then {
                    Deferred::RemoveContainer(id) => self.remove_container_now(&id),
                    Deferred::RemovePod => self.remove_now(),
                    Deferred::FinishStop => self.finish_stop(),
                }
            }
            return;
        }
        self.recording = true;
        let (records, id) = (self.node.records.clone(), self.info.id.clone());
        self.start(async move {
            let written = tokio::task::spawn_blocking(move || {
                let pod = pod.map_or(Ok(()), |r| records.write_pod_blocking(&r));
                let mut containers = containers.iter().map(|r| records.write_container_blocking(&id, r));
                pod.and(containers.find(Result::is_err).unwrap_or(Ok(())))
            });
            if let Ok(Err(error)) = written.await {
                // The agent and the caller know the truth; only a crash now would make the old record count.
                tracing::warn!(error = %crate::chain(&error), "record not written");
            }
            Done::Recorded
        });
    }

    fn pod_record(&self) -> PodRecord {
        let stopped = matches!(self.state, SandboxState::Stopped | SandboxState::Removing);
        PodRecord {
            version: VERSION,
            id: self.info.id.clone(),
            stage: if stopped { PodStage::Stopped } else { PodStage::Up },
            delivered: self.delivered,
            handler: self.info.handler.clone(),
            created_at: self.info.created_at,
            epoch: self.node.epoch.clone(),
            agent: self.agent.as_ref().map(|a| a.process.record),
            netns: self.info.netns.clone(),
            ips: self.ips.clone(),
            config: self.info.config.clone(),
        }
    }

    /// Everything that may still have run counts as ended now.
    fn end_containers(&mut self, exit: &Exit) {
        for entry in self.containers.values_mut() {
            if entry.state != ContainerState::Creating {
                entry.end(exit.clone());
            }
        }
        self.record();
    }
}
