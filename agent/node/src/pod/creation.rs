//! CreateContainer, in the pod's owning task: whether it is made, and what becomes of it.

use std::collections::BTreeSet;
use std::sync::Arc;

use hartpod_images::Image;
use hartpod_proto::ContainerId;
use hartpod_proto::cri::v1 as cri;

use super::command::{Done, Reply};
use super::entry::{Entry, cgroup_path, container_name, log_path};
use super::make::{CreateError, Made, Making, NotMade, make};
use super::task::PodTask;
use super::update::Updates;
use super::{RunningAgent, SandboxState};
use crate::container::{ContainerEvent, ContainerInfo, ContainerState, Exit, ImageVolume};
use crate::image_use::ImageUse;
use crate::names::{Claim, ConfigHash, ContainerName, Progress};
use crate::{clock, guest, random, validate};

/// SIGTERM: what a container is asked to stop with unless it or its image says otherwise.
const SIGTERM: i32 = 15;

/// How a request for a container is met.
enum Creation {
    Pending(ContainerId),
    Made(ContainerId),
}

impl PodTask {
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
        let (making, image_uses) = making.inspect_err(|_| self.names.release(&name, &id))?;
        self.containers.insert(id.clone(), new_entry(&making, image_uses));
        let (node, made) = (self.node.clone(), id.clone());
        self.start(async move { Done::Create(made, make(node, making).await) });
        Ok(Creation::Pending(id))
    }

    /// Everything that can be decided from memory.
    fn plan_making(
        &self,
        id: ContainerId,
        name: ContainerName,
        mut config: cri::ContainerConfig,
        agent: RunningAgent,
    ) -> Result<(Making, Vec<ImageUse>), CreateError> {
        let reference = config.image.as_ref().map_or("", |i| i.image.as_str());
        let image = self
            .node
            .images
            .resolve(reference)
            .ok_or_else(|| CreateError::NoImage { reference: reference.to_owned() })?;
        let target_pid = self.target_pid(&mut config)?;
        let image_id = image.id.to_string();
        let volumes = self.volume_images(&config)?;
        let mut used = BTreeSet::from([image_id.clone()]);
        used.extend(volumes.iter().map(|(_, image)| image.id.to_string()));
        let image_uses = used.iter().map(|image| self.node.image_uses.begin(image, &id));
        let image_uses = image_uses.collect::<Result<_, _>>()?;
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
            cgroup_path: cgroup_path(&self.info, &leaf),
            slot: self.slot()?,
            image_volumes: volumes
                .iter()
                .map(|(mount, image)| ImageVolume { mount: *mount, image_id: image.id.to_string() })
                .collect(),
            config,
            id,
        };
        let oom_score = self.oom_score(&info.config);
        let (pod, info) = (self.info.clone(), Arc::new(info));
        let volumes = volumes.into_iter().map(|(_, image)| image).collect();
        let making = Making { pod, info, image, volumes, agent, leaf, target_pid, oom_score };
        Ok((making, image_uses))
    }

    /// Images to be mounted, by the number of the mount.
    fn volume_images(&self, config: &cri::ContainerConfig) -> Result<Vec<(usize, Arc<Image>)>, CreateError> {
        let asked = config.mounts.iter().enumerate();
        let asked = asked.filter_map(|(index, mount)| Some((index, &mount.image.as_ref()?.image)));
        let found = asked.map(|(index, reference)| {
            let image = self.node.images.resolve(reference);
            let image = image
                .ok_or_else(|| CreateError::NoVolumeImage { mount: index, reference: reference.clone() })?;
            Ok((index, image))
        });
        found.collect()
    }

    /// That of the most expendable container, with a new one: what a guest is judged by.
    fn oom_score(&self, new: &cri::ContainerConfig) -> i64 {
        let resources = new.linux.as_ref().and_then(|linux| linux.resources.as_ref());
        let score = resources.map_or(0, |resources| resources.oom_score_adj);
        let others = self.containers.values().filter(|entry| entry.counts());
        others.map(Entry::oom_score).fold(score, i64::max)
    }

    /// A place for the container's disk, in a guest.
    fn slot(&self) -> Result<Option<u32>, CreateError> {
        if !self.info.is_guest() {
            return Ok(None);
        }
        let taken = self.containers.values().filter_map(|entry| entry.info.slot);
        guest::free_slot(taken, &self.held_slots).map(Some).ok_or(CreateError::NoSlot)
    }

    /// Pid of the container whose pid namespace the new one joins, when it asks for that. As in any call the beginning of an id will do, which
    /// becomes the whole of it.
    fn target_pid(&self, config: &mut cri::ContainerConfig) -> Result<Option<u32>, CreateError> {
        let context = config.linux.as_mut().and_then(|l| l.security_context.as_mut());
        let Some(options) = context.and_then(|c| c.namespace_options.as_mut()) else { return Ok(None) };
        if options.pid != cri::NamespaceMode::Target as i32 {
            return Ok(None);
        }
        let asked = options.target_id.as_str();
        let mut meant =
            self.containers.iter().filter(|(id, _)| !asked.is_empty() && id.as_str().starts_with(asked));
        match (meant.next(), meant.next()) {
            (Some((id, entry)), None) if entry.state == ContainerState::Running => {
                options.target_id = id.to_string();
                Ok(u32::try_from(entry.pid).ok())
            }
            _ => Err(CreateError::NoTarget { target: options.target_id.clone() }),
        }
    }

    pub(super) fn on_created(&mut self, id: &ContainerId, outcome: Result<Made, NotMade>) {
        let Some(entry) = self.containers.get_mut(id) else { return };
        let waiters = std::mem::take(&mut entry.create_waiters);
        match outcome {
            Ok(made) => {
                self.held_slots.retain(|slot| entry.info.slot != Some(*slot));
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
            Err(NotMade { error, held }) => {
                self.held_slots.extend(held);
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
}

fn new_entry(making: &Making, image_uses: Vec<ImageUse>) -> Entry {
    Entry {
        info: making.info.clone(),
        leaf: making.leaf.clone(),
        state: ContainerState::Creating,
        stop_signal: SIGTERM,
        pid: 0,
        started_at: 0,
        start_asked_at: 0,
        exit: None,
        ending: None,
        user: None,
        resources: None,
        updates: Updates::default(),
        delivered: false,
        image_uses,
        dirty: false,
        create_waiters: Vec::new(),
        start_waiter: None,
        stopping: None,
        remove_waiters: Vec::new(),
    }
}
