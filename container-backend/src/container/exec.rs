//! One more process in a running container. It enters the container by descriptors of namespaces that were taken at its
//! start, and by paths only where they are resolved inside the container.

use std::convert::Infallible;
use std::ffi::CString;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::create::{StreamPlan, enter_users, possible_capabilities, start_session};
use super::finish::{self, Cwd, Last, Way};
use super::hook::HookProgram;
use super::own_proc::OwnProc;
use super::root::Root;
use super::streams::Streams;
use super::{console, limits};
use crate::container_process::ContainerProcess;
use crate::errno::Errno;
use crate::failure::Failure;
use crate::report::{Ready, Reporter};
use crate::sys::process;

/// All that the child needs to know.
pub(crate) struct ExecPlan<'a> {
    pub(crate) container: &'a ContainerProcess,
    pub(crate) keyring: CString,
    pub(crate) argv: Vec<CString>,
    /// It is a hook, which has a path and an environment of its own.
    pub(crate) hook: Option<HookProgram>,
    pub(crate) streams: StreamPlan,
    /// For containers with others in their pid namespace.
    pub(crate) mailbox: Option<usize>,
}

/// The child's whole life, as far as it is not the program's. Returns its exit code if it fails.
pub(crate) fn main(plan: ExecPlan<'_>, report: OwnedFd) -> i32 {
    let mut reporter = Reporter::new(report);
    match run(plan, &mut reporter) {
        Ok(never) => match never {},
        Err(failure) => {
            // An error means that the agent is gone.
            let _ = reporter.failed(&failure);
            1
        }
    }
}

fn step<E: Into<Errno>>(step: &'static str) -> impl FnOnce(E) -> Failure {
    move |e| Failure::Step { step: step.into(), errno: e.into() }
}

fn run(plan: ExecPlan<'_>, reporter: &mut Reporter) -> Result<Infallible, Failure> {
    let mut warnings = Vec::new();
    let container = plan.container;
    let settings = &container.settings;
    keep_only(&plan, reporter)?;
    super::create::join_v1(&container.leaf)?;
    limits::set_oom_score_adj(settings.oom_score_adj, &mut warnings)?;
    limits::set_rlimits(&settings.rlimits, &mut warnings)?;
    enter_users(container.users.as_deref(), &plan.streams)?;
    start_session(&plan.keyring, settings.label.as_ref())?;
    let wanted = match plan.hook {
        Some(_) => settings.capabilities.without_tracing(),
        None => settings.capabilities,
    };
    let capabilities = possible_capabilities(wanted, &mut warnings)?;
    let own_proc = OwnProc::open(settings.label.as_ref())?;
    let way = enter(&plan, &own_proc)?;
    let streams = open_streams(plan.streams, &own_proc)?;
    let label_file = own_proc.into_label_file();
    way.keep_only(&streams, label_file.as_ref(), &[reporter.pipe().as_fd()])?;
    let cwd = Cwd::enter(&settings.cwd)?;
    let ready = Ready { user: container.user.clone(), home: String::new(), warnings };
    reporter.ready(&ready).map_err(step("report"))?;
    let last = Last {
        settings,
        capabilities,
        user: &container.user,
        home: &container.home,
        argv: &plan.argv,
        hook: plan.hook.as_ref(),
        streams: &streams,
        cwd,
        way,
    };
    finish::run(&last, label_file, reporter)
}

fn keep_only(plan: &ExecPlan<'_>, reporter: &Reporter) -> Result<(), Failure> {
    let mut keep: Vec<BorrowedFd<'_>> = (0..3).map(process::standard_stream).collect();
    keep.push(reporter.pipe().as_fd());
    keep.extend(plan.container.namespaces());
    keep.extend(plan.streams.fds().iter().map(AsFd::as_fd));
    process::close_all_except(&keep).map_err(step("close descriptors"))
}

/// Enters the container's namespaces; the mount namespace last but for the pid namespace, which is entered by P2 alone.
fn enter(plan: &ExecPlan<'_>, own_proc: &OwnProc) -> Result<Way, Failure> {
    let container = plan.container;
    let maps = own_proc.open_maps().map_err(step("open the memory map"))?;
    if let Some(namespace) = &container.cgroup_namespace {
        move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::ControlGroup))
            .map_err(step("enter the container's cgroup namespace"))?;
    }
    move_into_link_name_space(container.mounts.as_fd(), Some(LinkNameSpaceType::Mount))
        .map_err(step("enter the container's mount namespace"))?;
    match (&container.pid_namespace, plan.mailbox) {
        (Some(namespace), Some(mailbox)) => {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::ProcessID))
                .map_err(step("enter the container's pid namespace"))?;
            Ok(Way::InP2 { maps, mailbox })
        }
        _ => Ok(Way::Here),
    }
}

fn open_streams(plan: StreamPlan, own_proc: &OwnProc) -> Result<Streams, Failure> {
    match plan {
        StreamPlan::Three(fds) => Ok(Streams::Three(fds)),
        StreamPlan::NewTerminal { socket, size } => {
            let root = Root::open(Path::new("/")).map_err(step("open the root file system"))?;
            let (ours, theirs) =
                console::open(&root, own_proc.fds(), size).map_err(step("open a terminal"))?;
            console::send(socket.as_fd(), ours.as_fd()).map_err(step("send the terminal"))?;
            Ok(Streams::Terminal(theirs))
        }
    }
}
