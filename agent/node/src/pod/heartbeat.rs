//! Whether a guest is alive.
//!
//! A VMM runs on while its guest hangs or spins, and nothing would tell. So each guest echoes a byte now and then; one that does not is not
//! ready, with the reason, until it does again. An agent on this host needs none of this: it ends, or it is stopped on purpose.

use std::io;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::command::{Message, News};
use super::task::PodTask;
use super::{RunningAgent, SandboxEvent, SandboxState};
use crate::agent_client::AgentClient;

/// Between two beats: each wakes the guest.
const INTERVAL: Duration = Duration::from_secs(5);
/// For a byte to come back: what a guest on a busy board may take.
const ANSWER: Duration = Duration::from_secs(10);
/// Between two looks at a guest of which something is awaited.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);

/// Tells of each beat, until the agent has ended: what a beat means changes with what else is known of the agent.
pub(super) fn follow(agent: RunningAgent, to: mpsc::UnboundedSender<Message>) -> JoinHandle<()> {
    tokio::spawn(beat(agent, to, (INTERVAL, ANSWER)))
}

pub(super) async fn beat(
    agent: RunningAgent,
    to: mpsc::UnboundedSender<Message>,
    (interval, answer): (Duration, Duration),
) {
    loop {
        tokio::select! {
            () = tokio::time::sleep(interval) => {}
            _ = agent.process.ended() => return,
        }
        let news = match is_silent(&agent.client, answer).await {
            true => News::Silent,
            false if agent.vmm.has_lost_volumes() => News::NoVolumes,
            false => News::Alive,
        };
        let _ = to.send(Message::News(news));
    }
}

/// Resolves when a guest does not answer within `patience`.
pub(super) async fn until_silent(client: &AgentClient, patience: Duration) {
    while !is_silent(client, patience).await {
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

/// A refusal is an answer: of a guest that is on its way out, or has more connections than it takes.
async fn is_silent(client: &AgentClient, patience: Duration) -> bool {
    match tokio::time::timeout(patience, client.echo()).await {
        Ok(Ok(())) => false,
        Ok(Err(error)) => error.kind() == io::ErrorKind::TimedOut,
        Err(_) => true,
    }
}

impl PodTask {
    pub(super) fn on_guest_silent(&mut self) {
        if self.state != SandboxState::Ready {
            return;
        }
        self.move_on(SandboxEvent::AgentSilent);
        self.reason = format!("the guest does not answer: nothing came back for {} s", ANSWER.as_secs());
        tracing::warn!(sandbox = %self.info.id, reason = self.reason, "sandbox not ready");
        self.publish();
    }

    /// What is in its volumes cannot be read or written any more, and no other file server could take over what the guest has open.
    pub(super) fn on_volumes_lost(&mut self) {
        const REASON: &str = "the server of its volumes, hartpod-fs, has ended";
        let is_known = self.reason == REASON;
        if is_known || !matches!(self.state, SandboxState::Ready | SandboxState::Silent) {
            return;
        }
        self.move_on(SandboxEvent::AgentSilent);
        REASON.clone_into(&mut self.reason);
        tracing::warn!(sandbox = %self.info.id, reason = self.reason, "sandbox not ready");
        self.publish();
    }

    pub(super) fn on_guest_alive(&mut self) {
        // An agent that has not told of its containers yet is waited for elsewhere.
        if self.state != SandboxState::Silent || self.unheard.is_some() {
            return;
        }
        self.move_on(SandboxEvent::AgentHeard);
        self.reason.clear();
        tracing::info!(sandbox = %self.info.id, "sandbox ready again: its guest answers");
        self.publish();
    }
}
