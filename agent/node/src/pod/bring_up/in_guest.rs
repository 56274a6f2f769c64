//! What is different where the agent is in a guest: it boots, and is told what the host knows.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use hartpod_proto::pod::v1 as agent;
use hartpod_vm::tap::{self, Tap};

use super::{RunError, Up, attach, blocking, common_request, make_netns, set_up, start_agent};
use crate::agent_client::AgentError;
use crate::agent_process::AgentProcess;
use crate::clock;
use crate::laps::Laps;
use crate::node::Node;
use crate::pod::last_words::{how_it_ended, ran_out_of_memory};
use crate::pod::teardown::{HeldAgent, Holdings};
use crate::pod::{PodInfo, RunningAgent, files, network};
use crate::trace::step;

/// For a VMM to be gone whose sockets are.
const END: Duration = Duration::from_secs(2);

/// The guest boots while the plugins work; what its card is set to is known only when they are done.
pub(super) async fn steps(
    node: &Arc<Node>,
    info: &Arc<PodInfo>,
    held: &mut Holdings,
    laps: &mut Laps,
) -> Result<Up, RunError> {
    step("make network namespace", make_netns(info)).await?;
    laps.note("netns");
    let (agent, tap) = step("start VMM", start_agent(node, info)).await?;
    held.agent = HeldAgent::Running(Box::new(agent.clone()), None);
    laps.note("start of the VMM");
    let (ips, ready) = tokio::join!(
        attach(node, info, held.attachment.as_ref()),
        step("boot guest", await_ready(node.clone(), info.clone(), agent.process.clone()))
    );
    let ips = ips?;
    ready?;
    laps.note("network and boot");
    if let Err(error) = finish(node, info, &agent, tap, &ips).await {
        return Err(explained(node, info, &agent, error).await);
    }
    laps.note("card and setup");
    Ok(Up { agent, ips })
}

async fn finish(
    node: &Arc<Node>,
    info: &Arc<PodInfo>,
    agent: &RunningAgent,
    tap: Option<Tap>,
    ips: &[IpAddr],
) -> Result<(), RunError> {
    let request = {
        let (node, info, ips) = (node.clone(), info.clone(), ips.to_vec());
        blocking(&info.id.clone(), move || request_blocking(&node, &info, tap, &ips)).await?
    };
    set_up(node, info, &agent.client, request).await?;
    limit(node, info, agent).await
}

/// A guest with room to grow keeps it from its pod.
async fn limit(node: &Node, info: &PodInfo, agent: &RunningAgent) -> Result<(), RunError> {
    let plan = info.guest.as_ref().and_then(|guest| guest.plan.as_ref());
    let Some(inside) = plan.and_then(|plan| plan.inside.as_ref()) else { return Ok(()) };
    let request = agent::UpdatePodRequest { resources_json: serde_json::to_vec(inside).unwrap_or_default() };
    let answer = agent.client.update_pod(request).await.map_err(RunError::SetUp)?;
    node.warn_of(info, answer.warnings);
    Ok(())
}

/// The error that there was, or that the guest has ended, which it comes from then.
pub(in crate::pod) async fn explained(
    node: &Arc<Node>,
    info: &Arc<PodInfo>,
    agent: &RunningAgent,
    error: RunError,
) -> RunError {
    let has_ended = match error {
        RunError::SetUp(AgentError::Unreachable { .. }) => agent.process.ends_within(END).await,
        _ => !agent.process.is_alive(),
    };
    if !has_ended {
        return error;
    }
    RunError::GuestEnded { id: info.id.clone(), how: how_it_ended(node, info, agent).await }
}

/// On a thread of its own: guests that hang must not use up those for everybody's short work.
async fn await_ready(
    node: Arc<Node>,
    info: Arc<PodInfo>,
    process: Arc<AgentProcess>,
) -> Result<(), RunError> {
    const STACK: usize = 128 << 10;
    let (sender, outcome) = tokio::sync::oneshot::channel();
    let id = info.id.clone();
    let waiting = move || {
        let dir = node.layout.agent(&info.id);
        let ready = node.backends.of(&info.handler).map_err(RunError::from).and_then(|backend| {
            backend.await_ready_blocking(&dir, process.pidfd()).map_err(|source| {
                match ran_out_of_memory(&node, &info) {
                    true => RunError::OutOfMemory { id: info.id.clone() },
                    false => RunError::Start { id: info.id.clone(), source },
                }
            })
        });
        let _ = sender.send(ready);
    };
    let spawned = std::thread::Builder::new().name("guest-boot".to_owned()).stack_size(STACK).spawn(waiting);
    spawned.map_err(|source| RunError::Thread { id: id.clone(), source })?;
    outcome.await.unwrap_or_else(|_| {
        Err(RunError::Thread {
            id,
            source: io::Error::other("the thread that waited for its boot broke off"),
        })
    })
}

/// A guest has neither the host's clock nor its files.
fn request_blocking(
    node: &Node,
    info: &PodInfo,
    tap: Option<Tap>,
    ips: &[IpAddr],
) -> Result<agent::SetUpPodRequest, RunError> {
    let connect = |source| RunError::Tap { id: info.id.clone(), source };
    let interface = tap.map(|tap| tap::connect_blocking(&tap, network::INTERFACE)).transpose();
    let interface = interface.map_err(connect)?;
    let files = files::guest_files_blocking(&node.records.pod_dir(&info.id), &info.config, ips)
        .map_err(|source| RunError::Files { id: info.id.clone(), source })?;
    Ok(agent::SetUpPodRequest {
        clock_ns: u64::try_from(clock::now()).unwrap_or_default(),
        network: interface.as_ref().map(network::of_guest),
        files,
        ..common_request(info)
    })
}
