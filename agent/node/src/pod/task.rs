//! The owner of one pod: takes commands and news one after another, starts the work, never waits for it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use hartpod_proto::ContainerId;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::bring_up::{RunError, Up};
use super::command::{Command, Done, Message, News, Reply};
use super::entry::Entry;
use super::recording::Deferred;
use super::remove::RemovePodError;
use super::resize::ResizeError;
use super::state::{SandboxEvent, SandboxState};
use super::stop::StopError;
use super::unheard::Unheard;
use super::{PodInfo, PodSnapshot, RunningAgent, heartbeat, watch as news};
use crate::events::Happened;
use crate::names::{ContainerName, Names, Progress};
use crate::node::Node;
use crate::records::PodResources;
use crate::trace::Context;

/// See the module.
pub(super) struct PodTask {
    pub(super) node: Arc<Node>,
    pub(super) info: Arc<PodInfo>,
    pub(super) state: SandboxState,
    pub(super) reason: String,
    pub(super) ips: Vec<IpAddr>,
    /// See [`PodSnapshot::network_warning`].
    pub(super) network_warning: String,
    pub(super) agent: Option<RunningAgent>,
    /// Passes on the agent's news until the agent has ended.
    pub(super) news: Option<JoinHandle<()>>,
    /// Until the first word of an agent that an earlier daemon started.
    pub(super) unheard: Option<Unheard>,
    pub(super) delivered: bool,
    /// What it was told of its size since its start.
    pub(super) resources: Option<Arc<PodResources>>,
    /// Who waits for the change of its size that is under way.
    pub(super) resizing: Option<Reply<(), ResizeError>>,
    pub(super) containers: BTreeMap<ContainerId, Entry>,
    pub(super) names: Names<ContainerName, ContainerId>,
    /// Slots of a guest that it may still hold, of containers that were not made.
    pub(super) held_slots: BTreeSet<u32>,

    pub(super) up_waiters: Vec<Reply<(), RunError>>,
    pub(super) stop_waiters: Vec<Reply<(), StopError>>,
    pub(super) remove_waiters: Vec<Reply<(), RemovePodError>>,

    /// Records that are behind.
    pub(super) pod_dirty: bool,
    pub(super) recording: bool,
    pub(super) deferred: Vec<Deferred>,
    /// To be told once no record is behind.
    pub(super) happened: Vec<(String, Happened)>,

    /// See [`super::PodHandle`] for what bounds it.
    pub(super) messages: mpsc::UnboundedReceiver<Message>,
    pub(super) sender: mpsc::UnboundedSender<Message>,
    pub(super) snapshot: watch::Sender<Arc<PodSnapshot>>,
}

/// Whether the task goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    Continue,
    /// The pod is gone.
    End,
}

impl PodTask {
    pub(super) async fn run(mut self) {
        loop {
            let due =
                self.next_deadline().into_iter().chain(self.unheard.as_ref().and_then(|u| u.until)).min();
            let message = tokio::select! {
                message = self.messages.recv() => message,
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {
                    let now = Instant::now();
                    self.on_deadline(now);
                    self.on_silence(now);
                    self.tell_happened();
                    continue;
                }
            };
            let next = match message {
                Some(Message::Command(context, command)) => context.enter(|| self.on_command(command)),
                Some(Message::Done(context, done)) => context.enter(|| self.on_done(done)),
                Some(Message::News(news)) => self.on_news(news),
                // Cannot be: the task holds a sender itself.
                None => Next::End,
            };
            if next == Next::End {
                self.tell_deleted();
                return;
            }
            self.tell_happened();
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
            Command::Resize(resources, reply) => self.on_resize(*resources, reply),
            Command::Stop(reply) => self.on_stop(reply),
            Command::Remove(reply) => self.on_remove(reply),
            Command::Create(config, reply) => self.on_create(*config, reply),
            Command::CreateDelivered(id) => self.on_create_delivered(&id),
            Command::Start(id, reply) => self.on_start(&id, reply),
            Command::UpdateContainer(id, asked, reply) => self.on_update_container(&id, *asked, reply),
            Command::StopContainer(id, grace, reply) => self.on_stop_container(&id, grace, reply),
            Command::RemoveContainer(id, reply) => self.on_remove_container(&id, reply),
            Command::NetworkWarning(warning) => {
                self.network_warning = warning;
                self.publish();
            }
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
            Done::Resize(outcome) => self.on_resized(outcome),
            Done::RemovePod(outcome) => return self.on_pod_removed(outcome),
            Done::Create(id, outcome) => self.on_created(&id, outcome),
            Done::Start(id, outcome) => self.on_started(&id, outcome),
            Done::Update(id, outcome) => self.on_updated(&id, outcome),
            Done::Signal(id, outcome) => self.on_signalled(&id, outcome),
            Done::Kill(id, outcome) => self.on_killed(&id, outcome),
            Done::Remove(id, outcome) => self.on_container_removed(&id, outcome),
            Done::LastLines(id) => self.on_last_lines(&id),
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
            News::Container(id, state, _room) => self.on_container_news(&id, state),
            News::Synced(known, _room) => self.on_synced(&known),
            News::Silent => self.on_guest_silent(),
            News::Alive => self.on_guest_alive(),
            News::NoVolumes => self.on_volumes_lost(),
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

    pub(super) fn follow(&mut self, agent: RunningAgent) {
        if self.info.is_guest() {
            heartbeat::follow(agent.clone(), self.sender.clone());
        }
        self.news = Some(news::follow(self.node.clone(), self.info.clone(), agent, self.sender.clone()));
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
        let next = Arc::new(PodSnapshot {
            info: self.info.clone(),
            state: self.state,
            reason: self.reason.clone(),
            ips: self.ips.clone(),
            network_warning: self.network_warning.clone(),
            agent: self.agent.clone(),
            resources: self.resources.clone(),
            containers,
        });
        self.note_changes(&next);
        self.snapshot.send_replace(next);
    }

    /// Starts work, for whomever the task works just now; its end comes back as a message.
    pub(super) fn start(&self, work: impl Future<Output = Done> + Send + 'static) {
        let (sender, context) = (self.sender.clone(), Context::current());
        tokio::spawn(async move {
            let done = context.clone().scope(work).await;
            let _ = sender.send(Message::Done(context, done));
        });
    }
}
