//! The containers of a pod, as its owning task keeps them.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hartpod_container::cgroup::{CgroupError, Leaf};
use hartpod_proto::cri::v1 as cri;
use hartpod_proto::pod::v1 as agent;
use hartpod_proto::{ContainerId, SandboxId};
use tokio::time::Instant;

use super::command::{Done, Reply};
use super::make::{CreateError, Made, Making, make};
use super::remove::{RemoveContainerError, remove_container};
use super::stopping::{self, Step, StopContainerError, Stopping};
use super::task::{Deferred, PodTask};
use super::{PodInfo, SandboxState};
use crate::agent_client::AgentError;
use crate::container::{
    ContainerEvent, ContainerInfo, ContainerSnapshot, ContainerState, Exit, Refused, User,
};
use crate::image_use::ImageUse;
use crate::names::{Claim, ConfigHash, ContainerName, Progress};
use crate::records::{ContainerRecord, ExitRecord, UserRecord, VERSION};
use crate::{clock, random, validate};

/// SIGTERM: what a container is asked to stop with unless it or its image says otherwise.
const SIGTERM: i32 = 15;
/// For the processes of a pod whose agent is gone to be dead after they were killed.
const KILL_LIMIT: Duration = Duration::from_secs(5);
/// Between looks at a leaf that was killed.
const KILL_POLL: Duration = Duration::from_millis(20);

/// A container was not started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error("container {id}")]
    Refused { id: ContainerId, source: Refused },
    #[error("start container {id}: its pod is {}{}", state.adjective(), because(reason))]
    PodNotReady { id: ContainerId, state: SandboxState, reason: String },
    /// The agent says what it tried and with which container.
    #[error(transparent)]
    Agent(AgentError),
}

fn because(reason: &str) -> String {
    if reason.is_empty() { String::new() } else { format!(": {reason}") }
}

/// A container that an earlier daemon made.
#[derive(Debug)]
pub(crate) struct RestoredContainer {
    pub(crate) snapshot: ContainerSnapshot,
    pub(crate) leaf: Leaf,
    pub(crate) delivered: bool,
    pub(crate) image_use: Option<ImageUse>,
    /// The record is behind what the snapshot says.
    pub(crate) dirty: bool,
}

/// One container.
#[derive(Debug)]
pub(super) struct Entry {
    info: Arc<ContainerInfo>,
    pub(super) leaf: Leaf,
    pub(super) state: ContainerState,
    stop_signal: i32,
    pid: i32,
    started_at: i64,
    exit: Option<Exit>,
    user: Option<User>,
    pub(super) delivered: bool,
    /// Until it has ended: then its layers are not needed any more.
    image_use: Option<ImageUse>,
    dirty: bool,

    create_waiters: Vec<Reply<ContainerId, CreateError>>,
    start_waiter: Option<Reply<(), StartError>>,
    stopping: Option<Stopping>,
    remove_waiters: Vec<Reply<(), RemoveContainerError>>,
}

impl Entry {
    pub(super) fn snapshot(&self) -> ContainerSnapshot {
        ContainerSnapshot {
            info: self.info.clone(),
            state: self.state,
            stop_signal: self.stop_signal,
            pid: self.pid,
            started_at: self.started_at,
            exit: self.exit.clone(),
            user: self.user.clone(),
        }
    }

    /// Files of it are being made or deleted.
    pub(super) fn is_being_worked_on(&self) -> bool {
        matches!(self.state, ContainerState::Creating | ContainerState::Removing)
    }

    /// Its record, when the written one is behind and a new one may be written.
    pub(super) fn take_record(&mut self, _pod: &SandboxId) -> Option<ContainerRecord> {
        if !self.dirty || self.is_being_worked_on() {
            return None;
        }
        self.dirty = false;
        Some(ContainerRecord {
            version: VERSION,
            id: self.info.id.clone(),
            delivered: self.delivered,
            created_at: self.info.created_at,
            started_at: self.started_at,
            exit: self.exit.clone().map(|e| ExitRecord {
                finished_at: e.finished_at,
                exit_code: e.code,
                reason: e.reason,
                message: e.message,
            }),
            user: self.user.clone().map(|u| UserRecord { uid: u.uid, gid: u.gid, groups: u.groups }),
            image_id: self.info.image_id.clone(),
            image_ref: self.info.image_ref.clone(),
            stop_signal: self.stop_signal,
            config: self.info.config.clone(),
        })
    }

    fn move_on(&mut self, event: ContainerEvent) {
        match self.state.on(event) {
            Ok(state) => self.state = state,
            Err(refused) => tracing::debug!(container = %self.info.id, %refused, "ignored"),
        }
    }

    /// It has ended, if that was not known already.
    pub(super) fn end(&mut self, exit: Exit) {
        self.move_on(ContainerEvent::Exited);
        if self.exit.is_none() {
            self.exit = Some(exit);
            self.dirty = true;
        }
        self.pid = 0;
        self.image_use = None;
        if let Some(stopping) = self.stopping.take() {
            stopping.finish(Ok(()));
        }
    }

    /// Takes in what the agent says; it may be late or say it twice.
    fn learn(&mut self, news: agent::ContainerState) {
        let phase = news.phase();
        if let Some(user) = news.user.clone() {
            self.user = Some(user.into());
        }
        if news.started_at != 0 && self.started_at == 0 {
            self.started_at = news.started_at;
            self.dirty = true;
        }
        match phase {
            agent::Phase::Unspecified => {}
            agent::Phase::Created => {
                if self.state == ContainerState::Created {
                    self.pid = news.pid;
                }
            }
            agent::Phase::Running => {
                self.move_on(ContainerEvent::Started);
                if self.state == ContainerState::Running {
                    self.pid = news.pid;
                }
            }
            agent::Phase::Exited => self.end(Exit::reported(&news)),
        }
    }
}

impl PodTask {
    pub(super) fn restore_container(&mut self, container: RestoredContainer) {
        let ContainerSnapshot { info, state, stop_signal, pid, started_at, exit, user } = container.snapshot;
        let hash = ConfigHash::of(&info.config);
        let progress = match (container.delivered, state) {
            (false, ContainerState::Created) => Progress::Undelivered,
            _ => Progress::Settled,
        };
        self.names.hold(info.name.clone(), info.id.clone(), hash, progress);
        let entry = Entry {
            info: info.clone(),
            leaf: container.leaf,
            state,
            stop_signal,
            pid,
            started_at,
            exit,
            user,
            delivered: container.delivered,
            image_use: container.image_use,
            dirty: container.dirty,
            create_waiters: Vec::new(),
            start_waiter: None,
            stopping: None,
            remove_waiters: Vec::new(),
        };
        self.containers.insert(info.id.clone(), entry);
    }

    pub(super) fn on_create(&mut self, config: cri::ContainerConfig, reply: Reply<ContainerId, CreateError>) {
        match self.begin_create(config) {
            Ok(Creation::Pending(id)) => {
                if let Some(entry) = self.containers.get_mut(&id) {
                    entry.create_waiters.push(reply);
                }
            }
            Ok(Creation::Made(id)) => drop(reply.send(Ok(id))),
            Err(error) => drop(reply.send(Err(Arc::new(error)))),
        }
    }

    fn begin_create(&mut self, config: cri::ContainerConfig) -> Result<Creation, CreateError> {
        let agent = match (self.state, &self.agent) {
            (SandboxState::Ready, Some(agent)) => agent.clone(),
            (state, _) => {
                let (pod, reason) = (self.info.id.to_string(), self.reason.clone());
                return Err(CreateError::PodNotReady { pod, state, reason });
            }
        };
        validate::container(&config)?;
        let name = container_name(&config);
        let id = ContainerId::from_bytes(random::bytes().map_err(CreateError::NoId)?);
        match self.names.claim(name.clone(), id.clone(), ConfigHash::of(&config)) {
            Claim::Yours => {}
            Claim::Join(id) => return Ok(Creation::Pending(id)),
            Claim::Return(id) => return Ok(Creation::Made(id)),
            Claim::Taken(holder) => return Err(CreateError::NameTaken { name: name.to_string(), holder }),
        }
        let making = self.plan_making(id.clone(), name.clone(), config, agent);
        let (making, image_use) = making.inspect_err(|_| self.names.release(&name, &id))?;
        self.containers.insert(id.clone(), new_entry(&making, image_use));
        let (node, made) = (self.node.clone(), id.clone());
        self.start(async move { Done::Create(made, make(node, making).await) });
        Ok(Creation::Pending(id))
    }

    /// Everything that can be decided from memory.
    fn plan_making(
        &self,
        id: ContainerId,
        name: ContainerName,
        config: cri::ContainerConfig,
        agent: super::RunningAgent,
    ) -> Result<(Making, ImageUse), CreateError> {
        let reference = config.image.as_ref().map_or("", |i| i.image.as_str());
        let image = self
            .node
            .images
            .resolve(reference)
            .ok_or_else(|| CreateError::NoImage { reference: reference.to_owned() })?;
        let target_pid = self.target_pid(&config)?;
        let image_id = image.id.to_string();
        let image_use = self.node.image_uses.begin(&image_id, &id)?;
        let leaf = self
            .node
            .leaf(self.info.cgroup_parent(), id.as_str())
            .map_err(|source| CreateError::Cgroup { id: id.clone(), source })?;
        let info = ContainerInfo {
            pod: self.info.id.clone(),
            name,
            image_ref: image.digests.first().cloned().unwrap_or_else(|| image_id.clone()),
            image_id,
            created_at: clock::now(),
            log_path: log_path(&self.info, &config),
            cgroup_path: leaf.cgroup_path().to_owned(),
            config,
            id,
        };
        let making = Making { pod: self.info.clone(), info: Arc::new(info), image, agent, leaf, target_pid };
        Ok((making, image_use))
    }

    /// Pid of the container whose pid namespace the new one joins, when it asks for that.
    fn target_pid(&self, config: &cri::ContainerConfig) -> Result<Option<u32>, CreateError> {
        let context = config.linux.as_ref().and_then(|l| l.security_context.as_ref());
        let Some(options) = context.and_then(|c| c.namespace_options.as_ref()) else { return Ok(None) };
        if options.pid != cri::NamespaceMode::Target as i32 {
            return Ok(None);
        }
        let target = options.target_id.parse().ok().and_then(|id: ContainerId| self.containers.get(&id));
        match target {
            Some(entry) if entry.state == ContainerState::Running => Ok(u32::try_from(entry.pid).ok()),
            _ => Err(CreateError::NoTarget { target: options.target_id.clone() }),
        }
    }

    pub(super) fn on_created(&mut self, id: &ContainerId, outcome: Result<Made, CreateError>) {
        let Some(entry) = self.containers.get_mut(id) else { return };
        let waiters = std::mem::take(&mut entry.create_waiters);
        match outcome {
            Ok(made) => {
                entry.move_on(ContainerEvent::Made);
                entry.stop_signal = made.stop_signal;
                entry.learn(made.state);
                self.names.advance(&entry.info.name, id, Progress::Undelivered);
                self.node.registry.add_container(id, &self.info.id);
                if self.state != SandboxState::Ready {
                    // The pod was stopped, or lost its agent, in the meantime.
                    entry.end(Exit::killed("killed with its pod"));
                }
                tracing::info!(container = %id, sandbox = %self.info.id, name = %entry.info.name, "container created");
                self.publish();
                for waiter in waiters {
                    let _ = waiter.send(Ok(id.clone()));
                }
            }
            Err(error) => {
                self.names.release(&entry.info.name, id);
                self.containers.remove(id);
                let error = Arc::new(error);
                for waiter in waiters {
                    let _ = waiter.send(Err(error.clone()));
                }
            }
        }
        self.record();
        self.remove_if_wanted();
    }

    pub(super) fn on_create_delivered(&mut self, id: &ContainerId) {
        let Some(entry) = self.containers.get_mut(id) else { return };
        entry.delivered = true;
        entry.dirty = true;
        self.names.advance(&entry.info.name, id, Progress::Settled);
        self.record();
    }

    pub(super) fn on_start(&mut self, id: &ContainerId, reply: Reply<(), StartError>) {
        match self.begin_start(id) {
            Ok(entry) => entry.start_waiter = Some(reply),
            Err(error) => drop(reply.send(Err(Arc::new(error)))),
        }
    }

    fn begin_start(&mut self, id: &ContainerId) -> Result<&mut Entry, StartError> {
        let agent = match (self.state, &self.agent) {
            (SandboxState::Ready, Some(agent)) => agent.client.clone(),
            (state, _) => {
                let reason = self.reason.clone();
                return Err(StartError::PodNotReady { id: id.clone(), state, reason });
            }
        };
        let refused = |source| StartError::Refused { id: id.clone(), source };
        let gone = Refused { state: ContainerState::Removing, event: ContainerEvent::StartAsked };
        let Some(entry) = self.containers.get_mut(id) else { return Err(refused(gone)) };
        entry.state = entry.state.on(ContainerEvent::StartAsked).map_err(refused)?;
        self.names.advance(&entry.info.name, id, Progress::Settled);
        let started = id.clone();
        self.start(async move {
            let state = agent.start(&started).await.map(|a| a.state.unwrap_or_default());
            Done::Start(started, state)
        });
        self.containers.get_mut(id).ok_or(refused(gone))
    }

    pub(super) fn on_started(
        &mut self,
        id: &ContainerId,
        outcome: Result<agent::ContainerState, AgentError>,
    ) {
        let Some(entry) = self.containers.get_mut(id) else { return };
        let waiter = entry.start_waiter.take();
        let answer = match outcome {
            Ok(state) => {
                entry.learn(state);
                tracing::info!(container = %id, pid = entry.pid, "container started");
                Ok(())
            }
            Err(source) => {
                if let AgentError::Answered { message, .. } = &source {
                    // The process never was: that says more than the exit code of what was to become it.
                    if entry.started_at == 0 {
                        entry.exit = Some(Exit::start_failed(message.clone()));
                    }
                    entry.move_on(ContainerEvent::StartFailed);
                    entry.end(Exit::start_failed(message.clone()));
                    entry.dirty = true;
                }
                Err(Arc::new(StartError::Agent(source)))
            }
        };
        self.publish();
        if let Some(waiter) = waiter {
            let _ = waiter.send(answer);
        }
        self.record();
    }

    pub(super) fn on_container_news(&mut self, news: agent::ContainerState) {
        let Ok(id) = news.container_id.parse::<ContainerId>() else { return };
        // One that is being made is told of by whoever makes it; one that is unknown failed to be made, and is being undone.
        let Some(entry) = self.containers.get_mut(&id) else { return };
        if entry.state == ContainerState::Creating {
            return;
        }
        let had_ended = entry.exit.is_some();
        entry.learn(news);
        if let (false, Some(exit)) = (had_ended, &entry.exit) {
            tracing::info!(container = %id, code = exit.code, reason = exit.reason, "container exited");
        }
        self.publish();
        self.record();
    }

    pub(super) fn on_stop_container(
        &mut self,
        id: &ContainerId,
        grace: Duration,
        reply: Reply<(), StopContainerError>,
    ) {
        let now = Instant::now();
        let Some(entry) = self.containers.get_mut(id) else { return drop(reply.send(Ok(()))) };
        let state = entry.state;
        let stopping = match state {
            ContainerState::Exited | ContainerState::Removing => return drop(reply.send(Ok(()))),
            ContainerState::Creating => {
                let source = Refused { state, event: ContainerEvent::Exited };
                let error = StopContainerError::Refused { id: id.clone(), source };
                return drop(reply.send(Err(Arc::new(error))));
            }
            // Nobody is there yet who could make use of a grace period.
            ContainerState::Created => {
                entry.stopping.get_or_insert_with(|| Stopping::new(now, Duration::ZERO))
            }
            ContainerState::Starting | ContainerState::Running => match &mut entry.stopping {
                Some(stopping) => {
                    stopping.join(now, grace);
                    stopping
                }
                none => none.insert(Stopping::new(now, grace)),
            },
        };
        let is_first = stopping.waiters.is_empty();
        stopping.waiters.push(reply);
        if is_first && state != ContainerState::Created && !grace.is_zero() {
            self.signal(id);
        }
        self.on_deadline(now);
    }

    fn signal(&self, id: &ContainerId) {
        let (Some(entry), Some(agent)) = (self.containers.get(id), &self.agent) else { return };
        let (client, signal, id) = (agent.client.clone(), entry.stop_signal, id.clone());
        self.start(async move {
            let sent = client.signal(&id, signal).await;
            Done::Signal(id, sent)
        });
    }

    pub(super) fn on_signalled(&mut self, id: &ContainerId, outcome: Result<(), AgentError>) {
        let Err(error) = outcome else { return };
        tracing::warn!(container = %id, %error, "stop signal not sent, killing instead");
        let Some(entry) = self.containers.get_mut(id) else { return };
        if let Some(stopping) = &mut entry.stopping {
            stopping.join(Instant::now(), Duration::ZERO);
        }
        self.on_deadline(Instant::now());
    }

    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.containers.values().filter_map(|c| c.stopping.as_ref()).map(Stopping::at).min()
    }

    pub(super) fn on_deadline(&mut self, now: Instant) {
        let (mut kills, mut presumed) = (Vec::new(), false);
        for (id, entry) in &mut self.containers {
            match entry.stopping.as_mut().and_then(|s| s.step(now)) {
                Some(Step::Kill) => kills.push((id.clone(), entry.leaf.clone())),
                Some(Step::GiveUp) => {
                    if let Some(stopping) = entry.stopping.take() {
                        stopping.finish(Err(StopContainerError::StillAlive { id: id.clone() }));
                    }
                }
                Some(Step::Presume) => {
                    tracing::warn!(container = %id, "the agent does not tell of the end of a killed container");
                    entry.end(Exit::killed("killed; the pod's agent did not tell of it"));
                    presumed = true;
                }
                None => {}
            }
        }
        for (id, leaf) in kills {
            self.start(async move { Done::Kill(id, stopping::kill(leaf).await) });
        }
        if presumed {
            self.publish();
            self.record();
        }
    }

    pub(super) fn on_killed(&mut self, id: &ContainerId, outcome: Result<bool, CgroupError>) {
        let Some(entry) = self.containers.get_mut(id) else { return };
        match (outcome, &mut entry.stopping) {
            (Ok(true), Some(stopping)) => stopping.emptied(Instant::now()),
            // What the kernel holds may still end before the stop is given up.
            (Ok(false), _) | (_, None) => {}
            (Err(source), stopping) => {
                if let Some(stopping) = stopping.take() {
                    stopping.finish(Err(StopContainerError::Kill { id: id.clone(), source }));
                }
            }
        }
    }

    pub(super) fn on_remove_container(&mut self, id: &ContainerId, reply: Reply<(), RemoveContainerError>) {
        if !self.containers.contains_key(id) {
            return drop(reply.send(Ok(())));
        }
        match self.begin_removal(id) {
            Ok(()) => {
                if let Some(entry) = self.containers.get_mut(id) {
                    entry.remove_waiters.push(reply);
                }
            }
            Err(source) => {
                let error = RemoveContainerError::Refused { id: id.clone(), source };
                let _ = reply.send(Err(Arc::new(error)));
            }
        }
    }

    /// Has a container removed; one that is being removed, or is not there, is success.
    pub(super) fn begin_removal(&mut self, id: &ContainerId) -> Result<(), Refused> {
        let Some(entry) = self.containers.get_mut(id) else { return Ok(()) };
        if entry.state == ContainerState::Removing {
            return Ok(());
        }
        entry.state = entry.state.on(ContainerEvent::RemoveAsked)?;
        self.names.advance(&entry.info.name, id, Progress::Settled);
        self.publish();
        self.when_recorded(Deferred::RemoveContainer(id.clone()));
        Ok(())
    }

    pub(super) fn remove_container_now(&mut self, id: &ContainerId) {
        let Some(entry) = self.containers.get(id) else { return };
        let (node, pod, agent) = (self.node.clone(), self.info.clone(), self.agent.clone());
        let (id, leaf) = (id.clone(), entry.leaf.clone());
        self.start(async move {
            let removed = remove_container(node, pod, id.clone(), leaf, agent).await;
            Done::Remove(id, removed)
        });
    }

    pub(super) fn on_container_removed(
        &mut self,
        id: &ContainerId,
        outcome: Result<(), RemoveContainerError>,
    ) {
        let Some(mut entry) = self.containers.remove(id) else { return };
        let outcome = outcome.map_err(Arc::new);
        if let Some(stopping) = entry.stopping.take() {
            stopping.finish(
                outcome.clone().map_err(|error| StopContainerError::Removal {
                    id: id.clone(),
                    why: crate::chain(&*error),
                }),
            );
        }
        let waiters = std::mem::take(&mut entry.remove_waiters);
        match &outcome {
            Ok(()) => {
                self.names.release(&entry.info.name, id);
                self.node.registry.forget_container(id);
                tracing::info!(container = %id, "container removed");
            }
            Err(_) => {
                entry.move_on(ContainerEvent::RemoveFailed);
                entry.end(Exit::killed("killed to be removed"));
                self.containers.insert(id.clone(), entry);
            }
        }
        self.publish();
        for waiter in waiters {
            let _ = waiter.send(outcome.clone());
        }
        self.remove_if_wanted();
    }
}

/// How a request for a container is met.
enum Creation {
    Pending(ContainerId),
    Made(ContainerId),
}

fn new_entry(making: &Making, image_use: ImageUse) -> Entry {
    Entry {
        info: making.info.clone(),
        leaf: making.leaf.clone(),
        state: ContainerState::Creating,
        stop_signal: SIGTERM,
        pid: 0,
        started_at: 0,
        exit: None,
        user: None,
        delivered: false,
        image_use: Some(image_use),
        dirty: false,
        create_waiters: Vec::new(),
        start_waiter: None,
        stopping: None,
        remove_waiters: Vec::new(),
    }
}

/// What the kubelet calls the container; a request without metadata was refused before.
pub(crate) fn container_name(config: &cri::ContainerConfig) -> ContainerName {
    let metadata = config.metadata.clone().unwrap_or_default();
    ContainerName { name: metadata.name, attempt: metadata.attempt }
}

/// Where a container logs, if it does.
pub(crate) fn log_path(pod: &PodInfo, config: &cri::ContainerConfig) -> Option<PathBuf> {
    let both = !pod.config.log_directory.is_empty() && !config.log_path.is_empty();
    both.then(|| PathBuf::from(&pod.config.log_directory).join(&config.log_path))
}

/// Kills and waits until nothing runs in any of them, or the kernel holds it.
pub(crate) async fn kill_leaves(leaves: Vec<Leaf>) {
    let killed = tokio::task::spawn_blocking(move || {
        for leaf in &leaves {
            if let Err(error) = leaf.kill() {
                tracing::warn!(cgroup = leaf.cgroup_path(), error = %crate::chain(&error), "cgroup not killed");
            }
        }
        leaves
    });
    let Ok(leaves) = killed.await else { return };
    let deadline = Instant::now() + KILL_LIMIT;
    while leaves.iter().any(|l| l.populated().unwrap_or(false)) && Instant::now() < deadline {
        tokio::time::sleep(KILL_POLL).await;
    }
}
