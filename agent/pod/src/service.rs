//! pod/v1 as tonic sees it: checks identifiers, asks the supervisor, turns its answer into a response.

use std::str::FromStr;

use hartpod_proto::ContainerId;
use hartpod_proto::pod::v1::pod_agent_server::PodAgent;
use hartpod_proto::pod::v1::{
    AttachRequest, AttachResponse, ConnectRequest, ConnectResponse, CreateContainerRequest,
    CreateContainerResponse, DescribeRequest, DescribeResponse, KillExecRequest, KillExecResponse,
    RemoveContainerRequest, RemoveContainerResponse, ReopenLogRequest, ReopenLogResponse,
    ResizeTerminalRequest, ResizeTerminalResponse, SetUpPodRequest, SetUpPodResponse, ShutDownRequest,
    ShutDownResponse, SignalContainerRequest, SignalContainerResponse, StartContainerRequest,
    StartContainerResponse, StartExecRequest, StartExecResponse, StatsRequest, StatsResponse,
    UpdateContainerRequest, UpdateContainerResponse, UpdatePodRequest, UpdatePodResponse, WaitExecRequest,
    WaitExecResponse, WatchRequest, WatchResponse,
};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::call::{Call, CallError, Reply};
use crate::request::InvalidRequest;

/// The handle that tonic clones and calls.
#[derive(Debug, Clone)]
pub(crate) struct Service {
    calls: mpsc::Sender<Box<Call>>,
    /// Turns true once a pod can be set up.
    prepared: watch::Receiver<bool>,
}

type Answer<T> = Result<Response<T>, Status>;

fn container_id(text: &str) -> Result<ContainerId, CallError> {
    ContainerId::from_str(text).map_err(|source| InvalidRequest::ContainerId(source).into())
}

impl Service {
    pub(crate) fn new(calls: mpsc::Sender<Box<Call>>, prepared: watch::Receiver<bool>) -> Self {
        Self { calls, prepared }
    }

    /// Hands the call over and waits for its answer; a supervisor that is gone has shut down.
    async fn ask<T>(&self, call: impl FnOnce(Reply<T>) -> Call) -> Result<T, Status> {
        let (reply, answer) = oneshot::channel();
        self.calls.send(Box::new(call(reply))).await.map_err(|_| CallError::ShuttingDown)?;
        Ok(answer.await.unwrap_or(Err(CallError::ShuttingDown))?)
    }
}

#[tonic::async_trait]
impl PodAgent for Service {
    type WatchStream = ReceiverStream<Result<WatchResponse, Status>>;

    async fn set_up_pod(&self, request: Request<SetUpPodRequest>) -> Answer<SetUpPodResponse> {
        let request = request.into_inner();
        // A sender that is gone is as good: what is missing shows when it is used.
        let _ = self.prepared.clone().wait_for(|prepared| *prepared).await;
        self.ask(|reply| Call::SetUp(request, reply)).await.map(Response::new)
    }

    async fn describe(&self, _: Request<DescribeRequest>) -> Answer<DescribeResponse> {
        self.ask(Call::Describe).await.map(Response::new)
    }

    async fn watch(&self, _: Request<WatchRequest>) -> Answer<Self::WatchStream> {
        let watch = self.ask(Call::Watch).await?;
        Ok(Response::new(ReceiverStream::new(watch)))
    }

    async fn create_container(
        &self,
        request: Request<CreateContainerRequest>,
    ) -> Answer<CreateContainerResponse> {
        let request = request.into_inner();
        self.ask(|reply| Call::Create(request, reply)).await.map(Response::new)
    }

    async fn start_container(
        &self,
        request: Request<StartContainerRequest>,
    ) -> Answer<StartContainerResponse> {
        let id = container_id(&request.get_ref().container_id)?;
        self.ask(|reply| Call::Start(id, reply)).await.map(Response::new)
    }

    async fn signal_container(
        &self,
        request: Request<SignalContainerRequest>,
    ) -> Answer<SignalContainerResponse> {
        let id = container_id(&request.get_ref().container_id)?;
        let signal = request.get_ref().signal;
        self.ask(|reply| Call::Signal(id, signal, reply)).await.map(Response::new)
    }

    async fn update_container(
        &self,
        request: Request<UpdateContainerRequest>,
    ) -> Answer<UpdateContainerResponse> {
        let request = request.into_inner();
        let id = container_id(&request.container_id)?;
        self.ask(|reply| Call::Update(id, request, reply)).await.map(Response::new)
    }

    async fn update_pod(&self, request: Request<UpdatePodRequest>) -> Answer<UpdatePodResponse> {
        let request = request.into_inner();
        self.ask(|reply| Call::UpdatePod(request, reply)).await.map(Response::new)
    }

    async fn remove_container(
        &self,
        request: Request<RemoveContainerRequest>,
    ) -> Answer<RemoveContainerResponse> {
        let id = container_id(&request.get_ref().container_id)?;
        self.ask(|reply| Call::Remove(id, reply)).await.map(Response::new)
    }

    async fn start_exec(&self, request: Request<StartExecRequest>) -> Answer<StartExecResponse> {
        let request = request.into_inner();
        let id = container_id(&request.container_id)?;
        self.ask(|reply| Call::StartExec(id, request, reply)).await.map(Response::new)
    }

    async fn wait_exec(&self, request: Request<WaitExecRequest>) -> Answer<WaitExecResponse> {
        let request = request.into_inner();
        let id = container_id(&request.container_id)?;
        self.ask(|reply| Call::WaitExec(id, request.exec_id, reply)).await.map(Response::new)
    }

    async fn kill_exec(&self, request: Request<KillExecRequest>) -> Answer<KillExecResponse> {
        let request = request.into_inner();
        let id = container_id(&request.container_id)?;
        self.ask(|reply| Call::KillExec(id, request.exec_id, reply)).await.map(Response::new)
    }

    async fn attach(&self, request: Request<AttachRequest>) -> Answer<AttachResponse> {
        let request = request.into_inner();
        let id = container_id(&request.container_id)?;
        self.ask(|reply| Call::Attach(id, request, reply)).await.map(Response::new)
    }

    async fn resize_terminal(
        &self,
        request: Request<ResizeTerminalRequest>,
    ) -> Answer<ResizeTerminalResponse> {
        let request = request.into_inner();
        let id = container_id(&request.container_id)?;
        self.ask(|reply| Call::ResizeTerminal(id, request, reply)).await.map(Response::new)
    }

    async fn connect(&self, request: Request<ConnectRequest>) -> Answer<ConnectResponse> {
        let request = request.into_inner();
        self.ask(|reply| Call::Connect(request, reply)).await.map(Response::new)
    }

    async fn reopen_log(&self, request: Request<ReopenLogRequest>) -> Answer<ReopenLogResponse> {
        let id = container_id(&request.get_ref().container_id)?;
        self.ask(|reply| Call::ReopenLog(id, reply)).await.map(Response::new)
    }

    async fn stats(&self, request: Request<StatsRequest>) -> Answer<StatsResponse> {
        let request = request.into_inner();
        self.ask(|reply| Call::Stats(request, reply)).await.map(Response::new)
    }

    async fn shut_down(&self, _: Request<ShutDownRequest>) -> Answer<ShutDownResponse> {
        self.ask(Call::ShutDown).await.map(Response::new)
    }
}
