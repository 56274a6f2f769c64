//! Killing a container in its guest.
//!
//! A guest that does not take in that a container is to be dead is of no use to anybody: it is ended, as the container must be.

use std::time::Duration;

use hartpod_proto::ContainerId;
use tokio::time::{Instant, sleep, timeout_at};

use super::RunningAgent;
use crate::agent_client::AgentError;

/// For a guest to take it in.
const ANSWER: Duration = Duration::from_secs(4);
/// For a VMM with its guest's memory to be gone after it was killed.
const KILL_END: Duration = Duration::from_secs(10);
/// Between attempts to reach it: one connection that is refused or breaks says nothing of the next.
const RETRY: Duration = Duration::from_millis(200);

/// Has the agent kill the container, or ends the guest, which is gone then. A refusal of the agent's is left at that: it tells what became of the container.
pub(super) async fn kill_in_guest(agent: &RunningAgent, id: &ContainerId) {
    let deadline = Instant::now() + ANSWER;
    let mut why = format!("no answer within {} s", ANSWER.as_secs());
    while let Ok(asked) = timeout_at(deadline, agent.client.signal(id, libc::SIGKILL)).await {
        match asked {
            Ok(()) | Err(AgentError::Answered { .. }) => return,
            Err(error) => why = error.to_string(),
        }
        if !agent.process.is_alive() || Instant::now() + RETRY >= deadline {
            break;
        }
        sleep(RETRY).await;
    }
    if !agent.process.is_alive() {
        return;
    }
    tracing::warn!(container = %id, why, "the guest cannot be told to kill a container, ending the guest");
    if let Err(error) =
        agent.process.kill_because(&format!("container {id} could not be killed in it: {why}"))
    {
        tracing::warn!(container = %id, %error, "VMM not killed");
    }
    agent.process.ends_within(KILL_END).await;
}
