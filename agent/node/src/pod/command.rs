//! What the owning task of a pod is asked, and what it hears back from the work that it started.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use hartpod_container::cgroup::CgroupError;
use hartpod_proto::ContainerId;
use hartpod_proto::cri::v1 as cri;
use hartpod_proto::pod::v1 as pod;
use tokio::sync::{OwnedSemaphorePermit, oneshot};

use super::bring_up::{RunError, Up};
use super::make::{CreateError, Made, NotMade};
use super::remove::{RemoveContainerError, RemovePodError};
use super::resize::ResizeError;
use super::start::StartError;
use super::stop::StopError;
use super::stopping::StopContainerError;
use super::teardown::TearDownError;
use super::update::UpdateContainerError;
use crate::agent_client::AgentError;
use crate::records::PodResources;
use crate::trace::Context;

/// Errors are shared: everyone who waits for the same work hears the same.
pub(crate) type Reply<T, E> = oneshot::Sender<Result<T, Arc<E>>>;

/// The task ended before it answered: the pod is gone, or the daemon is ending.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Gone;

/// What a caller wants of a pod.
#[derive(Debug)]
pub(crate) enum Command {
    /// Wait until it is ready.
    AwaitUp(Reply<(), RunError>),
    /// The caller of RunPodSandbox heard the id.
    UpDelivered,
    Resize(Box<PodResources>, Reply<(), ResizeError>),
    Stop(Reply<(), StopError>),
    Remove(Reply<(), RemovePodError>),
    Create(Box<cri::ContainerConfig>, Reply<ContainerId, CreateError>),
    /// The caller of CreateContainer heard the id.
    CreateDelivered(ContainerId),
    Start(ContainerId, Reply<(), StartError>),
    UpdateContainer(ContainerId, Box<cri::LinuxContainerResources>, Reply<(), UpdateContainerError>),
    StopContainer(ContainerId, Duration, Reply<(), StopContainerError>),
    RemoveContainer(ContainerId, Reply<(), RemoveContainerError>),
    /// What CNI CHECK is not content with.
    NetworkWarning(String),
}

/// Work that the task started has come to its end.
#[derive(Debug)]
pub(super) enum Done {
    BringUp(Result<Up, RunError>),
    TearDown(Result<(), TearDownError>),
    /// What the pod has been told.
    Resize(Result<Box<PodResources>, ResizeError>),
    RemovePod(Result<(), RemovePodError>),
    Create(ContainerId, Result<Made, NotMade>),
    Start(ContainerId, Result<pod::ContainerState, AgentError>),
    /// What the container has now.
    Update(ContainerId, Result<Box<cri::LinuxContainerResources>, UpdateContainerError>),
    /// The signal of a stop was sent, or could not be.
    Signal(ContainerId, Result<(), AgentError>),
    /// The kill of a stop; whether the container's cgroup is empty.
    Kill(ContainerId, Result<bool, CgroupError>),
    Remove(ContainerId, Result<(), RemoveContainerError>),
    /// What a container said before its end is in its log.
    LastLines(ContainerId),
    /// A batch of records was written.
    Recorded,
    /// After the loss of the agent: everything in the pod's leaves is dead.
    LeavesKilled,
}

/// News of the agent.
#[derive(Debug)]
pub(super) enum News {
    /// Handled when the permit is given back.
    Container(ContainerId, pod::ContainerState, OwnedSemaphorePermit),
    /// These are all the containers that it knows; it told the state of each before.
    Synced(BTreeSet<ContainerId>, OwnedSemaphorePermit),
    /// Its guest does not answer; and it does again.
    Silent,
    Alive,
    /// What served its volumes has ended.
    NoVolumes,
    /// It ended; the text says how.
    Lost(String),
}

#[derive(Debug)]
pub(super) enum Message {
    /// With the span that it is for.
    Command(Context, Command),
    Done(Context, Done),
    News(News),
}
