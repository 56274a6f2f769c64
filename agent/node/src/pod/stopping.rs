//! StopContainer: a signal, a grace period, a kill. The owning task holds the deadlines; nothing waits for them.

use std::sync::Arc;
use std::time::Duration;

use hartpod_container::cgroup::{CgroupError, Leaf};
use hartpod_proto::ContainerId;
use tokio::time::Instant;

use super::command::{Done, Reply};
use super::guest_kill::kill_in_guest;
use super::task::PodTask;
use crate::agent_client::AgentError;
use crate::container::{self, ContainerEvent, ContainerState, Exit, Refused};

/// For a killed container to be dead: longer than that and the kernel holds its processes.
const KILL_LIMIT: Duration = Duration::from_secs(15);
/// For the agent to tell of the end of a container whose cgroup is empty: longer than that and the agent hangs.
const REPORT_LIMIT: Duration = Duration::from_secs(2);
/// Between looks at a cgroup that was killed.
const KILL_POLL: Duration = Duration::from_millis(10);

/// A container was not stopped.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StopContainerError {
    #[error("container {id}")]
    Refused { id: ContainerId, source: container::Refused },
    #[error("kill container {id}")]
    Kill { id: ContainerId, source: CgroupError },
    #[error("container {id} is not dead {} s after it was killed", KILL_LIMIT.as_secs())]
    StillAlive { id: ContainerId },
    #[error("container {id} could not be removed while it was being stopped: {why}")]
    Removal { id: ContainerId, why: String },
}

/// A stop that is under way.
#[derive(Debug)]
pub(super) struct Stopping {
    due: Due,
    pub(super) waiters: Vec<Reply<(), StopContainerError>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Due {
    /// When the grace ends.
    Kill(Instant),
    /// When a kill counts as failed.
    GiveUp(Instant),
    /// When a container whose cgroup is empty counts as ended, whatever its agent does.
    Presume(Instant),
}

/// What the clock asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    Kill,
    GiveUp,
    Presume,
}

impl Stopping {
    pub(super) fn new(now: Instant, grace: Duration) -> Self {
        Self { due: Due::Kill(later(now, grace)), waiters: Vec::new() }
    }

    /// One more caller: the earliest end of a grace period counts.
    pub(super) fn join(&mut self, now: Instant, grace: Duration) {
        if let Due::Kill(at) = &mut self.due {
            *at = later(now, grace).min(*at);
        }
    }

    /// When it wants to be looked at.
    pub(super) fn at(&self) -> Instant {
        match self.due {
            Due::Kill(at) | Due::GiveUp(at) | Due::Presume(at) => at,
        }
    }

    /// What is due now.
    pub(super) fn step(&mut self, now: Instant) -> Option<Step> {
        match self.due {
            Due::Kill(at) if at <= now => {
                self.due = Due::GiveUp(later(now, KILL_LIMIT));
                Some(Step::Kill)
            }
            Due::GiveUp(at) if at <= now => Some(Step::GiveUp),
            Due::Presume(at) if at <= now => Some(Step::Presume),
            Due::Kill(_) | Due::GiveUp(_) | Due::Presume(_) => None,
        }
    }

    /// Its cgroup is empty: the agent's word is all that is missing.
    pub(super) fn emptied(&mut self, now: Instant) {
        self.due = Due::Presume(later(now, REPORT_LIMIT));
    }

    /// Answers everyone.
    pub(super) fn finish(self, outcome: Result<(), StopContainerError>) {
        let outcome = outcome.map_err(Arc::new);
        for waiter in self.waiters {
            let _ = waiter.send(outcome.clone());
        }
    }
}

/// Kills everything in a container's leaf and waits for it to be empty; false when it does not become so in time.
pub(super) async fn kill(leaf: Leaf) -> Result<bool, CgroupError> {
    let deadline = Instant::now() + KILL_LIMIT;
    let killer = leaf.clone();
    tokio::task::spawn_blocking(move || killer.kill()).await.unwrap_or(Ok(()))?;
    // A look is one read of a file in memory.
    while leaf.populated()? {
        if Instant::now() >= deadline {
            return Ok(false);
        }
        tokio::time::sleep(KILL_POLL).await;
    }
    Ok(true)
}

/// A grace of centuries must not overflow the clock.
fn later(now: Instant, by: Duration) -> Instant {
    const FOREVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
    now + by.min(FOREVER)
}

impl PodTask {
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
            match self.agent.clone().filter(|_| self.info.is_guest()) {
                None => self.start(async move { Done::Kill(id, kill(leaf).await) }),
                Some(agent) => self.start(async move {
                    kill_in_guest(&agent, &id).await;
                    // Its end is news of the agent's.
                    Done::Kill(id, Ok(false))
                }),
            }
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
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn the_kill_comes_when_the_grace_ends_and_failure_a_while_later() {
        let now = Instant::now();
        let mut stop = Stopping::new(now, 10 * SECOND);
        assert_eq!(stop.step(now + 9 * SECOND), None);
        assert_eq!(stop.step(now + 10 * SECOND), Some(Step::Kill));
        assert_eq!(stop.step(now + 10 * SECOND), None);
        assert_eq!(stop.step(now + 10 * SECOND + KILL_LIMIT), Some(Step::GiveUp));
    }

    #[test]
    fn an_agent_that_does_not_tell_of_the_end_is_not_waited_for() {
        let now = Instant::now();
        let mut stop = Stopping::new(now, Duration::ZERO);
        assert_eq!(stop.step(now), Some(Step::Kill));
        stop.emptied(now + SECOND);
        assert_eq!(stop.step(now + SECOND), None);
        assert_eq!(stop.step(now + SECOND + REPORT_LIMIT), Some(Step::Presume));
    }

    #[test]
    fn a_second_stop_shortens_the_grace_and_never_lengthens_it() {
        let now = Instant::now();
        let mut stop = Stopping::new(now, 60 * SECOND);
        stop.join(now + SECOND, 2 * SECOND);
        assert_eq!(stop.at(), now + 3 * SECOND);
        stop.join(now + SECOND, 100 * SECOND);
        assert_eq!(stop.at(), now + 3 * SECOND);
        stop.join(now + SECOND, Duration::ZERO);
        assert_eq!(stop.step(now + SECOND), Some(Step::Kill));
    }

    #[test]
    fn an_absurd_grace_does_not_overflow() {
        let stop = Stopping::new(Instant::now(), Duration::MAX);
        assert!(stop.at() > Instant::now());
    }
}
