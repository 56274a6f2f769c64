//! Containers: calls about them, and their way from one phase to the next.

use std::sync::Arc;

use hartpod_container::Waiting;
use hartpod_container::hooks::Budget;
use hartpod_proto::ContainerId;
use hartpod_proto::pod::v1::{
    CreateContainerRequest, CreateContainerResponse, RemoveContainerResponse, ReopenLogResponse,
    ResolvedUser, SignalContainerResponse, StartContainerResponse,
};
use tracing::{info, warn};

use super::execs::expect;
use super::news::{About, Happened, LateHooks, Newsdesk};
use super::{CONTAINERS_MAX, Supervisor};
use crate::call::{CallError, Reply};
use crate::children::Exit;
use crate::clock::now_nanos;
use crate::container::{
    self, Container, CreateError, Init, Made, Phase, PhaseEvent, RemoveError, START_FAILED, StartError,
    StartHooks, Started, Terminal, Workshop, answer, oom_killed,
};
use crate::request::{self, ContainerPlan, InvalidRequest, PidPlan, fingerprint};
use crate::status_code::chain;

impl Supervisor {
    pub(super) fn create(&mut self, request: CreateContainerRequest, reply: Reply<CreateContainerResponse>) {
        let mut reply = Some(reply);
        if let Err(error) = self.begin_create(request, &mut reply) {
            if let Some(reply) = reply {
                let _ = reply.send(Err(error));
            }
        }
    }

    /// Takes the reply if it is to be given later.
    fn begin_create(
        &mut self,
        request: CreateContainerRequest,
        reply: &mut Option<Reply<CreateContainerResponse>>,
    ) -> Result<(), CallError> {
        let workshop = self.workshop()?;
        let fingerprint = fingerprint(&request);
        let set_up = self.is_set_up()?;
        let plan = ContainerPlan::new(request, set_up.log_directory.as_deref(), self.place)?;
        let id = plan.id.clone();
        if id.as_str() == set_up.pod_id {
            return Err(InvalidRequest::ContainerIsPod.into());
        }
        if let Some(container) = self.containers.get_mut(&id) {
            return repeat_create(container, fingerprint, reply);
        }
        if self.containers.len() >= CONTAINERS_MAX {
            return Err(CallError::TooMany { what: "containers", limit: CONTAINERS_MAX });
        }
        self.check_slot(&plan)?;
        let target = match &plan.pid {
            PidPlan::Target(target) => Some(self.running(target)?),
            PidPlan::Pod | PidPlan::Container | PidPlan::Node => None,
        };
        let leaf =
            self.is_set_up()?.pod.container_leaf(&id).map_err(|error| CallError::Leaf(Arc::new(error)))?;
        let expected = expect(&self.tokens, plan.tokens, ["stdout", "stderr"])?;
        self.lives += 1;
        let mut container = Container::new(id.clone(), self.lives, fingerprint, leaf.clone());
        container.slot = plan.slot();
        container.hooks.clone_from(&plan.hooks);
        let about = About { id: id.clone(), life: self.lives };
        let newsdesk = self.newsdesk.clone();
        let creation = tokio::spawn(async move {
            let made = container::create(workshop, plan, target, expected).await;
            let made = made.map(Box::new).map_err(|error| error.explained_by(&leaf));
            newsdesk.tell(about, Happened::Made(made));
        });
        container.creation = Some(creation.abort_handle());
        container.on_created.extend(reply.take());
        self.containers.insert(id, Box::new(container));
        Ok(())
    }

    /// A disk is one container's.
    fn check_slot(&self, plan: &ContainerPlan) -> Result<(), CallError> {
        let Some(slot) = plan.slot() else { return Ok(()) };
        match self.containers.values().find(|container| container.slot == Some(slot)) {
            Some(other) => Err(CallError::SlotTaken { slot: slot.number(), by: other.id.clone() }),
            None => Ok(()),
        }
    }

    /// A container whose namespaces can be entered.
    fn running(&self, id: &ContainerId) -> Result<Arc<hartpod_container::ContainerProcess>, CallError> {
        let container = self.containers.get(id).ok_or_else(|| CallError::UnknownContainer(id.clone()))?;
        let refused = || {
            let refused = container::Refused { phase: container.phase, event: PhaseEvent::Started };
            CallError::Refused { id: id.clone(), refused }
        };
        container.process.clone().filter(|_| container.phase.is_running()).ok_or_else(refused)
    }

    pub(super) fn on_made(&mut self, id: &ContainerId, outcome: Result<Box<Made>, CreateError>) {
        let Some(container) = self.containers.get_mut(id) else { return };
        container.creation = None;
        let event = if outcome.is_ok() { PhaseEvent::Ready } else { PhaseEvent::Failed };
        if let Err(error) = container.advance(event) {
            return warn!(%error, "a container was made twice");
        }
        let made = match outcome {
            // Dropped, and with it what was made, when a removal came in between.
            Ok(_) if container.phase != Phase::Created => return,
            Ok(made) => *made,
            Err(error) => {
                if container.on_removed.is_empty() {
                    container.creation_error =
                        Some(CallError::Create { id: id.clone(), source: Arc::new(error) });
                }
                return self.begin_removal(id);
            }
        };
        let created = made.created;
        // A creation without a process has failed.
        let Some(child) = created.waiting.child() else { return };
        container.told.pid = child.pid();
        container.told.created_at = now_nanos();
        // Where it cannot be read no limit is told later either: an earlier container's could be taken for this one's.
        container.ooms_before = container.leaf.ooms_before().ok();
        let user = created.user;
        container.told.user =
            Some(ResolvedUser { uid: user.uid, gid: user.gid, additional_gids: user.additional_gids });
        let exit = self.children.own(child);
        tokio::spawn(tell_exit(self.newsdesk.clone(), container.about(), child.pid(), exit));
        container.init = Init::Waiting(created.waiting);
        container.process = Some(created.container);
        container.terminal = created.console.map(Terminal::new);
        container.warnings = created.warnings;
        container.log = made.log;
        container.output = made.output;
        container.input = made.input;
        let response =
            CreateContainerResponse { state: container.state(), warnings: container.warnings.clone() };
        answer(&mut container.on_created, &Ok(response));
        info!(container = %id, "created");
        self.publish(id);
    }

    pub(super) fn start(&mut self, id: &ContainerId, reply: Reply<StartContainerResponse>) {
        let (newsdesk, workshop) = (self.newsdesk.clone(), self.workshop());
        let found = workshop.and_then(|workshop| Ok((workshop, self.container_mut(id)?)));
        let (workshop, container) = match found {
            Ok(found) => found,
            Err(error) => return drop(reply.send(Err(error))),
        };
        let done = match container.phase {
            _ if container.late_hooks.is_some() => Ok(None),
            Phase::Created => container.advance(PhaseEvent::Start).map(|()| None),
            Phase::Starting => Ok(None),
            Phase::Running | Phase::Exiting => Ok(container.state()),
            // It ran and has ended since, or it failed to start, or it died at the gate.
            Phase::Exited => match container.start_error.clone() {
                Some(error) => Err(error),
                None if container.told.started_at > 0 => Ok(container.state()),
                None => container.advance(PhaseEvent::Start).map(|()| None),
            },
            Phase::Creating | Phase::Removing => container.advance(PhaseEvent::Start).map(|()| None),
        };
        match done {
            Ok(None) => container.on_started.push(reply),
            Ok(state) => return drop(reply.send(Ok(StartContainerResponse { state, warnings: Vec::new() }))),
            Err(error) => return drop(reply.send(Err(error))),
        }
        if let Init::Waiting(_) = &container.init {
            let init = std::mem::replace(&mut container.init, Init::Starting { deferred: 0 });
            if let Init::Waiting(waiting) = init {
                let hooks = container.hooks.clone().zip(container.process.clone());
                let hooks = hooks.map(|(plan, container)| StartHooks { plan, container });
                tokio::spawn(start(workshop, waiting, hooks, newsdesk, container.about()));
            }
        }
    }

    pub(super) fn on_started(&mut self, id: &ContainerId, outcome: Result<Started, StartError>) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let event = if outcome.is_ok() { PhaseEvent::Started } else { PhaseEvent::Failed };
        if let Err(error) = container.advance(event) {
            return warn!(%error, "a container was started twice");
        }
        let early_exit = container.early_exit.take();
        match outcome {
            // A removal came in between; it has the leaf to kill by.
            _ if container.phase == Phase::Removing => {}
            Ok(Started { child, budget }) => {
                // The process at the gate was but the maker of this one if their numbers differ.
                let early_exit = early_exit.filter(|_| child.pid() == container.told.pid);
                container.run(child);
                if let Some(exit) = early_exit {
                    // It had ended before its start was told.
                    container.told.started_at = exit.at.min(container.told.started_at);
                }
                let pid = container.told.pid;
                let (leaf, newsdesk, about) =
                    (container.leaf.clone(), self.newsdesk.clone(), container.about());
                let watch = tokio::spawn(async move {
                    oom_killed(&leaf).await;
                    newsdesk.tell(about, Happened::OomKilled);
                });
                container.oom_watch = Some(watch.abort_handle());
                info!(container = %id, pid, "started");
                self.publish(id);
                self.run_late_hooks(id, budget);
                if let Some(exit) = early_exit {
                    self.on_exited(id, pid, exit);
                }
            }
            Err(error) => {
                let error = CallError::Start { id: id.clone(), source: Arc::new(error) };
                // What the answer says: a daemon may hear of it by either.
                container.told.message = chain(&error);
                container.told.exit_code = START_FAILED;
                container.told.finished_at = now_nanos();
                container.start_error = Some(error);
                self.begin_settling(id);
            }
        }
    }

    /// The container runs, is watched and takes execs while they do.
    fn run_late_hooks(&mut self, id: &ContainerId, budget: Budget) {
        let (newsdesk, workshop) = (self.newsdesk.clone(), self.workshop());
        let Some(container) = self.containers.get_mut(id) else { return };
        let hooks = container.hooks.clone().filter(|hooks| hooks.has_late_ones());
        // Of a pod that shuts down they are not run any more.
        let Some((hooks, workshop)) = hooks.zip(workshop.ok()) else {
            return self.answer_start(id, Vec::new());
        };
        let (about, pid) = (container.about(), container.told.pid);
        let ran = LateHooks::new(newsdesk, about);
        let run = tokio::spawn(async move {
            ran.are_over(hooks.after_start(&workshop, pid, budget).await);
        });
        container.late_hooks = Some(run.abort_handle());
    }

    pub(super) fn on_late_hooks(&mut self, id: &ContainerId, warnings: Vec<String>) {
        if let Some(container) = self.containers.get_mut(id) {
            container.late_hooks = None;
        }
        self.answer_start(id, warnings);
    }

    fn answer_start(&mut self, id: &ContainerId, warnings: Vec<String>) {
        let Some(container) = self.containers.get_mut(id) else { return };
        let response = StartContainerResponse { state: container.state(), warnings };
        answer(&mut container.on_started, &Ok(response));
    }

    pub(super) fn on_exited(&mut self, id: &ContainerId, pid: i32, exit: Exit) {
        let Some(container) = self.containers.get_mut(id).filter(|c| c.told.pid == pid) else { return };
        if container.phase == Phase::Starting {
            container.early_exit = Some(exit);
            return;
        }
        let at_gate = container.phase == Phase::Created;
        // Refused: it is exiting or removed already, and the code does not matter any more.
        if container.advance(PhaseEvent::InitExited).is_err() || container.phase == Phase::Removing {
            return;
        }
        container.told.exit_code = exit.code;
        // One that is quick may be reaped before its start is noted.
        container.told.finished_at = exit.at.max(container.told.started_at);
        if at_gate {
            container.told.message = "killed before it was started".to_owned();
        }
        info!(container = %id, code = exit.code, "exited");
        self.begin_settling(id);
    }

    fn begin_settling(&mut self, id: &ContainerId) {
        let Some(container) = self.containers.get_mut(id) else { return };
        container.init = Init::None;
        let leaf = container.leaf.clone();
        let log = container.log.as_ref().map(container::Log::watch);
        let output = container.output.as_ref().map(container::Output::ended);
        (container.terminal, container.input) = (None, None);
        let (newsdesk, about) = (self.newsdesk.clone(), container.about());
        tokio::spawn(async move {
            let mut watch = log.clone();
            let log_ended = async {
                if let Some(log) = &mut watch {
                    log.ended().await;
                }
                if let Some(output) = output {
                    output.await;
                }
            };
            let mut odd = container::settle(&leaf, log_ended).await;
            odd.extend(log.and_then(|log| log.trouble()));
            newsdesk.tell(about, Happened::Settled(odd));
        });
    }

    pub(super) fn on_settled(&mut self, id: &ContainerId, odd: Vec<String>) {
        let Some(container) = self.containers.get_mut(id) else { return };
        if container.advance(PhaseEvent::Settled).is_err() || container.phase == Phase::Removing {
            return;
        }
        container.settled(odd);
        match container.start_error.clone() {
            Some(error) => answer(&mut container.on_started, &Err(error)),
            None if container.late_hooks.is_none() => self.answer_start(id, Vec::new()),
            None => {}
        }
        self.publish(id);
    }

    pub(super) fn signal(
        &mut self,
        id: &ContainerId,
        number: i32,
    ) -> Result<SignalContainerResponse, CallError> {
        let number = request::signal(number)?;
        let container = self.container_mut(id)?;
        let sent = match &mut container.init {
            Init::Waiting(waiting) => waiting.child().map_or(Ok(()), |child| child.signal(number)),
            Init::Running(child) => child.signal(number),
            Init::Starting { deferred } => {
                *deferred |= 1 << (number - 1);
                Ok(())
            }
            // Exited, or about to be gone.
            Init::None if container.phase != Phase::Creating => Ok(()),
            Init::None => {
                let refused = container::Refused { phase: container.phase, event: PhaseEvent::Start };
                return Err(CallError::Refused { id: id.clone(), refused });
            }
        };
        sent.map_err(|error| CallError::Signal { id: id.clone(), source: Arc::new(error) })?;
        Ok(SignalContainerResponse {})
    }

    pub(super) fn reopen_log(&mut self, id: &ContainerId, reply: Reply<ReopenLogResponse>) {
        let container = match self.container_mut(id) {
            Ok(container) => container,
            Err(error) => return drop(reply.send(Err(error))),
        };
        // A container without a log has nothing to reopen.
        let Some(log) = &container.log else { return drop(reply.send(Ok(ReopenLogResponse {}))) };
        let (log, id) = (log.watch(), id.clone());
        tokio::spawn(async move {
            let outcome = log.reopen().await.map(|()| ReopenLogResponse {});
            let _ = reply.send(outcome.map_err(|error| CallError::Reopen { id, source: Arc::new(error) }));
        });
    }

    pub(super) fn remove(&mut self, id: &ContainerId, reply: Reply<RemoveContainerResponse>) {
        let Some(container) = self.containers.get_mut(id) else {
            return drop(reply.send(Ok(RemoveContainerResponse {})));
        };
        container.on_removed.push(reply);
        self.begin_removal(id);
    }

    /// Takes a container apart, whatever phase it is in; `on_removed` is answered at the end.
    pub(super) fn begin_removal(&mut self, id: &ContainerId) {
        let Some(container) = self.containers.get_mut(id) else { return };
        // Every phase can be removed from.
        let _ = container.advance(PhaseEvent::Remove);
        if std::mem::replace(&mut container.removal_running, true) {
            return;
        }
        container.release();
        let leaf = container.leaf.clone();
        let log = container.log.take();
        let disk = container.slot.zip(self.set_up.as_ref().map(|set_up| Arc::clone(&set_up.pod)));
        let children = self.children.clone();
        let (newsdesk, about) = (self.newsdesk.clone(), container.about());
        tokio::spawn(async move {
            let mut outcome = container::remove(&leaf).await;
            if let Some(log) = log {
                log.finish().await;
            }
            if let (Ok(()), Some((slot, pod))) = (&outcome, disk) {
                outcome =
                    container::release_disk(slot, pod.host(), &children).await.map_err(RemoveError::Disk);
            }
            newsdesk.tell(about, Happened::Removed(outcome));
        });
    }

    pub(super) fn on_removed(&mut self, id: &ContainerId, outcome: Result<(), RemoveError>) {
        let Some(container) = self.containers.get_mut(id) else { return };
        container.removal_running = false;
        let outcome = outcome.map_err(|error| CallError::Remove { id: id.clone(), source: Arc::new(error) });
        let creation_error =
            container.creation_error.take().unwrap_or_else(|| CallError::Removed(id.clone()));
        answer(&mut container.on_created, &Err(creation_error));
        answer(&mut container.on_removed, &outcome.clone().map(|()| RemoveContainerResponse {}));
        match outcome {
            Ok(()) => {
                self.containers.remove(id);
                self.board.remove(id.as_str());
                info!(container = %id, "removed");
            }
            Err(error) => {
                warn!(error = chain(&error), "a container could not be removed");
                container.removal_error = Some(error);
            }
        }
    }
}

/// The same request again joins the first, or gets its answer again.
fn repeat_create(
    container: &mut Container,
    fingerprint: u64,
    reply: &mut Option<Reply<CreateContainerResponse>>,
) -> Result<(), CallError> {
    if container.fingerprint != fingerprint {
        return Err(CallError::ContainerDiffers(container.id.clone()));
    }
    match container.phase {
        Phase::Creating => container.on_created.extend(reply.take()),
        Phase::Removing => return Err(CallError::Removed(container.id.clone())),
        Phase::Created | Phase::Starting | Phase::Running | Phase::Exiting | Phase::Exited => {
            let response =
                CreateContainerResponse { state: container.state(), warnings: container.warnings.clone() };
            if let Some(reply) = reply.take() {
                let _ = reply.send(Ok(response));
            }
        }
    }
    Ok(())
}

async fn tell_exit(newsdesk: Newsdesk, about: About, pid: i32, exit: impl Future<Output = Exit> + Send) {
    let exit = exit.await;
    newsdesk.tell(about, Happened::Exited { pid, exit });
}

/// Starts the container, and tells how that went; then, if that made another process, how that one ends.
async fn start(
    workshop: Workshop,
    waiting: Waiting,
    hooks: Option<StartHooks>,
    newsdesk: Newsdesk,
    about: About,
) {
    match container::start(&workshop, waiting, hooks).await {
        Err(error) => newsdesk.tell(about, Happened::Started(Err(error))),
        Ok((started, exit)) => {
            let pid = started.child.pid();
            newsdesk.tell(about.clone(), Happened::Started(Ok(started)));
            if let Some(exit) = exit {
                tell_exit(newsdesk, about, pid, exit).await;
            }
        }
    }
}
