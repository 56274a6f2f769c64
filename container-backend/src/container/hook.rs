//! A hook's process outside of the container: a fork of the agent that leaves the pod.

use std::convert::Infallible;
use std::ffi::CString;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::process::{Pid, Signal};
use rustix::thread::move_into_link_name_space;

use super::limits;
use super::streams::Streams;
use crate::errno::Errno;
use crate::failure::{CommandError, Failure};
use crate::hooks::UMASK;
use crate::report::Reporter;
use crate::sys::{exec, process};

/// All that the child needs to know.
pub(crate) struct HookPlan<'a> {
    /// Who has started it.
    pub(crate) agent: Pid,
    /// To be entered one after the other.
    pub(crate) namespaces: Vec<BorrowedFd<'a>>,
    pub(crate) program: HookProgram,
    /// Working folder.
    pub(crate) bundle: &'a Path,
    pub(crate) streams: Streams,
}

/// What execve(2) is told.
#[derive(Debug, Clone)]
pub(crate) struct HookProgram {
    pub(crate) path: CString,
    pub(crate) argv: Vec<CString>,
    pub(crate) env: Vec<CString>,
}

/// The child's whole life, as far as it is not the program's. Returns its exit code if it fails.
pub(crate) fn main(plan: &HookPlan<'_>, report: OwnedFd) -> i32 {
    let mut reporter = Reporter::new(report);
    match run(plan, &reporter) {
        Ok(never) => match never {},
        Err(failure) => {
            // An error means that the agent is gone.
            let _ = reporter.failed(&failure);
            1
        }
    }
}

fn run(plan: &HookPlan<'_>, reporter: &Reporter) -> Result<Infallible, Failure> {
    // An agent that dies takes the hook along: what it was for is undone.
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL)).map_err(step("follow the agent"))?;
    // One that has died before that sends no signal any more.
    if rustix::process::getppid() != Some(plan.agent) {
        return Err(step("follow the agent")(rustix::io::Errno::SRCH));
    }
    keep_only(plan, reporter)?;
    rustix::process::setsid().map_err(step("start a session"))?;
    // The agent's own would make it the last to go when memory is short. Where it may not be raised there is nobody to tell.
    limits::set_oom_score_adj(0, &mut Vec::new())?;
    rustix::process::umask(UMASK);
    for namespace in &plan.namespaces {
        move_into_link_name_space(*namespace, None).map_err(step("enter the hook's namespaces"))?;
    }
    let bundle = |errno: rustix::io::Errno| Failure::Path {
        what: "bundle".into(),
        path: plan.bundle.to_owned(),
        errno: errno.into(),
    };
    rustix::process::chdir(plan.bundle).map_err(bundle)?;
    plan.streams.install().map_err(step("install the standard streams"))?;
    process::close_on_exec_from(3).map_err(step("close descriptors"))?;
    let HookProgram { path, argv, env } = &plan.program;
    let errno = exec::execve(path, argv, env);
    Err(CommandError::Refused { name: path.to_string_lossy().into_owned(), errno }.into())
}

fn step<E: Into<Errno>>(step: &'static str) -> impl FnOnce(E) -> Failure {
    move |e| Failure::Step { step: step.into(), errno: e.into() }
}

fn keep_only(plan: &HookPlan<'_>, reporter: &Reporter) -> Result<(), Failure> {
    let mut keep: Vec<BorrowedFd<'_>> = (0..3).map(process::standard_stream).collect();
    keep.push(reporter.pipe().as_fd());
    keep.extend(&plan.namespaces);
    keep.extend(plan.streams.fds().iter().map(|fd| fd.as_fd()));
    process::close_all_except(&keep).map_err(step("close descriptors"))
}
