//! `clone3(2)` without shared memory: a fork that is born in namespaces and in a cgroup, with a pidfd.
//!
//! The caller has one thread (the pod agent is built so), hence no lock can be held by a thread that the child lacks:
//! the child may run ordinary Rust up to its execve or exit.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::process;
use crate::child::Child;

/// All handlers of the child start as default (Linux 5.5); the libc crate does not know it for every target.
pub(super) const CLONE_CLEAR_SIGHAND: u64 = 0x1_0000_0000;
/// Linux 5.7: the child is born in the cgroup that `clone_args.cgroup` refers to.
pub(super) const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;
/// Exit code of a child whose body panicked; the same as Rust's own.
const PANICKED: i32 = 101;

/// Where a child is born.
#[derive(Debug, Default)]
pub(crate) struct Birth<'a> {
    /// A new pid namespace, of which the child is init.
    pub(crate) new_pid: bool,
    /// A v2 cgroup folder.
    pub(crate) cgroup: Option<BorrowedFd<'a>>,
}

/// Kernel ABI of clone3, version 2 (88 bytes).
#[repr(C, align(8))]
#[derive(Default)]
pub(super) struct CloneArgs {
    pub(super) flags: u64,
    pub(super) pidfd: u64,
    pub(super) child_tid: u64,
    pub(super) parent_tid: u64,
    pub(super) exit_signal: u64,
    pub(super) stack: u64,
    pub(super) stack_size: u64,
    pub(super) tls: u64,
    pub(super) set_tid: u64,
    pub(super) set_tid_size: u64,
    pub(super) cgroup: u64,
}

/// Forks; the child runs `body` and exits with what it returns, it never comes back to the caller's code.
///
/// The child starts with default signal dispositions and nothing blocked.
pub(crate) fn fork(birth: &Birth<'_>, body: impl FnOnce() -> i32) -> io::Result<Child> {
    let mut pidfd: RawFd = -1;
    let mut args = CloneArgs {
        flags: libc::CLONE_PIDFD as u64 | CLONE_CLEAR_SIGHAND,
        pidfd: &raw mut pidfd as u64,
        exit_signal: libc::SIGCHLD as u64,
        ..CloneArgs::default()
    };
    if birth.new_pid {
        args.flags |= libc::CLONE_NEWPID as u64;
    }
    if let Some(cgroup) = birth.cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: args and pidfd live across the call and have the kernel's layout; without CLONE_VM the child has its
    // own copy of everything, and as the caller has no other thread that copy is consistent.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<CloneArgs>()) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            process::reset_signals();
            let code = catch_unwind(AssertUnwindSafe(body)).unwrap_or(PANICKED);
            process::exit_now(code)
        }
        pid => {
            #[allow(clippy::cast_possible_truncation)] // the kernel's pid_t has 32 bits
            let pid = pid as i32;
            // SAFETY: the kernel has just stored a new descriptor in pidfd, which nothing else owns.
            Ok(Child::new(pid, unsafe { OwnedFd::from_raw_fd(pidfd) }))
        }
    }
}

/// Forks a sibling, a child of this process's own parent, as init of a new pid namespace, which belongs to the user namespace that this
/// process is in. It runs `body` as a child of [`fork`] does. Its number, by the parent's count, is in the mailbox (at this address) before
/// its first instruction.
pub(crate) fn fork_init_sibling(mailbox: usize, body: impl FnOnce() -> i32) -> io::Result<()> {
    let mut args = CloneArgs {
        flags: (libc::CLONE_PARENT | libc::CLONE_NEWPID | libc::CLONE_PARENT_SETTID) as u64
            | CLONE_CLEAR_SIGHAND,
        parent_tid: mailbox as u64,
        // With CLONE_PARENT the kernel takes the exit signal from this process's own birth.
        ..CloneArgs::default()
    };
    // SAFETY: as in fork; the kernel stores an i32 in the mailbox, which is one that is shared with the parent.
    match unsafe { libc::syscall(libc::SYS_clone3, &raw mut args, size_of::<CloneArgs>()) } {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            process::reset_signals();
            let code = catch_unwind(AssertUnwindSafe(body)).unwrap_or(PANICKED);
            process::exit_now(code)
        }
        _ => Ok(()),
    }
}
