//! This program as /init of a guest: the same agent, and what else a machine needs that has nothing but a kernel.
//!
//! ```text
//! mounts, root that can be pivoted -> modules to talk with -> listen on vsock -> tell the host -> serve until ShutDown -> power off
//!                                  `-> a child loads the other modules
//! ```
//!
//! When /init ends for any other reason the kernel panics, and the VMM tells its parent with the last line of the console; so the
//! agent's last words go to the console first.

mod files;
mod heartbeat;
mod modprobe;
mod modules;
mod mounts;
mod network;
mod power;
mod vsock;

pub(crate) use files::{FileError, PodFile, write as write_files};
pub(crate) use modprobe::load_unasked as load_unasked_modules;
pub(crate) use network::{NetworkError, set_up as set_up_network};
pub(crate) use vsock::accept;

use std::ffi::{OsStr, OsString};
use std::io;
use std::process::ExitCode;

use hartpod_container::Child;
use rustix::process::{Resource, Rlimit, getpid, setrlimit};

use crate::peer::Listener;
use crate::supervisor::End;
use crate::{StartError, Way, agent, status_code, stderr_log, sys};

/// How the kernel starts the program in the initramfs (init/main.c).
const INIT: &str = "/init";

/// Descriptors that this process may have, and containers that are not told otherwise: the most that the kernel allows (`fs.nr_open`).
const OPEN_FILES: u64 = 1 << 20;

/// Whether the kernel started this process as /init.
pub(crate) fn is_init(arguments: &[OsString]) -> bool {
    getpid().as_raw_nonzero().get() == 1 && arguments.first().is_some_and(|name| name == INIT)
}

/// Whether the kernel asks for modules.
pub(crate) fn is_modprobe(arguments: &[OsString]) -> bool {
    arguments.first().is_some_and(|name| name == OsStr::new(modprobe::PROGRAM))
}

/// Answers the kernel's request for modules.
pub(crate) fn modprobe(arguments: &[OsString]) -> ExitCode {
    let _ = mounts::log_to_kernel();
    stderr_log::start(None);
    modprobe::main(arguments)
}

/// The life of a guest's /init. Its return is the guest's end.
pub(crate) fn main() -> ExitCode {
    std::panic::set_hook(Box::new(|panic| power::last_words(&panic.to_string())));
    let ended = boot().map_err(|source| StartError::Guest { source });
    let ended = ended.and_then(|modules| crate::run(Way::Guest { modules }, listen));
    match ended {
        Ok(End::ShutDown) => power::off(),
        Ok(End::Broken) => power::last_words("the pod is over"),
        Err(error) => power::last_words(&status_code::chain(&error)),
    }
    ExitCode::FAILURE
}

/// Why the guest could not be made ready for the agent.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BootError {
    #[error(transparent)]
    Mount(#[from] mounts::MountError),
    #[error(transparent)]
    Module(#[from] modules::ModuleError),
    #[error("{what}")]
    Step { what: &'static str, source: io::Error },
}

fn step<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> BootError {
    move |error| BootError::Step { what, source: error.into() }
}

/// Everything up to where the agent can listen; the child that loads the other modules.
fn boot() -> Result<Child, BootError> {
    mounts::make_root_movable()?;
    mounts::mount_all()?;
    mounts::log_to_kernel()?;
    // What the kernel's command line says and the kernel does not know is in the environment.
    stderr_log::start(std::env::var("RUST_LOG").ok().as_deref());
    modprobe::install().map_err(step("make the link that is called for modules"))?;
    let modules = modules::Index::read()?;
    modules.load_early()?;
    let late = modules.load_late_in_child().map_err(step("start the loader of modules"))?;
    sys::set_interface_up(c"lo").map_err(step("bring lo up"))?;
    let limit = Rlimit { current: Some(OPEN_FILES), maximum: Some(OPEN_FILES) };
    setrlimit(Resource::Nofile, limit).map_err(step("raise the limit of open files"))?;
    Ok(late)
}

/// The agent's two listeners; by then the host may be told. Needs a runtime.
fn listen() -> io::Result<agent::Sockets> {
    let listener = |port| vsock::listen(port).and_then(Listener::vsock);
    let sockets = agent::Sockets { control: listener(vsock::CONTROL)?, streams: listener(vsock::STREAMS)? };
    tokio::spawn(heartbeat::serve(listener(vsock::HEARTBEAT)?));
    tokio::spawn(vsock::tell_ready());
    Ok(sockets)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_are_told_by_the_name_that_the_program_is_called() {
        let called = |name: &str| [OsString::from(name), OsString::from("-q")];
        assert!(is_modprobe(&called("/sbin/modprobe")));
        for name in ["/init", "modprobe", "hartpod-pod", ""] {
            assert!(!is_modprobe(&called(name)), "{name}");
        }
        // This process is not the first of its machine.
        assert!(!is_init(&called("/init")));
        assert!(!is_init(&[]) && !is_modprobe(&[]));
    }
}
