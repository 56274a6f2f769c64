//! Calls to the agent of one pod.
//!
//! Every call has a deadline and says what was tried. A channel connects at its first call and again after a broken
//! connection; its windows are small because a node has hundreds of them and they carry control only.

mod sessions;
mod stream;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hartpod_proto::ContainerId;
use hartpod_proto::pod::v1 as pod;
use hartpod_proto::pod::v1::pod_agent_client::PodAgentClient;
use hyper_util::rt::TokioIo;
use tokio::sync::Semaphore;
use tonic::transport::{Endpoint, Uri};
use tonic::{Code, Response, Status, Streaming};

use stream::Service;
pub(crate) use stream::{Door, StreamError, Token};

use crate::trace::{Traced, agent_call};

/// Bytes in flight per call; calls of pod/v1 are small, a runtime spec is the largest.
const STREAM_WINDOW: u32 = 64 << 10;
/// Bytes in flight per agent. An agent may answer all of the 1024 calls that it takes at once, and h2 ends a connection when the small frames
/// that it has not handed on are worth half of this, 256 bytes each at most.
const CONNECTION_WINDOW: u32 = 512 << 10;
/// Calls to begin something for a client that are under way at one time: more wait. So a burst neither fills the agent's room for calls, nor is
/// a process's end told later for it.
const STARTS: usize = 64;
/// The same for connections to ports, which may take seconds where nobody answers.
const CONNECTS: usize = 256;
/// Bytes of a message of a guest's agent at most, who may say anything. One container's state fits with all the groups that a process can
/// have; a Describe of many such does not, and then Watch tells them one by one.
const GUEST_MESSAGE: usize = 256 << 10;
/// Calls that wait for the connection at the same time.
const WAITING_CALLS: usize = 32;

/// For calls that an agent answers from memory.
const SHORT: Duration = Duration::from_secs(10);
/// For calls that touch volumes or start processes; the kubelet gives up after two minutes (its --runtime-request-timeout).
const LONG: Duration = Duration::from_secs(110);
/// For ShutDown: killing is immediate, unmounting a writable layer may wait for a disk.
const SHUT_DOWN: Duration = Duration::from_secs(15);

/// A call to a pod agent did not succeed.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum AgentError {
    /// The agent answered with an error, which says what it tried.
    #[error("{message}")]
    Answered { code: Code, message: String },
    /// It did not answer in time.
    #[error("the pod's agent did not answer {call} within {} s", after.as_secs())]
    TimedOut { call: &'static str, after: Duration },
    /// Its guest does not answer anybody.
    #[error("the pod's agent was asked for {call}, and its guest does not answer")]
    Silent { call: &'static str },
    /// There is nobody at its socket, or the connection broke.
    #[error("the pod's agent cannot be asked for {call}: {why}")]
    Unreachable { call: &'static str, why: String },
}

/// One pod's agent, as the daemon talks to it.
#[derive(Debug, Clone)]
pub(crate) struct AgentClient {
    calls: PodAgentClient<Traced>,
    /// Folder that holds its sockets, or its VMM's.
    dir: Arc<Path>,
    door: Door,
    starts: Arc<Semaphore>,
    connects: Arc<Semaphore>,
}

impl AgentClient {
    /// The agent that is reached by sockets in `dir`. Connects at the first call.
    pub(crate) fn new(dir: PathBuf, door: Door) -> Self {
        let dir: Arc<Path> = dir.into();
        let socket_dir = dir.clone();
        let connector = tower::service_fn(move |_: Uri| {
            let dir = socket_dir.clone();
            async move { stream::connect(&dir, door, Service::Calls).await.map(TokioIo::new) }
        });
        // Never resolved: the connector ignores it, and h2 wants an authority.
        let channel = Endpoint::from_static("http://pod")
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .buffer_size(WAITING_CALLS)
            .connect_with_connector_lazy(connector);
        let calls = PodAgentClient::new(Traced(channel));
        let calls = match door {
            Door::Sockets => calls,
            Door::Vsock => calls.max_decoding_message_size(GUEST_MESSAGE),
        };
        let (starts, connects) = (Semaphore::new(STARTS), Semaphore::new(CONNECTS));
        Self { calls, dir, door, starts: Arc::new(starts), connects: Arc::new(connects) }
    }

    /// How it is reached.
    pub(crate) fn door(&self) -> Door {
        self.door
    }

    /// See the protocol for this and the calls below.
    pub(crate) async fn set_up(
        &self,
        request: pod::SetUpPodRequest,
    ) -> Result<pod::SetUpPodResponse, AgentError> {
        let mut calls = self.calls.clone();
        bounded("SetUpPod", LONG, calls.set_up_pod(request)).await
    }

    pub(crate) async fn describe(&self) -> Result<pod::DescribeResponse, AgentError> {
        let mut calls = self.calls.clone();
        bounded("Describe", SHORT, calls.describe(pod::DescribeRequest {})).await
    }

    /// Every container's state, then each change.
    pub(crate) async fn watch(&self) -> Result<Streaming<pod::WatchResponse>, AgentError> {
        let mut calls = self.calls.clone();
        bounded("Watch", SHORT, calls.watch(pod::WatchRequest {})).await
    }

    pub(crate) async fn create(
        &self,
        request: pod::CreateContainerRequest,
    ) -> Result<pod::CreateContainerResponse, AgentError> {
        let mut calls = self.calls.clone();
        bounded("CreateContainer", LONG, calls.create_container(request)).await
    }

    pub(crate) async fn start(
        &self,
        container: &ContainerId,
    ) -> Result<pod::StartContainerResponse, AgentError> {
        let mut calls = self.calls.clone();
        let request = pod::StartContainerRequest { container_id: container.to_string() };
        bounded("StartContainer", LONG, calls.start_container(request)).await
    }

    pub(crate) async fn signal(&self, container: &ContainerId, signal: i32) -> Result<(), AgentError> {
        let mut calls = self.calls.clone();
        let request = pod::SignalContainerRequest { container_id: container.to_string(), signal };
        bounded("SignalContainer", SHORT, calls.signal_container(request)).await.map(drop)
    }

    pub(crate) async fn remove(&self, container: &ContainerId) -> Result<(), AgentError> {
        let mut calls = self.calls.clone();
        let request = pod::RemoveContainerRequest { container_id: container.to_string() };
        bounded("RemoveContainer", SHUT_DOWN, calls.remove_container(request)).await.map(drop)
    }

    /// Limits may wait for the kernel to take memory back.
    pub(crate) async fn update(
        &self,
        request: pod::UpdateContainerRequest,
    ) -> Result<pod::UpdateContainerResponse, AgentError> {
        let mut calls = self.calls.clone();
        bounded("UpdateContainer", LONG, calls.update_container(request)).await
    }

    /// As [`Self::update`].
    pub(crate) async fn update_pod(
        &self,
        request: pod::UpdatePodRequest,
    ) -> Result<pod::UpdatePodResponse, AgentError> {
        let mut calls = self.calls.clone();
        bounded("UpdatePod", LONG, calls.update_pod(request)).await
    }

    pub(crate) async fn reopen_log(&self, container: &ContainerId) -> Result<(), AgentError> {
        let mut calls = self.calls.clone();
        let request = pod::ReopenLogRequest { container_id: container.to_string() };
        bounded("ReopenLog", SHORT, calls.reopen_log(request)).await.map(drop)
    }

    pub(crate) async fn start_exec(
        &self,
        request: pod::StartExecRequest,
    ) -> Result<pod::StartExecResponse, AgentError> {
        let mut calls = self.calls.clone();
        bounded("StartExec", LONG, in_turn(&self.starts, calls.start_exec(request))).await
    }

    /// Waits for as long as the exec runs; the caller bounds it.
    pub(crate) async fn wait_exec(
        &self,
        container: &ContainerId,
        exec: &str,
    ) -> Result<pod::WaitExecResponse, AgentError> {
        let mut calls = self.calls.clone();
        let request = pod::WaitExecRequest { container_id: container.to_string(), exec_id: exec.to_owned() };
        let answer = agent_call("WaitExec", calls.wait_exec(request)).await;
        answer.map(Response::into_inner).map_err(|s| broken("WaitExec", &s))
    }

    /// Kills an exec's whole process tree; one that is over is success.
    pub(crate) async fn kill_exec(&self, container: &ContainerId, exec: &str) -> Result<(), AgentError> {
        let mut calls = self.calls.clone();
        let request = pod::KillExecRequest { container_id: container.to_string(), exec_id: exec.to_owned() };
        bounded("KillExec", SHORT, calls.kill_exec(request)).await.map(drop)
    }

    pub(crate) async fn stats(
        &self,
        depth: pod::stats_request::Depth,
    ) -> Result<pod::StatsResponse, AgentError> {
        let mut calls = self.calls.clone();
        bounded("Stats", SHORT, calls.stats(pod::StatsRequest { depth: depth.into() })).await
    }

    pub(crate) async fn shut_down(&self) -> Result<(), AgentError> {
        let mut calls = self.calls.clone();
        bounded("ShutDown", SHUT_DOWN, calls.shut_down(pod::ShutDownRequest {})).await.map(drop)
    }
}

/// Asks when there is room.
async fn in_turn<T>(
    room: &Semaphore,
    answer: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<Response<T>, Status> {
    // It is never closed.
    let _place = room.acquire().await;
    answer.await
}

async fn bounded<T>(
    call: &'static str,
    after: Duration,
    answer: impl Future<Output = Result<Response<T>, Status>>,
) -> Result<T, AgentError> {
    match tokio::time::timeout(after, agent_call(call, answer)).await {
        Ok(Ok(response)) => Ok(response.into_inner()),
        Ok(Err(status)) => Err(broken(call, &status)),
        Err(_) => Err(AgentError::TimedOut { call, after }),
    }
}

/// A status with a source was made on this side of the connection.
fn broken(call: &'static str, status: &Status) -> AgentError {
    let mut source = std::error::Error::source(status);
    if source.is_none() && status.code() != Code::Unavailable {
        return AgentError::Answered { code: status.code(), message: status.message().to_owned() };
    }
    let mut why = status.message().to_owned();
    while let Some(error) = source {
        why = error.to_string();
        source = error.source();
    }
    AgentError::Unreachable { call, why }
}
