//! Why a pod did not come up.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use hartpod_cni::{CniError, netns};
use hartpod_container::UserNamespaceError;
use hartpod_container::cgroup::PathError;
use hartpod_proto::SandboxId;
use hartpod_vm::tap::TapError;
use tokio::task::JoinError;

use crate::agent_client::AgentError;
use crate::backend::{NoHandler, StartError};
use crate::pod::files::FileError;
use crate::pod::network::InvalidNetwork;
use crate::pod::teardown::TearDownError;
use crate::records::RecordError;
use crate::spec::SpecError;
use crate::systemd::ScopeError;

/// A pod did not come up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RunError {
    #[error("no random id")]
    NoId(#[source] io::Error),
    #[error(transparent)]
    Handler(#[from] NoHandler),
    #[error("cgroup parent of the pod")]
    CgroupParent(#[source] PathError),
    #[error("network of the pod")]
    InvalidNetwork(#[source] InvalidNetwork),
    #[error("record of pod {id}")]
    Record { id: SandboxId, source: RecordError },
    #[error(transparent)]
    Label(SpecError),
    #[error("label {}", path.display())]
    LabelFile { path: PathBuf, source: io::Error },
    #[error("make {}", path.display())]
    StateDir { path: PathBuf, source: io::Error },
    #[error("files of pod {id}")]
    Files { id: SandboxId, source: FileError },
    #[error("this node has no user namespaces for pods")]
    NoUserNamespaces(#[source] Arc<UserNamespaceError>),
    #[error("user namespace of pod {id}")]
    UserNamespace { id: SandboxId, source: UserNamespaceError },
    #[error("network namespace of pod {id}")]
    Netns { id: SandboxId, source: netns::NetnsError },
    #[error("network of pod {id}")]
    Network { id: SandboxId, source: CniError },
    #[error("join the guest to the network of pod {id}")]
    Tap { id: SandboxId, source: TapError },
    #[error("cgroup of sandbox {id}")]
    Scope { id: SandboxId, source: ScopeError },
    #[error("start the agent of pod {id}")]
    Start { id: SandboxId, source: StartError },
    #[error(
        "the guest of pod {id} did not boot: the kernel killed its VMM because a memory limit of the pod was hit"
    )]
    OutOfMemory { id: SandboxId },
    #[error("the guest of pod {id} ended before it was set up: {how}")]
    GuestEnded { id: SandboxId, how: String },
    #[error("watch the agent of pod {id}")]
    Watch { id: SandboxId, source: io::Error },
    #[error("wait for the guest of pod {id}")]
    Thread { id: SandboxId, source: io::Error },
    /// The agent says what it tried.
    #[error(transparent)]
    SetUp(AgentError),
    #[error("pod {id} is not up any more: {reason}")]
    NotUp { id: SandboxId, reason: String },
    #[error("pod {id}: work of the daemon broke off")]
    BrokenOff { id: SandboxId, source: JoinError },
    /// Something of a pod that failed could not be given back: it is listed as not ready until StopPodSandbox succeeds.
    #[error("{}; what it left is kept as a sandbox that is not ready: {left}", crate::chain(error))]
    Left { error: Arc<RunError>, left: TearDownError },
}
