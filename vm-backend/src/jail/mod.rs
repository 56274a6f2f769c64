//! What a VMM may still do once it has its boot message: nothing but drive the descriptors that came with it.
//!
//! A guest is hostile, and a VMM that its guest has taken over is too. So, before the first byte of the guest is looked at, the process goes
//! into namespaces of its own, with an empty root, a user of its own, no capabilities and no way to gain any ([`Jail::enter`]); and each thread gives up all
//! system calls that it does not need ([`confine`]). `docs/security.md` says what each line of defence holds by itself.
//!
//! Not here: the pid namespace, which a process cannot enter itself and have threads; the launcher starts the VMM in one. Resources are bounded
//! by the VMM's cgroup, which it does not see.

mod calls;
mod file_server;
mod identity;
mod landlock;
mod limits;
mod root;
mod seccomp;
mod sys;

use std::io;

use nix::sched::{CloneFlags, unshare};
use rustix::process::getpid;

pub use file_server::enter as enter_file_server;
pub use landlock::abi as landlock_abi;
pub use seccomp::{Thread, confine, start_thread};

/// What differs from guest to guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Jail {
    /// User and group of the VMM, which nothing else on the machine has. `None`: it stays root, without capabilities.
    pub user: Option<u32>,
    /// Threads that it needs at most, its first one included.
    pub threads: u32,
}

/// A part of the jail could not be built.
#[derive(Debug, thiserror::Error)]
pub enum JailError {
    #[error("{what}")]
    Step {
        what: &'static str,
        #[source]
        source: io::Error,
    },
    #[error("this process was not started in a pid namespace of its own")]
    NotAlone,
}

/// What is unshared. A mount namespace is a copy of the host's until its root is replaced.
const NAMESPACES: CloneFlags = CloneFlags::CLONE_NEWNS
    .union(CloneFlags::CLONE_NEWNET)
    .union(CloneFlags::CLONE_NEWIPC)
    .union(CloneFlags::CLONE_NEWUTS)
    .union(CloneFlags::CLONE_NEWCGROUP);

impl Jail {
    /// Puts this process into the jail: all but the seccomp filters. It must be root, and have one thread.
    ///
    /// A kernel without Landlock is no error: it is the second lock on doors that are shut already.
    ///
    /// # Errors
    /// A part cannot be built. The process is good for nothing then but to say so.
    pub fn enter(self) -> Result<(), JailError> {
        if !getpid().is_init() {
            return Err(JailError::NotAlone);
        }
        // While there are files.
        seccomp::look_up_once();
        sys::use_one_heap();
        limits::set(self.threads)?;
        sys::join_new_session_keyring().at("join a session keyring of its own")?;
        unshare(NAMESPACES).at("make namespaces")?;
        root::replace_by_nothing()?;
        identity::give_up(self.user)?;
        landlock::deny_all()
    }
}

/// Names the step that failed.
trait At<T> {
    fn at(self, what: &'static str) -> Result<T, JailError>;
}

impl<T, E: Into<io::Error>> At<T> for Result<T, E> {
    fn at(self, what: &'static str) -> Result<T, JailError> {
        self.map_err(|source| JailError::Step { what, source: source.into() })
    }
}
