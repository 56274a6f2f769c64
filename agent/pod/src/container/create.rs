//! Making a container: its stdio, its log writer, and its process up to the gate.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use hartpod_container::cgroup::Leaf;
use hartpod_container::hooks::HookError;
use hartpod_container::{
    ContainerProcess, ContainerRequest, Created, Creating, Errno, LaunchError, PidNamespace, Pod, RootFs,
    Stdio, mount_volumes,
};
use hartpod_logs::LogPlace;
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::io::Interest;

use super::disk::{self, DiskError};
use super::input::Input;
use super::log::{Log, LogSource};
use super::output::Output;
use crate::children::{Children, Starting};
use crate::guest;
use crate::log_writer::{LogError, Opening};
use crate::request::{ContainerPlan, PidPlan, RootPlan};
use crate::stream::{Expected, Pipe};
use crate::sys::Watched;

/// Why a container, or an exec, could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CreateError {
    #[error("make its standard streams")]
    Stdio(#[source] Errno),
    #[error("watch its process")]
    Watch(#[source] Errno),
    #[error("start its log writer")]
    LogWriter(#[source] Errno),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error(transparent)]
    Disk(#[from] DiskError),
    #[error(transparent)]
    Launch(#[from] LaunchError),
    #[error(transparent)]
    Hook(#[from] HookError),
    #[error("the process that sets up the container was killed: its memory limit is too small to begin with")]
    OutOfMemory,
}

impl CreateError {
    pub(crate) fn stdio(error: io::Error) -> Self {
        Self::Stdio(error.into())
    }

    pub(crate) fn watch(error: io::Error) -> Self {
        Self::Watch(error.into())
    }

    /// Set-up runs within the container's limits. The kernel only kills; why, is written in the leaf.
    pub(crate) fn explained_by(self, leaf: &Leaf) -> Self {
        match self {
            Self::Launch(LaunchError::Died) if leaf.oom_kills().is_ok_and(|kills| kills > 0) => {
                Self::OutOfMemory
            }
            other => other,
        }
    }
}

/// A container that waits for its start.
#[derive(Debug)]
pub(crate) struct Made {
    pub(crate) created: Created,
    pub(crate) log: Option<Log>,
    pub(crate) output: Option<Output>,
    pub(crate) input: Option<Input>,
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

/// Makes the container of `plan`; with pid target, in the pid namespace of `target`. `expected` are the connections that its stdout and
/// stderr go to.
///
/// Dropping the future kills what was made. The leaf is the caller's to destroy, after an error too.
pub(crate) async fn create(
    workshop: Workshop,
    plan: ContainerPlan,
    target: Option<Arc<ContainerProcess>>,
    expected: [Option<Expected>; 2],
) -> Result<Made, CreateError> {
    // From here on a child may exist whose end must not be taken for an orphan's.
    let starting = workshop.children.starting();
    let rootfs = match &plan.rootfs {
        RootPlan::Overlay(overlay) => RootFs::Overlay(overlay.clone()),
        RootPlan::Disk(disk) => {
            let prepare = || {
                if plan.administers_network() {
                    guest::load_unasked_modules();
                }
                plan.volumes.map_or(Ok(()), mount_volumes)
            };
            RootFs::Disk(disk::open(disk, workshop.pod.host(), &workshop.children, prepare).await?)
        }
    };
    let streams = Streams::make(&plan, &workshop.null).map_err(CreateError::stdio)?;
    let place = plan.log.clone();
    let started = streams
        .outputs
        .map(|(stdout, stderr)| start_log(&workshop, (Some(stdout), Some(stderr)), place.clone()));
    let (log, opening) = started.transpose()?.unzip();
    let (stdin, once) = (plan.stdin, plan.stdin_once);
    match launch(&workshop, plan, (rootfs, streams.stdio), target, opening).await {
        Ok(created) => {
            let (mut log, mut output) = (log, None);
            let input = match &created.console {
                Some(console) if place.is_some() => {
                    log = Some(log_console(&workshop, console, place).await?);
                    console_input(stdin, console)?
                }
                Some(console) => {
                    output = Some(console_output(console, expected)?);
                    console_input(stdin, console)?
                }
                None => {
                    let relayed = streams.relayed.map(|pipes| pipes.into_iter().zip(expected));
                    output = relayed.map(Output::start);
                    streams.stdin.map(|pipe| Input::pipe(pipe, once))
                }
            };
            Ok(Made { created, log, output, input, _starting: starting })
        }
        Err(error) => {
            // So that nothing of it makes a file or folder any more once the failure is told.
            if let Some(log) = log {
                log.finish().await;
            }
            Err(error)
        }
    }
}

fn start_log(
    workshop: &Workshop,
    (stdout, stderr): (Option<OwnedFd>, Option<OwnedFd>),
    place: Option<LogPlace>,
) -> Result<(Log, Opening), CreateError> {
    let (pod, children) = (Arc::clone(&workshop.pod), workshop.children.clone());
    Log::start(LogSource { pod, children, stdout, stderr, place })
        .map_err(|error| CreateError::LogWriter(error.into()))
}

/// The log of a container with a terminal, which is there only after its set-up.
async fn log_console(
    workshop: &Workshop,
    console: &OwnedFd,
    place: Option<LogPlace>,
) -> Result<Log, CreateError> {
    let console = console.try_clone().map_err(CreateError::stdio)?;
    let (log, opening) = start_log(workshop, (Some(console), None), place)?;
    opened(Some(opening)).await?;
    Ok(log)
}

/// The output of a container with a terminal, which has one stream.
fn console_output(console: &OwnedFd, expected: [Option<Expected>; 2]) -> Result<Output, CreateError> {
    let pipe = console.try_clone().and_then(Pipe::reader).map_err(CreateError::stdio)?;
    Ok(Output::start(std::iter::once(pipe).zip(expected)))
}

fn console_input(stdin: bool, console: &OwnedFd) -> Result<Option<Input>, CreateError> {
    let input = stdin.then(|| console.try_clone().map(Input::terminal));
    input.transpose().map_err(CreateError::stdio)
}

async fn opened(opening: Option<Opening>) -> Result<(), CreateError> {
    match opening {
        Some(opening) => Ok(opening.await.unwrap_or(Err(LogError::Gone))?),
        None => Ok(()),
    }
}

/// The container's process up to the gate, while its log is being opened; whichever fails first says why.
async fn launch(
    workshop: &Workshop,
    plan: ContainerPlan,
    (rootfs, stdio): (RootFs, Stdio),
    target: Option<Arc<ContainerProcess>>,
    opening: Option<Opening>,
) -> Result<Created, CreateError> {
    let hooks = plan.hooks.as_deref().and_then(|hooks| Some((hooks, hooks.hook_point()?)));
    let request = ContainerRequest {
        id: plan.id,
        spec: plan.spec,
        rootfs,
        images: plan.images,
        user: plan.user,
        groups: plan.groups,
        pid: match (&plan.pid, &target) {
            (PidPlan::Target(_), Some(target)) => PidNamespace::Target(target),
            (PidPlan::Pod, _) => PidNamespace::Pod,
            (PidPlan::Node, _) => PidNamespace::Node,
            (PidPlan::Container | PidPlan::Target(_), _) => PidNamespace::Container,
        },
        bundle: hooks.map(|(_, bundle)| bundle.to_owned()),
        stdio,
    };
    let mut creating = workshop.pod.begin_create(request)?;
    let created = async {
        if let Some((hooks, _)) = hooks {
            hooks.at_hook_point(workshop, &mut creating).await?;
        }
        ready(creating).await
    };
    let (created, ()) = tokio::try_join!(created, opened(opening))?;
    match created.waiting.child() {
        Some(_) => Ok(created),
        None => Err(LaunchError::Died.into()),
    }
}

async fn ready(mut creating: Creating) -> Result<Created, CreateError> {
    let watched = Watched::duplicate(&creating, Interest::READABLE).map_err(CreateError::watch)?;
    let poll = |_: std::os::fd::BorrowedFd<'_>| match creating.poll() {
        Ok(None) => Err(io::ErrorKind::WouldBlock.into()),
        Ok(Some(created)) => Ok(Ok(created)),
        Err(error) => Ok(Err(error)),
    };
    Ok(watched.io(Interest::READABLE, poll).await.map_err(CreateError::watch)??)
}

/// The container's ends of its stdio, and the agent's.
struct Streams {
    stdio: Stdio,
    stdin: Option<OwnedFd>,
    outputs: Option<(OwnedFd, OwnedFd)>,
    /// Of stdout and stderr, where there is no log.
    relayed: Option<[Pipe; 2]>,
}

impl Streams {
    fn make(plan: &ContainerPlan, null: &OwnedFd) -> io::Result<Self> {
        if plan.tty {
            let stdio = Stdio::Tty(plan.terminal_size);
            return Ok(Self { stdio, stdin: None, outputs: None, relayed: None });
        }
        let (stdin, stdin_writer) = if plan.stdin {
            let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
            (reader, Some(writer))
        } else {
            (null.try_clone()?, None)
        };
        let (stdout_reader, stdout) = pipe_with(PipeFlags::CLOEXEC)?;
        let (stderr_reader, stderr) = pipe_with(PipeFlags::CLOEXEC)?;
        let stdio = Stdio::Fds { stdin, stdout, stderr };
        let (outputs, relayed) = match plan.log {
            Some(_) => (Some((stdout_reader, stderr_reader)), None),
            None => (None, Some([Pipe::reader(stdout_reader)?, Pipe::reader(stderr_reader)?])),
        };
        Ok(Self { stdio, stdin: stdin_writer, outputs, relayed })
    }
}
