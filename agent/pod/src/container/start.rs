//! Starting a container: its hooks, and its process past the gate.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use hartpod_container::hooks::{Budget, HookError};
use hartpod_container::{Child, ContainerProcess, LaunchError, Starting, Waiting};
use tokio::io::Interest;

use super::create::Workshop;
use super::hooks::HookPlan;
use crate::children::Exit;
use crate::sys::Watched;

/// Why a container was not started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error(transparent)]
    Launch(#[from] LaunchError),
    #[error(transparent)]
    Hook(#[from] HookError),
}

/// A container that runs.
#[derive(Debug)]
pub(crate) struct Started {
    pub(crate) child: Child,
    /// What the call's hooks before the program have left for those after it.
    pub(crate) budget: Budget,
}

/// Hooks to run before the program.
#[derive(Debug)]
pub(crate) struct StartHooks {
    pub(crate) plan: Arc<HookPlan>,
    pub(crate) container: Arc<ContainerProcess>,
}

/// Runs the hooks before the program, and lets the waiting process go on to its execve. With the process that runs the program comes its end, if that is another process than the
/// one that waited.
pub(crate) async fn start(
    workshop: &Workshop,
    waiting: Waiting,
    hooks: Option<StartHooks>,
) -> Result<(Started, Option<impl Future<Output = Exit> + use<>>), StartError> {
    let budget = Budget::of_call();
    let waiting_pid = waiting.child().map_or(0, Child::pid);
    if let Some(hooks) = &hooks {
        hooks.plan.before_start(workshop, &hooks.container, waiting_pid, budget).await?;
    }
    let starting = workshop.children.starting();
    let child = executed(waiting.open_gate()?).await?;
    let exit = (child.pid() != waiting_pid).then(|| workshop.children.own(&child));
    drop(starting);
    Ok((Started { child, budget }, exit))
}

async fn executed(mut starting: Starting) -> Result<Child, LaunchError> {
    let unwatched = |source| LaunchError::Agent { what: "watch the start", source };
    let watched = Watched::duplicate(&starting, Interest::READABLE).map_err(unwatched)?;
    let poll = |_: BorrowedFd<'_>| match starting.poll() {
        Ok(None) => Err(io::ErrorKind::WouldBlock.into()),
        Ok(Some(child)) => Ok(Ok(child)),
        Err(error) => Ok(Err(error)),
    };
    watched.io(Interest::READABLE, poll).await.map_err(unwatched)?
}
