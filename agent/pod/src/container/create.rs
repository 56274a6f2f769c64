//! Making a container: its stdio, its log writer, and its process up to the gate.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use hartpod_container::{
    ContainerProcess, ContainerRequest, Created, Creating, LaunchError, PidNamespace, Pod, Stdio,
};
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::io::Interest;

use super::log::{Log, Opening};
use crate::children::{Children, Starting};
use crate::log_writer::{LogError, Sources};
use crate::request::{ContainerPlan, PidPlan};
use crate::sys::Watched;

/// Why a container, or an exec, could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CreateError {
    #[error("make its standard streams")]
    Stdio(#[source] io::Error),
    #[error("watch its process")]
    Watch(#[source] io::Error),
    #[error("start its log writer")]
    LogWriter(#[source] io::Error),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Launch(#[from] LaunchError),
}

/// A container that waits for its start.
#[derive(Debug)]
pub(crate) struct Made {
    pub(crate) created: Created,
    pub(crate) log: Option<Log>,
    pub(crate) stdin: Option<OwnedFd>,
    /// Until its process has an owner.
    _starting: Starting,
}

/// What all creations of a pod share.
#[derive(Debug, Clone)]
pub(crate) struct Workshop {
    pub(crate) pod: Arc<Pod>,
    pub(crate) children: Children,
    /// /dev/null, which the pod's mount namespace does not have.
    pub(crate) null: Arc<OwnedFd>,
}

/// Makes the container of `plan`; with pid target, in the pid namespace of `target`.
///
/// Dropping the future kills what was made. The leaf is the caller's to destroy, after an error too.
pub(crate) async fn create(
    workshop: Workshop,
    plan: ContainerPlan,
    target: Option<Arc<ContainerProcess>>,
) -> Result<Made, CreateError> {
    let Workshop { pod, children, null } = workshop;
    // From here on a child may exist whose end must not be taken for an orphan's.
    let starting = children.starting();
    let streams = Streams::make(&plan, &null).map_err(CreateError::Stdio)?;
    let log = streams.outputs.as_ref().zip(plan.log.as_ref()).map(|((stdout, stderr), place)| {
        let sources = Sources { stdout: Some(stdout.as_fd()), stderr: Some(stderr.as_fd()) };
        Log::start(pod.host(), &children, sources, Some(place)).map_err(CreateError::LogWriter)
    });
    // The writer has its own copies: what is left of ours would keep the container from seeing its death.
    drop(streams.outputs);
    let log = log.transpose()?;
    let request = ContainerRequest {
        id: plan.id,
        spec: plan.spec,
        rootfs: plan.rootfs,
        user: plan.user,
        groups: plan.groups,
        pid: match (&plan.pid, &target) {
            (PidPlan::Target(_), Some(target)) => PidNamespace::Target(target),
            (PidPlan::Pod, _) => PidNamespace::Pod,
            (PidPlan::Node, _) => PidNamespace::Node,
            (PidPlan::Container | PidPlan::Target(_), _) => PidNamespace::Container,
        },
        stdio: streams.stdio,
    };
    let creating = pod.begin_create(request)?;
    // Whichever fails first says why.
    let (created, log) = tokio::try_join!(ready(creating), opened(log))?;
    if created.waiting.child().is_none() {
        return Err(LaunchError::Died.into());
    }
    let log = match (log, &created.console) {
        (None, Some(console)) => {
            let sources = Sources { stdout: Some(console.as_fd()), stderr: None };
            let started = Log::start(pod.host(), &children, sources, plan.log.as_ref());
            opened(Some(started.map_err(CreateError::LogWriter)?)).await?
        }
        (log, _) => log,
    };
    Ok(Made { created, log, stdin: streams.stdin, _starting: starting })
}

async fn opened(log: Option<(Log, Opening)>) -> Result<Option<Log>, CreateError> {
    let Some((log, opening)) = log else { return Ok(None) };
    opening.await.unwrap_or(Err(LogError::Gone))?;
    Ok(Some(log))
}

async fn ready(mut creating: Creating) -> Result<Created, CreateError> {
    let watched = Watched::duplicate(&creating, Interest::READABLE).map_err(CreateError::Watch)?;
    let poll = |_: std::os::fd::BorrowedFd<'_>| match creating.poll() {
        Ok(None) => Err(io::ErrorKind::WouldBlock.into()),
        Ok(Some(created)) => Ok(Ok(created)),
        Err(error) => Ok(Err(error)),
    };
    Ok(watched.io(Interest::READABLE, poll).await.map_err(CreateError::Watch)??)
}

/// The container's ends of its stdio, and the agent's.
struct Streams {
    stdio: Stdio,
    stdin: Option<OwnedFd>,
    outputs: Option<(OwnedFd, OwnedFd)>,
}

impl Streams {
    fn make(plan: &ContainerPlan, null: &OwnedFd) -> io::Result<Self> {
        if plan.tty {
            return Ok(Self { stdio: Stdio::Tty, stdin: None, outputs: None });
        }
        let (stdin, stdin_writer) = if plan.stdin {
            let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
            (reader, Some(writer))
        } else {
            (null.try_clone()?, None)
        };
        if plan.log.is_none() {
            let stdio = Stdio::Fds { stdin, stdout: null.try_clone()?, stderr: null.try_clone()? };
            return Ok(Self { stdio, stdin: stdin_writer, outputs: None });
        }
        let (stdout_reader, stdout) = pipe_with(PipeFlags::CLOEXEC)?;
        let (stderr_reader, stderr) = pipe_with(PipeFlags::CLOEXEC)?;
        let outputs = Some((stdout_reader, stderr_reader));
        Ok(Self { stdio: Stdio::Fds { stdin, stdout, stderr }, stdin: stdin_writer, outputs })
    }
}
