//! What the service asks of the supervisor, and what can be wrong with it.

use std::sync::Arc;

use hartpod_container::SetUpError;
use hartpod_container::cgroup::{CgroupError, PathError};
use hartpod_proto::ContainerId;
use hartpod_proto::pod::v1::{
    AttachRequest, AttachResponse, ConnectRequest, ConnectResponse, CreateContainerRequest,
    CreateContainerResponse, DescribeResponse, KillExecResponse, RemoveContainerResponse, ReopenLogResponse,
    ResizeTerminalRequest, ResizeTerminalResponse, SetUpPodRequest, SetUpPodResponse, ShutDownResponse,
    SignalContainerResponse, StartContainerResponse, StartExecRequest, StartExecResponse, StatsRequest,
    StatsResponse, UpdateContainerRequest, UpdateContainerResponse, UpdatePodRequest, UpdatePodResponse,
    WaitExecResponse,
};
use tokio::sync::oneshot;

use crate::board::Watch;
use crate::container::{CreateError, Phase, Refused, RemoveError, StartError, UpdateError};
use crate::guest::{FileError, NetworkError};
use crate::log_writer::LogError;
use crate::request::InvalidRequest;
use crate::stream::ForwardError;

/// Where an answer goes. A caller that hung up is no error.
pub(crate) type Reply<T> = oneshot::Sender<Result<T, CallError>>;

/// A call of pod/v1, its identifiers checked.
#[derive(Debug)]
pub(crate) enum Call {
    SetUp(SetUpPodRequest, Reply<SetUpPodResponse>),
    Describe(Reply<DescribeResponse>),
    Watch(Reply<Watch>),
    Create(CreateContainerRequest, Reply<CreateContainerResponse>),
    Start(ContainerId, Reply<StartContainerResponse>),
    Signal(ContainerId, i32, Reply<SignalContainerResponse>),
    Update(ContainerId, UpdateContainerRequest, Reply<UpdateContainerResponse>),
    UpdatePod(UpdatePodRequest, Reply<UpdatePodResponse>),
    Remove(ContainerId, Reply<RemoveContainerResponse>),
    StartExec(ContainerId, StartExecRequest, Reply<StartExecResponse>),
    WaitExec(ContainerId, String, Reply<WaitExecResponse>),
    KillExec(ContainerId, String, Reply<KillExecResponse>),
    Attach(ContainerId, AttachRequest, Reply<AttachResponse>),
    ResizeTerminal(ContainerId, ResizeTerminalRequest, Reply<ResizeTerminalResponse>),
    Connect(ConnectRequest, Reply<ConnectResponse>),
    ReopenLog(ContainerId, Reply<ReopenLogResponse>),
    Stats(StatsRequest, Reply<StatsResponse>),
    ShutDown(Reply<ShutDownResponse>),
}

/// Why a call failed. Cheap to clone, for several callers may wait for the same thing.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum CallError {
    #[error(transparent)]
    Invalid(#[from] InvalidRequest),
    #[error("the pod is not set up")]
    NotSetUp,
    #[error("the pod was set up by a different request")]
    SetUpDiffers,
    #[error("the agent is shutting down")]
    ShuttingDown,
    #[error("container {0} is unknown")]
    UnknownContainer(ContainerId),
    #[error("container {0} exists and was created by a different request")]
    ContainerDiffers(ContainerId),
    #[error("container {0} was removed meanwhile")]
    Removed(ContainerId),
    #[error("container {id} is {}", refused.phase.name())]
    Refused { id: ContainerId, refused: Refused },
    #[error("slot {slot} has the disk of container {by}")]
    SlotTaken { slot: u8, by: ContainerId },
    #[error("exec `{0}` is unknown")]
    UnknownExec(String),
    #[error("exec `{0}` exists and was started by a different request")]
    ExecDiffers(String),
    #[error("exec did not start within its timeout")]
    ExecTimedOut,
    #[error("exec was killed before it began")]
    ExecKilled,
    #[error("container {0} has no stdin that is open")]
    NoInput(ContainerId),
    #[error("{of} has no terminal")]
    NoTerminal { of: String },
    #[error("resize the terminal of {of}")]
    Resize { of: String, source: Arc<std::io::Error> },
    #[error("attach to container {id}")]
    Attach { id: ContainerId, source: Arc<std::io::Error> },
    #[error("connect to port {port} of the pod")]
    Connect { port: u16, source: ForwardError },
    #[error("{what}: the limit of {limit} is reached")]
    TooMany { what: &'static str, limit: usize },
    #[error("set the clock")]
    Clock(#[source] Arc<std::io::Error>),
    #[error("set up the network")]
    Network(#[source] Arc<NetworkError>),
    #[error("write the pod's files")]
    Files(#[source] Arc<FileError>),
    #[error("set up the pod")]
    SetUp(#[source] Arc<SetUpError>),
    #[error("name a cgroup")]
    Leaf(#[source] Arc<PathError>),
    #[error("create container {id}")]
    Create { id: ContainerId, source: Arc<CreateError> },
    #[error("start container {id}")]
    Start { id: ContainerId, source: Arc<StartError> },
    #[error("exec in container {id}")]
    Exec { id: ContainerId, source: Arc<CreateError> },
    #[error("kill exec in container {id}")]
    KillExec { id: ContainerId, source: Arc<CgroupError> },
    #[error("another update of container {0} is under way")]
    Updating(ContainerId),
    #[error("container {id} is {}: its limits cannot be changed", phase.name())]
    NotUpdatable { id: ContainerId, phase: Phase },
    #[error("update container {id}")]
    Update { id: ContainerId, source: Arc<UpdateError> },
    #[error("another update of the pod is under way")]
    UpdatingPod,
    #[error("update the pod")]
    UpdatePod(#[source] Arc<UpdateError>),
    #[error("signal container {id}")]
    Signal { id: ContainerId, source: Arc<std::io::Error> },
    #[error("reopen the log of container {id}")]
    Reopen { id: ContainerId, source: Arc<LogError> },
    #[error("remove container {id}")]
    Remove { id: ContainerId, source: Arc<RemoveError> },
}
