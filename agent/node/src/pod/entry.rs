//! A container of a pod, as the pod's owning task keeps it.

use std::path::PathBuf;
use std::sync::Arc;

use hartpod_container::cgroup::Leaf;
use hartpod_proto::ContainerId;
use hartpod_proto::cri::v1 as cri;
use hartpod_proto::pod::v1 as agent;

use super::PodInfo;
use super::command::{Done, Reply};
use super::info::GUEST_PARENT;
use super::make::CreateError;
use super::remove::RemoveContainerError;
use super::start::StartError;
use super::stopping::Stopping;
use super::task::PodTask;
use super::update::Updates;
use crate::clock;
use crate::container::{ContainerEvent, ContainerInfo, ContainerSnapshot, ContainerState, Exit, User};
use crate::guest;
use crate::image_use::ImageUse;
use crate::names::{ConfigHash, ContainerName, Progress};
use crate::records::{ContainerRecord, ExitRecord, UserRecord, VERSION};

/// A container that an earlier daemon made.
#[derive(Debug)]
pub(crate) struct RestoredContainer {
    pub(crate) snapshot: ContainerSnapshot,
    pub(crate) leaf: Leaf,
    pub(crate) delivered: bool,
    pub(crate) image_uses: Vec<ImageUse>,
    /// The record is behind what the snapshot says.
    pub(crate) dirty: bool,
}

/// One container.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) info: Arc<ContainerInfo>,
    pub(super) leaf: Leaf,
    pub(super) state: ContainerState,
    pub(super) stop_signal: i32,
    pub(super) pid: i32,
    pub(super) started_at: i64,
    /// When StartContainer was passed on, by the clock of this host.
    pub(super) start_asked_at: i64,
    pub(super) exit: Option<Exit>,
    /// What a guest told of its end, until its log is whole, which is the VMM's to know.
    pub(super) ending: Option<agent::ContainerState>,
    pub(super) user: Option<User>,
    /// What it was given since its creation, with the rest of what it has.
    pub(super) resources: Option<Arc<cri::LinuxContainerResources>>,
    pub(super) updates: Updates,
    pub(super) delivered: bool,
    /// Until it has ended: then its layers are not needed any more.
    pub(super) image_uses: Vec<ImageUse>,
    pub(super) dirty: bool,

    pub(super) create_waiters: Vec<Reply<ContainerId, CreateError>>,
    pub(super) start_waiter: Option<Reply<(), StartError>>,
    pub(super) stopping: Option<Stopping>,
    pub(super) remove_waiters: Vec<Reply<(), RemoveContainerError>>,
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
            resources: self.resources.clone(),
        }
    }

    /// Files of it are being made or deleted.
    pub(super) fn is_being_worked_on(&self) -> bool {
        matches!(self.state, ContainerState::Creating | ContainerState::Removing)
    }

    /// Its record, when the written one is behind and a new one may be written.
    pub(super) fn take_record(&mut self) -> Option<ContainerRecord> {
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
            slot: self.info.slot,
            image_volumes: self.info.image_volumes.clone(),
            resources: self.resources.as_deref().cloned(),
        })
    }

    pub(super) fn move_on(&mut self, event: ContainerEvent) {
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
        self.ending = None;
        self.image_uses.clear();
        if let Some(stopping) = self.stopping.take() {
            stopping.finish(Ok(()));
        }
    }

    /// Takes in what the agent says; it may be late or say it twice. Whether there was anything new.
    pub(super) fn learn(&mut self, mut news: agent::ContainerState) -> bool {
        let before = (self.state, self.pid, self.started_at, self.exit.is_some(), self.user.is_some());
        if self.info.slot.is_some() {
            guest::cut(&mut news);
            guest::to_host_time(&mut news, (self.start_asked_at, self.started_at), clock::now());
        }
        let phase = news.phase();
        // It never changes.
        if self.user.is_none() {
            self.user = news.user.take().map(User::from);
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
        before != (self.state, self.pid, self.started_at, self.exit.is_some(), self.user.is_some())
    }

    /// It has ended, with what is told of that if anything is.
    pub(super) fn end_as_told(&mut self, exit: &Exit) {
        match self.ending.take() {
            Some(told) => drop(self.learn(told)),
            None => self.end(exit.clone()),
        }
    }
}

impl PodTask {
    pub(super) fn restore_container(&mut self, container: RestoredContainer) {
        let ContainerSnapshot { info, state, stop_signal, pid, started_at, exit, user, resources } =
            container.snapshot;
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
            start_asked_at: 0,
            exit,
            ending: None,
            user,
            resources,
            updates: Updates::default(),
            delivered: container.delivered,
            image_uses: container.image_uses,
            dirty: container.dirty,
            create_waiters: Vec::new(),
            start_waiter: None,
            stopping: None,
            remove_waiters: Vec::new(),
        };
        self.containers.insert(info.id.clone(), entry);
    }

    pub(super) fn on_container_news(&mut self, id: &ContainerId, news: agent::ContainerState) {
        // One that is being made is told of by whoever makes it; one that is unknown failed to be made, and is being undone.
        let Some(entry) = self.containers.get_mut(id) else { return };
        // What a guest tells again of an end is no news, however often it does.
        if entry.state == ContainerState::Creating || entry.ending.is_some() {
            return;
        }
        let ends = news.phase() == agent::Phase::Exited && entry.exit.is_none();
        match &self.agent {
            Some(agent) if ends && entry.info.slot.is_some() => {
                entry.ending = Some(news);
                let (vmm, id) = (agent.vmm.clone(), id.clone());
                self.start(async move {
                    guest::last_lines(vmm, id.clone()).await;
                    Done::LastLines(id)
                });
            }
            _ => self.learn(id, news),
        }
    }

    pub(super) fn on_last_lines(&mut self, id: &ContainerId) {
        // Nothing when it counts as ended already.
        let told = self.containers.get_mut(id).and_then(|entry| entry.ending.take());
        if let Some(told) = told {
            self.learn(id, told);
        }
    }

    fn learn(&mut self, id: &ContainerId, news: agent::ContainerState) {
        let Some(entry) = self.containers.get_mut(id) else { return };
        let had_ended = entry.exit.is_some();
        if !entry.learn(news) {
            return;
        }
        if let (false, Some(exit)) = (had_ended, &entry.exit) {
            tracing::info!(container = %id, code = exit.code, reason = exit.reason, "container exited");
        }
        self.publish();
        self.record();
    }

    /// Everything that may still have run counts as ended now.
    pub(super) fn end_containers(&mut self, exit: &Exit) {
        for entry in self.containers.values_mut() {
            if entry.state != ContainerState::Creating {
                entry.end_as_told(exit);
            }
        }
        self.record();
    }
}

/// What the kubelet calls the container; a request without metadata was refused before.
pub(crate) fn container_name(config: &cri::ContainerConfig) -> ContainerName {
    let metadata = config.metadata.clone().unwrap_or_default();
    ContainerName { name: metadata.name, attempt: metadata.attempt }
}

/// The path of a container's leaf where its processes are: on this host, or in its guest. `leaf` is the one on this host, which a guest's
/// container does not have.
pub(crate) fn cgroup_path(pod: &PodInfo, leaf: &Leaf) -> String {
    match (pod.is_guest(), leaf.cgroup_path().rsplit_once('/')) {
        (true, Some((_, id))) => format!("{GUEST_PARENT}/{id}"),
        _ => leaf.cgroup_path().to_owned(),
    }
}

/// Where a container logs, if it does.
pub(crate) fn log_path(pod: &PodInfo, config: &cri::ContainerConfig) -> Option<PathBuf> {
    let both = !pod.config.log_directory.is_empty() && !config.log_path.is_empty();
    both.then(|| PathBuf::from(&pod.config.log_directory).join(&config.log_path))
}
