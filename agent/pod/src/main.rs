//! `hartpod-pod`: the agent of one pod. It makes the pod's containers, holds their stdio, reaps them and reports.
//!
//! It is started by the daemon, without arguments, with two listening unix sockets: descriptor 3 for pod/v1, descriptor 4 for raw
//! streams; stderr is its log (`RUST_LOG`). It serves root only. In a guest it is /init, see `guest`: it listens on vsock and serves the
//! host only.
//!
//! It has exactly one thread, so that a child that it clones may run ordinary Rust until its execve. Whatever could block
//! (a slow disk, a dead mount) happens in such a child, never here. It ends with ShutDown and with nothing else: the
//! daemon may come and go, and SIGTERM, SIGINT and SIGHUP, which a careless `killall` or the end of a session sends, are
//! ignored.

mod agent;
mod board;
mod call;
mod children;
mod clock;
mod container;
mod exec;
mod guest;
mod log_writer;
mod peer;
mod request;
mod service;
mod stats;
mod status_code;
mod stderr_log;
mod stream;
mod supervisor;
mod sys;
mod timed;

use std::io;
use std::process::ExitCode;

use hartpod_container::{Child, launcher};
use rustix::fs::{Mode, OFlags};
use rustix::process::{
    DumpableBehavior, Resource, Rlimit, getpid, getrlimit, set_child_subreaper, set_dumpable_behavior,
    setrlimit,
};
use tracing::error;

use crate::peer::Listener;
use crate::supervisor::End;

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().collect();
    if arguments.first().is_some_and(|name| name == log_writer::NAME) {
        stderr_log::start(std::env::var("RUST_LOG").ok().as_deref());
        return ExitCode::from(u8::try_from(log_writer::main(&arguments)).unwrap_or(u8::MAX));
    }
    if guest::is_modprobe(&arguments) {
        return guest::modprobe(&arguments);
    }
    if guest::is_init(&arguments) {
        return guest::main();
    }
    // Before anything else opens a descriptor.
    let sockets = launcher::take_sockets();
    stderr_log::start(std::env::var("RUST_LOG").ok().as_deref());
    let end = sockets.map_err(|source| StartError::Sockets { source }).and_then(|(control, streams)| {
        run(Way::Host, || {
            Ok(agent::Sockets { control: Listener::unix(control)?, streams: Listener::unix(streams)? })
        })
    });
    match end {
        Ok(End::ShutDown) => ExitCode::SUCCESS,
        Ok(End::Broken) => ExitCode::FAILURE,
        Err(error) => {
            error!(error = status_code::chain(&error), "the agent cannot work");
            ExitCode::FAILURE
        }
    }
}

/// Why the agent could not begin, or had to stop.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error("descriptors 3 and 4 must be listening unix sockets")]
    Sockets { source: io::Error },
    #[error("make the guest ready")]
    Guest { source: guest::BootError },
    #[error("{what}")]
    Step { what: &'static str, source: io::Error },
    #[error("serve pod/v1")]
    Serve(#[source] tonic::transport::Error),
}

/// How this process came to be an agent.
#[derive(Debug)]
enum Way {
    /// The daemon started it on a node.
    Host,
    /// It is /init of a guest; the child still loads modules.
    Guest { modules: Child },
}

/// Listens by `listen`, which has a runtime, and serves.
fn run(way: Way, listen: impl FnOnce() -> io::Result<agent::Sockets>) -> Result<End, StartError> {
    let step = |what| move |source| StartError::Step { what, source };
    prepare_process().map_err(step("prepare the process"))?;
    // The pod's mount namespace will not have it.
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
        .map_err(|errno| step("open /dev/null")(errno.into()))?;
    // Events per turn; the default's buffer would be a fourth of the heap of an idle agent.
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.max_io_events_per_tick(64).enable_io().enable_time().build();
    runtime.map_err(step("start the runtime"))?.block_on(async {
        let sockets = listen().map_err(step("listen"))?;
        agent::serve(way, sockets, null).await.map_err(StartError::Serve)
    })
}

/// Forwarded ports alone may take two thousand descriptors; the kernel starts /init of a guest with half as many. Containers have a limit of
/// their own in their specs.
fn raise_open_files() -> io::Result<()> {
    let own = getrlimit(Resource::Nofile);
    Ok(setrlimit(Resource::Nofile, Rlimit { current: own.maximum, maximum: own.maximum })?)
}

/// What this process is to the rest of the machine.
fn prepare_process() -> io::Result<()> {
    // Running from a memfd, its name would be that of the memfd.
    rustix::thread::set_name(c"hartpod-pod")?;
    // Processes whose parents die in a container without a pid namespace of its own come here, not to the host's init.
    set_child_subreaper(Some(getpid()))?;
    // Nobody but a privileged process may look into it, whatever user ids it shares.
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    // Modes of files that it makes are what they say; containers get their own.
    rustix::process::umask(Mode::from_raw_mode(0o022));
    raise_open_files()?;
    sys::ignore_signals(&[libc::SIGTERM, libc::SIGINT, libc::SIGHUP]);
    sys::tune_allocator();
    Ok(())
}
