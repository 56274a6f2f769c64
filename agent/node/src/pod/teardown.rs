//! Giving back what a pod holds. Every step is tried, whatever became of the others, and doing it again is fine: StopPodSandbox,
//! the undoing of a failed RunPodSandbox and the recovery after a crash all come here.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use hartpod_cni::{Attachment, CniError, netns};
use hartpod_container::cgroup::{DestroyError, Leaf};
use hartpod_proto::SandboxId;
use tokio::task::JoinHandle;

use super::RunningAgent;
use super::heartbeat;
use crate::agent_client::{AgentClient, Door};
use crate::node::Node;
use crate::systemd::{Systemd, destroy_leaf_blocking};
use crate::trace::step;

/// For an agent on this host to shut down and be gone, before it is killed: longer than one waits for its answer to ShutDown.
const AGENT_END: Duration = Duration::from_secs(20);
/// The same for a guest, which may hold that up as long as it likes: with the time that a kill takes it makes the 5 s in which a pod stops.
const GUEST_END: Duration = Duration::from_millis(4500);
/// For a guest that is being stopped to echo: nobody waits longer for it than it takes to be sure.
const GUEST_ANSWER: Duration = Duration::from_secs(2);
/// For an agent, or a VMM with its guest's memory, to be gone after it was killed.
const KILL_END: Duration = Duration::from_secs(10);
/// For an agent that nobody knows the pid of to end by itself, before it is killed with its leaf.
const UNKNOWN_END: Duration = Duration::from_secs(2);
/// For the last news of the agent to be taken in.
const NEWS_END: Duration = Duration::from_secs(1);
/// For the processes of a leaf to be gone after they were killed.
const LEAF_END: Duration = Duration::from_secs(10);

/// What a pod holds outside of its records.
#[derive(Debug)]
pub(crate) struct Holdings {
    pub(crate) id: SandboxId,
    /// None when it is known to be gone.
    pub(crate) agent: HeldAgent,
    /// Of the agent and of each container.
    pub(crate) leaves: Vec<Leaf>,
    /// None with the host's network.
    pub(crate) attachment: Option<Attachment>,
    /// Holds the agent's sockets.
    pub(crate) state_dir: PathBuf,
}

/// What is known of a pod's agent.
#[derive(Debug)]
pub(crate) enum HeldAgent {
    Running(Box<RunningAgent>, Option<JoinHandle<()>>),
    /// An earlier daemon may have started one just before its end: nobody knows its pid.
    Unknown,
    None,
}

/// One step that failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    #[error("kill the pod's agent")]
    KillAgent(#[source] io::Error),
    #[error("the pod's agent does not end")]
    AgentStays,
    #[error("take down the pod's cgroups")]
    Leaf(#[source] DestroyError),
    #[error("take the pod off its network")]
    Network(#[source] CniError),
    #[error("remove the pod's network namespace")]
    Netns(#[source] netns::NetnsError),
    #[error("remove {}", path.display())]
    StateDir { path: PathBuf, source: io::Error },
    #[error("work of the daemon broke off")]
    BrokenOff,
}

/// Something is left of a pod.
#[derive(Debug)]
pub(crate) struct TearDownError {
    /// At least one.
    pub(crate) faults: Vec<Fault>,
}

impl fmt::Display for TearDownError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, fault) in self.faults.iter().enumerate() {
            if i > 0 {
                f.write_str("; ")?;
            }
            write!(f, "{fault}")?;
            let mut source = std::error::Error::source(fault);
            while let Some(error) = source {
                write!(f, ": {error}")?;
                source = error.source();
            }
        }
        Ok(())
    }
}

// The faults are printed with their causes above: there is no one source.
impl std::error::Error for TearDownError {}

/// Gives everything back.
pub(crate) async fn tear_down(node: &Node, held: Holdings) -> Result<(), TearDownError> {
    let Holdings { id, agent, leaves, attachment, state_dir } = held;
    // The network goes while the processes do: they are being killed, so they need it no longer.
    let processes = async {
        let mut faults = end_agent(agent, &state_dir).await;
        faults.extend(destroy_leaves(node.systemd.clone(), leaves).await);
        faults
    };
    let (mut faults, network) = tokio::join!(processes, detach(node, attachment));
    faults.extend(network);
    if faults.is_empty() {
        faults.extend(remove_state_dir(state_dir).await);
    }
    for fault in &faults {
        tracing::warn!(sandbox = %id, fault = %crate::chain(fault), "pod not taken down");
    }
    if faults.is_empty() { Ok(()) } else { Err(TearDownError { faults }) }
}

/// Asks first: the agent takes its containers down in order. Then it is killed, which never fails to end it.
async fn end_agent(agent: HeldAgent, state_dir: &std::path::Path) -> Vec<Fault> {
    match agent {
        HeldAgent::None => Vec::new(),
        HeldAgent::Unknown => {
            // A VMM of which nobody knows the pid ends with its leaf. An agent on this host is asked; where there is none that is refused
            // at once.
            let asked = AgentClient::new(state_dir.to_owned(), Door::Sockets);
            let _ = tokio::time::timeout(UNKNOWN_END, asked.shut_down()).await;
            Vec::new()
        }
        HeldAgent::Running(agent, news) => {
            let fault = end_running(&agent).await;
            if let Some(news) = news {
                let _ = tokio::time::timeout(NEWS_END, news).await;
            }
            fault.into_iter().collect()
        }
    }
}

async fn end_running(agent: &RunningAgent) -> Option<Fault> {
    if !agent.process.is_alive() {
        return None;
    }
    match tokio::time::timeout(patience(agent.client.door()), shut_down(agent)).await {
        Ok(Ok(())) => return None,
        Ok(Err(why)) => {
            tracing::warn!(pid = agent.process.record.pid, why, "agent cannot be shut down, killing it");
        }
        Err(_) => tracing::warn!(pid = agent.process.record.pid, "agent stays after ShutDown, killing it"),
    }
    if let Err(error) = agent.process.kill() {
        return Some(Fault::KillAgent(error));
    }
    (!agent.process.ends_within(KILL_END).await).then_some(Fault::AgentStays)
}

/// For ShutDown and the end.
fn patience(door: Door) -> Duration {
    match door {
        Door::Sockets => AGENT_END,
        Door::Vsock => GUEST_END,
    }
}

/// Until it has ended, or why it will not.
async fn shut_down(agent: &RunningAgent) -> Result<(), String> {
    let asked = tokio::select! {
        answer = agent.client.shut_down() => answer.map_err(|error| error.to_string()),
        () = heartbeat::until_silent(&agent.client, GUEST_ANSWER), if agent.client.door() == Door::Vsock => {
            Err("the guest does not answer".to_owned())
        }
    };
    asked?;
    agent.process.ended().await;
    Ok(())
}

async fn destroy_leaves(systemd: Option<Systemd>, leaves: Vec<Leaf>) -> Vec<Fault> {
    blocking(move || {
        let deadline = Instant::now() + LEAF_END;
        for leaf in &leaves {
            // All at once, so that they die at the same time.
            let _ = leaf.kill();
        }
        let destroyed = leaves.iter().map(|leaf| destroy_leaf_blocking(systemd.as_ref(), leaf, deadline));
        destroyed.filter_map(Result::err).map(Fault::Leaf).collect()
    })
    .await
}

async fn detach(node: &Node, attachment: Option<Attachment>) -> Vec<Fault> {
    let Some(attachment) = attachment else { return Vec::new() };
    let began = std::time::Instant::now();
    let left = step("CNI DEL", node.cni.del(&attachment)).await;
    node.own_metrics.network("DEL", left.is_ok(), began.elapsed());
    if let Err(error) = left {
        // The namespace stays: DEL will be tried again, and plugins want to see it.
        return vec![Fault::Network(error)];
    }
    let Some(path) = attachment.netns else { return Vec::new() };
    blocking(move || netns::remove_blocking(&path).err().map(Fault::Netns).into_iter().collect()).await
}

async fn remove_state_dir(path: PathBuf) -> Vec<Fault> {
    blocking(move || match std::fs::remove_dir_all(&path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => vec![Fault::StateDir { path, source }],
        _ => Vec::new(),
    })
    .await
}

async fn blocking(work: impl FnOnce() -> Vec<Fault> + Send + 'static) -> Vec<Fault> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|_| vec![Fault::BrokenOff])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_holds_its_end_up_is_killed_within_the_time_that_a_stop_may_take() {
        assert!(patience(Door::Vsock) < Duration::from_secs(5));
        assert!(patience(Door::Sockets) > Duration::from_secs(15), "an agent on this host is believed");
    }
}
