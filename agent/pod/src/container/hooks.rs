//! The hooks of a container: run one after the other, bounded, each in a cgroup of its own.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::path::{Path, PathBuf};
use std::pin::pin;

use hartpod_container::cgroup::ExecLeaf;
use hartpod_container::hooks::{Budget, DRAIN, HookError, HookFailure, HookState, Moment, Tail};
use hartpod_container::{ContainerProcess, Creating, HookPlace, HookPoint, HookRequest};
use hartpod_proto::ContainerId;
use oci_spec::runtime::{Hook, Hooks, Spec};
use rustix::pipe::{PipeFlags, pipe_with};
use tokio::io::Interest;
use tokio::runtime::Handle;
use tracing::warn;

use super::create::{CreateError, Workshop};
use crate::children::Exit;
use crate::exec::{execed, remove_when_empty};
use crate::status_code::chain;
use crate::stream::Pipe;
use crate::sys::Watched;

/// A container that has hooks.
#[derive(Debug)]
pub(crate) struct HookPlan {
    id: ContainerId,
    hooks: Hooks,
    bundle: PathBuf,
    state: HookState,
}

impl HookPlan {
    /// That of `spec`, which is in the folder `bundle` of the host.
    pub(crate) fn new(id: ContainerId, spec: &Spec, hooks: Hooks, bundle: PathBuf) -> Self {
        let state = HookState::new(id.as_str(), &bundle, spec);
        Self { id, hooks, bundle, state }
    }

    /// Where the container is to stop for them, if it has some that run before its root becomes the only one.
    pub(crate) fn hook_point(&self) -> Option<&Path> {
        let early = [Moment::Prestart, Moment::CreateRuntime, Moment::CreateContainer];
        early.iter().any(|moment| !moment.of(&self.hooks).is_empty()).then_some(self.bundle.as_path())
    }

    /// Waits until the container is there, has its hooks run, and lets it go on.
    pub(crate) async fn at_hook_point(
        &self,
        workshop: &Workshop,
        creating: &mut Creating,
    ) -> Result<(), CreateError> {
        let point = reached(creating).await?;
        let (budget, bundle) = (Budget::of_call(), self.bundle.as_path());
        for moment in [Moment::Prestart, Moment::CreateRuntime, Moment::CreateContainer] {
            let place = || match moment {
                Moment::CreateContainer => HookPlace::HookPoint { bundle, point: &point },
                _ => HookPlace::Runtime { bundle },
            };
            self.run_all(workshop, moment, place, point.pid(), budget).await?;
        }
        Ok(creating.pass_hook_point()?)
    }

    /// Those that come before the program, in the container; `pid` is the process that will execute it.
    pub(crate) async fn before_start(
        &self,
        workshop: &Workshop,
        container: &ContainerProcess,
        pid: i32,
        budget: Budget,
    ) -> Result<(), HookError> {
        let place = || HookPlace::Container(container);
        self.run_all(workshop, Moment::StartContainer, place, pid, budget).await
    }

    /// Whether there are any for when the program runs.
    pub(crate) fn has_late_ones(&self) -> bool {
        !Moment::Poststart.of(&self.hooks).is_empty()
    }

    /// Those that come after it. For one that fails there is a warning, and the container and the others go on.
    pub(crate) async fn after_start(&self, workshop: &Workshop, pid: i32, budget: Budget) -> Vec<String> {
        let mut warnings = Vec::new();
        let place = HookPlace::Runtime { bundle: &self.bundle };
        for (number, hook) in Moment::Poststart.of(&self.hooks).iter().enumerate() {
            let turn = Turn { moment: Moment::Poststart, number, hook, pid };
            if let Err(error) = self.run(workshop, turn, &place, budget).await {
                warnings.push(format!("the container runs on, but {}", chain(&error)));
            }
        }
        warnings
    }

    async fn run_all<'a>(
        &self,
        workshop: &Workshop,
        moment: Moment,
        place: impl Fn() -> HookPlace<'a>,
        pid: i32,
        budget: Budget,
    ) -> Result<(), HookError> {
        for (number, hook) in moment.of(&self.hooks).iter().enumerate() {
            self.run(workshop, Turn { moment, number, hook, pid }, &place(), budget).await?;
        }
        Ok(())
    }

    async fn run(
        &self,
        workshop: &Workshop,
        turn: Turn<'_>,
        place: &HookPlace<'_>,
        budget: Budget,
    ) -> Result<(), HookError> {
        let outcome = self.begin_and_wait(workshop, &turn, place, budget).await;
        outcome.map_err(|failure| HookError::new(turn.moment, turn.hook.path(), failure))
    }

    async fn begin_and_wait(
        &self,
        workshop: &Workshop,
        turn: &Turn<'_>,
        place: &HookPlace<'_>,
        budget: Budget,
    ) -> Result<(), HookFailure> {
        let above = match place {
            HookPlace::Container(container) => container.leaf(),
            HookPlace::Runtime { .. } | HookPlace::HookPoint { .. } => workshop.pod.leaf(),
        };
        let name = format!("{}-{}-{}", turn.moment, turn.number, self.id);
        let leaf = above.exec_leaf(&name).map_err(io::Error::other).map_err(step("name its cgroup"))?;
        let mut kept = Kept { leaf: leaf.clone(), has_succeeded: false };
        let after = budget.timeout(turn.hook);
        let (stderr, theirs) = pipe_with(PipeFlags::CLOEXEC).map_err(step("make its standard streams"))?;
        let stderr = Pipe::reader(stderr).map_err(step("make its standard streams"))?;
        let stdin = self.state.file(turn.moment, Some(turn.pid))?;
        let stdout = workshop.null.try_clone().map_err(step("make its standard streams"))?;
        let request =
            HookRequest { hook: turn.hook, place: *place, leaf: &leaf, stdio: [stdin, stdout, theirs] };
        let mut tail = Tail::default();
        let run = async {
            let exit = begin(workshop, request).await?;
            Ok::<_, HookFailure>(ended(exit, &stderr, &mut tail).await)
        };
        let code = match tokio::time::timeout(after, run).await {
            Ok(exit) => exit?.code,
            Err(_) => return Err(HookFailure::TimedOut { after, stderr: tail.text() }),
        };
        if code != 0 {
            return Err(HookFailure::Code { code, stderr: tail.text() });
        }
        kept.has_succeeded = true;
        Ok(())
    }
}

/// Which hook it is.
struct Turn<'a> {
    moment: Moment,
    number: usize,
    hook: &'a Hook,
    pid: i32,
}

/// A hook's cgroup. Dropped, it is killed with all that is in it, unless the hook has done its work.
struct Kept {
    leaf: ExecLeaf,
    has_succeeded: bool,
}

impl Drop for Kept {
    fn drop(&mut self) {
        // What a hook that succeeds has left in the background runs on.
        if !self.has_succeeded {
            if let Err(error) = self.leaf.kill() {
                warn!(%error, "cannot kill a hook");
            }
        }
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(remove_when_empty(self.leaf.clone()));
        }
    }
}

fn step<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> HookFailure {
    move |source| HookFailure::Step { what, source: source.into() }
}

/// The hook's end, once it is executed. Somebody waits for it whether the caller does or not.
async fn begin(
    workshop: &Workshop,
    request: HookRequest<'_>,
) -> Result<impl Future<Output = Exit> + use<>, HookFailure> {
    let _starting = workshop.children.starting();
    let executed = execed(workshop.pod.begin_hook(request)?).await.map_err(|error| match error {
        CreateError::Launch(error) => HookFailure::Launch(error),
        other => step("watch it")(io::Error::other(other)),
    })?;
    let exit = tokio::spawn(workshop.children.own(&executed.child));
    // The task neither panics nor is it aborted while there is a runtime.
    Ok(async { exit.await.unwrap_or(Exit { code: 255, at: 0 }) })
}

/// Reads what it writes until it has ended; children that keep its stderr are not waited for.
async fn ended(exit: impl Future<Output = Exit>, stderr: &Pipe, tail: &mut Tail) -> Exit {
    let mut exit = pin!(exit);
    let mut reading = pin!(async {
        while let Ok(bytes) = stderr.read().await {
            if bytes.is_empty() {
                break;
            }
            tail.push(&bytes);
        }
    });
    tokio::select! {
        exit = &mut exit => {
            let _ = tokio::time::timeout(DRAIN, reading).await;
            exit
        }
        () = &mut reading => exit.await,
    }
}

async fn reached(creating: &mut Creating) -> Result<HookPoint, CreateError> {
    let watched = Watched::duplicate(creating.as_fd(), Interest::READABLE).map_err(CreateError::watch)?;
    let poll = |_: BorrowedFd<'_>| match creating.poll_hook_point() {
        Ok(None) => Err(io::ErrorKind::WouldBlock.into()),
        Ok(Some(point)) => Ok(Ok(point)),
        Err(error) => Ok(Err(error)),
    };
    Ok(watched.io(Interest::READABLE, poll).await.map_err(CreateError::watch)??)
}
