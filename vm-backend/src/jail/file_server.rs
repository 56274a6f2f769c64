//! The jail of a guest's file server. It keeps the right to do with files whatever root may, and there are no files but those of volumes, and of
//! its own descriptors.

use libc::{F_DUPFD_CLOEXEC, MADV_DONTNEED, MADV_FREE, PR_SET_NAME, SIGABRT, c_long};
use nix::sched::unshare;
use rustix::fs::Mode;
use rustix::process::{Resource, Rlimit, getpid, setrlimit};
use rustix::thread::CapabilitySet;

use super::calls::When::{self, Always, Arg, NewMemory, NewThread, NoExec, OwnThread};
use super::{At as _, JailError, NAMESPACES, identity, landlock, root, seccomp, sys};

/// Whatever a guest's kernel has allowed is done: it decides by the attributes that it is told, and who makes a file owns it. Not among them: devices
/// (MKNOD), capabilities of files (SETFCAP), handles instead of paths (DAC_READ_SEARCH).
const KEPT: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETGID);

/// The root, in which this process finds its own descriptors by their numbers.
const OWN_FILES: &str = "";

/// Puts this process into its jail; where it finds its own descriptors from then on. It must be root, have one thread, and be the first process of
/// a pid namespace.
///
/// # Errors
/// A part cannot be built. The process is good for nothing then but to say so.
pub fn enter() -> Result<&'static str, JailError> {
    if !getpid().is_init() {
        return Err(JailError::NotAlone);
    }
    seccomp::look_up_once();
    sys::use_one_heap();
    for resource in [Resource::Core, Resource::Memlock, Resource::Msgqueue] {
        setrlimit(resource, Rlimit { current: Some(0), maximum: Some(0) }).at("set a resource limit")?;
    }
    // Modes are what the guest says: its kernel has taken the umask off.
    rustix::process::umask(Mode::empty());
    sys::join_new_session_keyring().at("join a session keyring of its own")?;
    unshare(NAMESPACES).at("make namespaces")?;
    root::replace_by_own_files()?;
    identity::keep_only(KEPT)?;
    landlock::deny_all_but_files()?;
    seccomp::confine_file_server()?;
    Ok(OWN_FILES)
}

/// Every system call that it may make. There is one list: all threads may do all of it.
#[rustfmt::skip]
pub(super) const FILE_SERVER: &[(c_long, When)] = &[
    // As every thread of a VMM: see `calls`.
    (libc::SYS_futex, Always),
    (libc::SYS_sched_yield, Always),
    (libc::SYS_restart_syscall, Always),
    (libc::SYS_brk, Always),
    (libc::SYS_mmap, NewMemory),
    (libc::SYS_mremap, Always),
    (libc::SYS_munmap, Always),
    (libc::SYS_mprotect, NoExec),
    (libc::SYS_madvise, Arg(2, MADV_DONTNEED as u32)),
    (libc::SYS_madvise, Arg(2, MADV_FREE as u32)),
    (libc::SYS_sched_getaffinity, Always),
    (libc::SYS_clock_gettime, Always),
    (libc::SYS_clock_nanosleep, Always),
    (libc::SYS_getrandom, Always),
    (libc::SYS_write, Always),
    (libc::SYS_close, Always),
    #[cfg(debug_assertions)]
    (libc::SYS_fcntl, Arg(1, libc::F_GETFD as u32)),
    (libc::SYS_sigaltstack, Always),
    (libc::SYS_rt_sigprocmask, Always),
    (libc::SYS_rt_sigreturn, Always),
    (libc::SYS_exit, Always),
    (libc::SYS_exit_group, Always),
    (libc::SYS_getpid, Always),
    (libc::SYS_gettid, Always),
    (libc::SYS_tgkill, OwnThread(SIGABRT)),
    // Its threads, and what the C library prepares before the first.
    (libc::SYS_rt_sigaction, Always),
    (libc::SYS_clone, NewThread),
    (libc::SYS_clone3, Always),
    (libc::SYS_set_robust_list, Always),
    (libc::SYS_rseq, Always),
    (libc::SYS_prctl, Arg(0, PR_SET_NAME as u32)),

    // Requests of the VMM and of the daemon.
    (libc::SYS_recvfrom, Always),
    (libc::SYS_sendto, Always),
    (libc::SYS_recvmsg, Always),
    (libc::SYS_sendmsg, Always),
    (libc::SYS_accept4, Always),
    (libc::SYS_setsockopt, Arg(1, libc::SOL_SOCKET as u32)),

    // As whom files are made; without what keeps set-user bits, for a moment.
    (libc::SYS_setfsuid, Always),
    (libc::SYS_setfsgid, Always),
    (libc::SYS_capget, Always),
    (libc::SYS_capset, Always),

    // Names.
    (libc::SYS_openat, Always),
    (libc::SYS_statx, Always),
    (libc::SYS_readlinkat, Always),
    (libc::SYS_symlinkat, Always),
    (libc::SYS_mknodat, Always),
    (libc::SYS_mkdirat, Always),
    (libc::SYS_unlinkat, Always),
    (libc::SYS_renameat2, Always),
    (libc::SYS_linkat, Always),
    // Attributes.
    (libc::SYS_fchmodat, Always),
    (libc::SYS_fchownat, Always),
    (libc::SYS_utimensat, Always),
    (libc::SYS_ftruncate, Always),
    (libc::SYS_fstatfs, Always),
    (libc::SYS_getxattr, Always),
    (libc::SYS_setxattr, Always),
    (libc::SYS_listxattr, Always),
    (libc::SYS_removexattr, Always),
    // Data.
    (libc::SYS_pread64, Always),
    (libc::SYS_pwrite64, Always),
    (libc::SYS_pwritev2, Always),
    (libc::SYS_fsync, Always),
    (libc::SYS_fdatasync, Always),
    (libc::SYS_fallocate, Always),
    (libc::SYS_lseek, Always),
    (libc::SYS_copy_file_range, Always),
    (libc::SYS_getdents64, Always),
    (libc::SYS_fcntl, Arg(1, F_DUPFD_CLOEXEC as u32)),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_may_do_with_files_alone() {
        let never = [
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_socket,
            libc::SYS_connect,
            libc::SYS_bind,
            libc::SYS_kill,
            libc::SYS_pidfd_open,
            libc::SYS_ptrace,
            libc::SYS_mount,
            libc::SYS_open_tree,
            libc::SYS_move_mount,
            libc::SYS_open_by_handle_at,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_chroot,
            libc::SYS_setuid,
            libc::SYS_bpf,
            libc::SYS_io_uring_setup,
            libc::SYS_userfaultfd,
            libc::SYS_ioctl,
        ];
        for call in never {
            assert!(FILE_SERVER.iter().all(|(allowed, _)| *allowed != call), "{call}");
        }
        assert!(
            !KEPT
                .intersects(CapabilitySet::SYS_ADMIN | CapabilitySet::DAC_READ_SEARCH | CapabilitySet::MKNOD)
        );
    }
}
