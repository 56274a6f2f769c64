//! `hartpod-pod`: the agent of one pod. It makes the pod's containers, holds their stdio, reaps them and reports.
//!
//! It is started by the daemon, without arguments, with two listening unix sockets: descriptor 3 for pod/v1, descriptor 4 for raw
//! streams; stderr is its log (`RUST_LOG`). It serves root only.
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
mod inherited;
mod log_writer;
mod peer;
mod request;
mod service;
mod status_code;
mod stderr_log;
mod stream;
mod supervisor;
mod sys;
#[cfg(test)]
mod test_random;

use std::error::Error;
use std::process::ExitCode;

use rustix::fs::{Mode, OFlags};
use rustix::process::{DumpableBehavior, getpid, set_child_subreaper, set_dumpable_behavior};
use tracing::error;

use crate::inherited::Sockets;
use crate::supervisor::End;

fn main() -> ExitCode {
    let sockets = Sockets::take();
    stderr_log::start(std::env::var("RUST_LOG").ok().as_deref());
    match sockets.map_err(Into::into).and_then(run) {
        Ok(End::ShutDown) => ExitCode::SUCCESS,
        Ok(End::Broken) => ExitCode::FAILURE,
        Err(error) => {
            error!(error = status_code::chain(&*error), "the agent cannot work");
            ExitCode::FAILURE
        }
    }
}

fn run(sockets: Sockets) -> Result<End, Box<dyn Error>> {
    prepare_process()?;
    // The pod's mount namespace will not have it.
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
    runtime.block_on(async {
        let (control, streams) = sockets.listen()?;
        Ok(agent::serve(control, streams, null).await?)
    })
}

/// What this process is to the rest of the machine.
fn prepare_process() -> std::io::Result<()> {
    // Running from a memfd, its name would be that of the memfd.
    rustix::thread::set_name(c"hartpod-pod")?;
    // Processes whose parents die in a container without a pid namespace of its own come here, not to the host's init.
    set_child_subreaper(Some(getpid()))?;
    // Nobody but a privileged process may look into it, whatever user ids it shares.
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    // Modes of files that it makes are what they say; containers get their own.
    rustix::process::umask(Mode::from_raw_mode(0o022));
    sys::ignore_signals(&[libc::SIGTERM, libc::SIGINT, libc::SIGHUP]);
    sys::tune_allocator();
    Ok(())
}
