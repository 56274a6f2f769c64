//! One container: what the agent holds of it, and what it tells of it.

mod create;
mod disk;
mod hooks;
mod input;
mod leaf;
mod log;
mod output;
mod phase;
mod settle;
mod start;
mod terminal;
mod update;

pub(crate) use create::{CreateError, Made, Workshop, create};
pub(crate) use disk::{DiskError, release as release_disk};
pub(crate) use hooks::HookPlan;
pub(crate) use input::Input;
pub(crate) use leaf::{emptied, oom_killed};
pub(crate) use log::{Died, Log, LogWatch};
pub(crate) use output::Output;
pub(crate) use phase::{Event as PhaseEvent, Phase, Refused};
pub(crate) use settle::{RemoveError, remove, settle};
pub(crate) use start::{StartError, StartHooks, Started, start};
pub(crate) use terminal::Terminal;
pub(crate) use update::{UpdateError, update};

use std::cell::OnceCell;
use std::sync::Arc;

use hartpod_container::cgroup::{Leaf, Meter, OomsBefore};
use hartpod_container::{Child, ContainerProcess, Slot, Waiting};
use hartpod_proto::ContainerId;
use hartpod_proto::pod::v1::{
    ContainerState, CreateContainerResponse, RemoveContainerResponse, ResolvedUser, StartContainerResponse,
};
use tokio::sync::Semaphore;
use tokio::task::AbortHandle;
use tracing::warn;

use crate::call::{CallError, Reply};
use crate::children::Exit;
use crate::clock::now_nanos;
use crate::exec::Execs;
use crate::supervisor::About;

/// Exit code of a container whose command could not be executed. Same as containerd's (`errorStartExitCode`).
pub(crate) const START_FAILED: i32 = 128;

/// Attachers of one container at one time. For each 1 MiB may be kept.
pub(crate) const ATTACHERS_MAX: usize = 16;

/// The process that a signal goes to.
#[derive(Debug)]
pub(crate) enum Init {
    /// There is none (yet, or any more).
    None,
    /// It waits for the start.
    Waiting(Waiting),
    /// It is on its way through execve, and may be replaced by another process: signals wait for the outcome (bit n - 1
    /// stands for signal n).
    Starting { deferred: u64 },
    /// It runs.
    Running(Child),
}

/// What the agent holds of a container.
#[derive(Debug)]
pub(crate) struct Container {
    pub(crate) id: ContainerId,
    /// Tells this container from an earlier one of the same id, in news that come late.
    pub(crate) life: u64,
    /// Of the request that created it.
    pub(crate) fingerprint: u64,
    pub(crate) phase: Phase,
    pub(crate) leaf: Leaf,
    /// Once its numbers were asked for.
    pub(crate) meter: OnceCell<Meter>,
    pub(crate) process: Option<Arc<ContainerProcess>>,
    pub(crate) init: Init,
    pub(crate) log: Option<Log>,
    /// Where it has no log: its output on its way to who wants it.
    pub(crate) output: Option<Output>,
    /// Where its disk is, in a guest.
    pub(crate) slot: Option<Slot>,
    pub(crate) hooks: Option<Arc<HookPlan>>,
    /// Its stdin, as long as attachers may feed it.
    pub(crate) input: Option<Input>,
    pub(crate) terminal: Option<Terminal>,
    /// Room for attachers.
    pub(crate) attachers: Arc<Semaphore>,
    pub(crate) execs: Execs,
    pub(crate) warnings: Vec<String>,
    pub(crate) told: Told,
    /// An end of the process at the gate that came while its start was under way, whose outcome says what it means.
    pub(crate) early_exit: Option<Exit>,
    /// Why it could not be started, for those who ask again.
    pub(crate) start_error: Option<CallError>,
    /// The creation that is under way.
    pub(crate) creation: Option<AbortHandle>,
    pub(crate) oom_watch: Option<AbortHandle>,
    /// Hooks that run beside the program; the start is answered after them.
    pub(crate) late_hooks: Option<AbortHandle>,
    /// What was for want of memory before its start, where it could be read.
    pub(crate) ooms_before: Option<OomsBefore>,
    /// The update that is under way.
    pub(crate) updating: bool,
    pub(crate) removal_running: bool,
    /// Why it could not be made; told once what was made of it is gone.
    pub(crate) creation_error: Option<CallError>,
    /// Why the last try to remove it failed.
    pub(crate) removal_error: Option<CallError>,
    pub(crate) on_created: Vec<Reply<CreateContainerResponse>>,
    pub(crate) on_started: Vec<Reply<StartContainerResponse>>,
    pub(crate) on_removed: Vec<Reply<RemoveContainerResponse>>,
}

/// The part of a container's state that outlives its processes.
#[derive(Debug, Default)]
pub(crate) struct Told {
    pub(crate) pid: i32,
    pub(crate) created_at: i64,
    pub(crate) started_at: i64,
    pub(crate) finished_at: i64,
    pub(crate) exit_code: i32,
    pub(crate) oom_killed: bool,
    pub(crate) message: String,
    pub(crate) user: Option<ResolvedUser>,
}

impl Container {
    /// A container whose making begins.
    pub(crate) fn new(id: ContainerId, life: u64, fingerprint: u64, leaf: Leaf) -> Self {
        Self {
            id,
            life,
            fingerprint,
            phase: Phase::Creating,
            leaf,
            meter: OnceCell::new(),
            process: None,
            init: Init::None,
            log: None,
            output: None,
            slot: None,
            hooks: None,
            input: None,
            terminal: None,
            attachers: Arc::new(Semaphore::new(ATTACHERS_MAX)),
            execs: Execs::default(),
            warnings: Vec::new(),
            told: Told::default(),
            early_exit: None,
            start_error: None,
            creation: None,
            oom_watch: None,
            late_hooks: None,
            ooms_before: None,
            updating: false,
            removal_running: false,
            creation_error: None,
            removal_error: None,
            on_created: Vec::new(),
            on_started: Vec::new(),
            on_removed: Vec::new(),
        }
    }

    /// Moves on; a refusal names this container.
    pub(crate) fn advance(&mut self, event: PhaseEvent) -> Result<(), CallError> {
        self.phase =
            self.phase.on(event).map_err(|refused| CallError::Refused { id: self.id.clone(), refused })?;
        Ok(())
    }

    /// What news of it carry.
    pub(crate) fn about(&self) -> About {
        About { id: self.id.clone(), life: self.life }
    }

    /// Takes its process over, and sends it the signals that came too early.
    pub(crate) fn run(&mut self, child: Child) {
        self.told.pid = child.pid();
        self.told.started_at = now_nanos();
        if let Init::Starting { deferred } = self.init {
            for number in (1..=64).filter(|number| deferred >> (number - 1) & 1 == 1) {
                if let Err(error) = child.signal(number) {
                    warn!(container = %self.id, number, %error, "cannot deliver a signal");
                }
            }
        }
        self.init = Init::Running(child);
    }

    /// Nothing of it runs any more; `odd` is what did not go as it should.
    pub(crate) fn settled(&mut self, odd: Vec<String>) {
        if let Some(watch) = self.oom_watch.take() {
            watch.abort();
        }
        // The watch may not have had its turn yet. Where this cannot be read there is nothing to tell.
        self.told.oom_killed |= self.leaf.oom_kills().is_ok_and(|kills| kills > 0);
        if self.told.oom_killed {
            self.tell_limit();
        }
        self.told.pid = 0;
        for text in odd {
            warn!(container = %self.id, text, "odd end of a container");
            self.add_message(&text);
        }
        self.process = None;
    }

    /// Whose memory limit it was that a process of it was killed for.
    fn tell_limit(&mut self) {
        let Some(before) = &self.ooms_before else { return };
        match self.leaf.oom_limit(before) {
            Ok(limit) => self.add_message(&format!("killed for want of memory: {limit}")),
            Err(error) => {
                warn!(container = %self.id, %error, "it cannot be told whose memory limit was reached")
            }
        }
    }

    fn add_message(&mut self, text: &str) {
        let separator = if self.told.message.is_empty() { "" } else { "; " };
        self.told.message.push_str(separator);
        self.told.message.push_str(text);
    }

    /// Lets go of everything but what a removal needs, and of everybody who waits for what will not come any more.
    pub(crate) fn release(&mut self) {
        let tasks = [self.creation.take(), self.oom_watch.take(), self.late_hooks.take()];
        tasks.into_iter().flatten().for_each(|task| task.abort());
        (self.init, self.process) = (Init::None, None);
        (self.input, self.terminal, self.output) = (None, None, None);
        let removed = CallError::Removed(self.id.clone());
        answer(&mut self.on_started, &Err(removed.clone()));
        self.execs.abandon(&removed);
    }

    /// Its state for the node agent; nothing while it is being created or removed.
    pub(crate) fn state(&self) -> Option<ContainerState> {
        let phase = self.phase.published()?;
        let told = &self.told;
        Some(ContainerState {
            container_id: self.id.to_string(),
            phase: phase.into(),
            pid: told.pid,
            created_at: told.created_at,
            started_at: told.started_at,
            finished_at: if self.phase == Phase::Exited { told.finished_at } else { 0 },
            exit_code: if self.phase == Phase::Exited { told.exit_code } else { 0 },
            oom_killed: told.oom_killed,
            message: told.message.clone(),
            user: told.user.clone(),
        })
    }
}

/// Answers everybody who waits for the same thing.
pub(crate) fn answer<T: Clone>(waiting: &mut Vec<Reply<T>>, answer: &Result<T, CallError>) {
    for reply in waiting.drain(..) {
        let _ = reply.send(answer.clone());
    }
}
