//! Every system call that a thread of the VMM may make, what for, and which of them.
//!
//! All threads share one memory, and who can write to it can make another thread call for it: what a VMM that was taken over can reach is what
//! `Main` and `Vcpu` have together. The lists of single threads are a second hurdle.
//!
//! Absent on purpose: everything that opens or changes a path (statx may look at one, in an empty root), socket, connect, bind, exec, kill, ptrace, mount, keyctl, bpf, userfaultfd,
//! io_uring, memory that can be executed, and processes. New devices, disks and logs come as descriptors in messages (recvmsg).
//!
//! The C library's own calls are in it too; they are those of glibc 2.36 and later, linked statically.

use libc::{
    EFD_CLOEXEC, F_DUPFD_CLOEXEC, F_GETFL, F_SETFL, FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, MADV_DONTDUMP,
    MADV_DONTNEED, MADV_FREE, MADV_HUGEPAGE, MADV_NOHUGEPAGE, PR_SET_NAME, PR_SET_NO_NEW_PRIVS, SIGABRT,
    c_long,
};

use super::seccomp::Thread;

/// With which arguments. Numbers are those of 64-bit Linux, the same on riscv64 and x86_64.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum When {
    Always,
    /// The lower 32 bits of this argument, from 0 on, are this.
    Arg(u8, u32),
    /// As `Arg`, for two of them.
    Both((u8, u32), (u8, u32)),
    /// Memory that cannot be executed: PROT_EXEC is not in argument 2.
    NoExec,
    /// As `NoExec`, and new: MAP_ANONYMOUS is in argument 3.
    NewMemory,
    /// This signal, to a thread of this process.
    OwnThread(i32),
    /// A thread, as the C library starts them: no process, no namespace.
    NewThread,
}

/// A set of kinds of threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Threads(u8);

impl Threads {
    const fn and(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub(super) fn have(self, kind: Thread) -> bool {
        let of_kind = match kind {
            Thread::SetUp => return true,
            Thread::Main => MAIN.and(STARTED_LATER),
            Thread::Vcpu => VCPU,
            Thread::Block => BLOCK,
            Thread::Net => NET,
            Thread::Balloon => BALLOON,
            Thread::Vsock => VSOCK,
            Thread::Fs => FS,
            Thread::Log => LOG,
        };
        self.0 & of_kind.0 != 0
    }
}

/// Only until the guest runs.
const SET_UP: Threads = Threads(0);
const MAIN: Threads = Threads(1);
const VCPU: Threads = Threads(1 << 1);
const BLOCK: Threads = Threads(1 << 2);
const NET: Threads = Threads(1 << 3);
const BALLOON: Threads = Threads(1 << 4);
const VSOCK: Threads = Threads(1 << 5);
const LOG: Threads = Threads(1 << 6);
const FS: Threads = Threads(1 << 7);
const DEVICES: Threads = BLOCK.and(NET).and(BALLOON).and(VSOCK).and(FS);
const STARTED_LATER: Threads = BLOCK.and(LOG).and(FS);
const ALL: Threads = DEVICES.and(LOG).and(MAIN).and(VCPU);

use When::{Always, Arg, Both, NewMemory, NewThread, NoExec, OwnThread};

/// An ioctl's number is in argument 1.
const fn request(number: u32) -> When {
    Arg(1, number)
}

/// The signal that gets a vCPU out of the guest: the first that the C library leaves to programs, of glibc.
const KICK: i32 = 34;

#[rustfmt::skip]
pub(super) const CALLS: &[(c_long, When, Threads)] = &[
    // Every thread: locks and channels.
    (libc::SYS_futex, Always, ALL),
    (libc::SYS_sched_yield, Always, ALL),
    (libc::SYS_restart_syscall, Always, ALL),
    // Memory of its own; the C library's allocator.
    (libc::SYS_brk, Always, ALL),
    (libc::SYS_mmap, NewMemory, ALL),
    (libc::SYS_mremap, Always, ALL),
    (libc::SYS_munmap, Always, ALL),
    (libc::SYS_mprotect, NoExec, ALL),
    // Free stacks and heaps; pages that the guest gives back.
    (libc::SYS_madvise, Arg(2, MADV_DONTNEED as u32), ALL),
    (libc::SYS_madvise, Arg(2, MADV_FREE as u32), ALL),
    // Whether there are more processors than one, to choose a heap.
    (libc::SYS_sched_getaffinity, Always, ALL),
    // The time, where the vDSO cannot tell it.
    (libc::SYS_clock_gettime, Always, ALL),
    // Seeds of hash tables.
    (libc::SYS_getrandom, Always, ALL),
    // Events: kicks and interrupts. Standard error, the console, the status.
    (libc::SYS_read, Always, ALL),
    (libc::SYS_write, Always, ALL),
    (libc::SYS_close, Always, ALL),
    // std's check, in builds with such checks, that what is to be closed is open.
    #[cfg(debug_assertions)]
    (libc::SYS_fcntl, Arg(1, libc::F_GETFD as u32), ALL),
    // The end of a thread, and of a panic's.
    (libc::SYS_sigaltstack, Always, ALL),
    (libc::SYS_rt_sigprocmask, Always, ALL),
    (libc::SYS_rt_sigreturn, Always, ALL),
    (libc::SYS_exit, Always, ALL),
    (libc::SYS_exit_group, Always, ALL),
    (libc::SYS_getpid, Always, ALL),
    (libc::SYS_gettid, Always, ALL),
    (libc::SYS_tgkill, OwnThread(SIGABRT), ALL),

    // The guest.
    (libc::SYS_ioctl, request(KVM_RUN), VCPU),
    // Interrupts, from whoever has some: with an AIA, and without.
    (libc::SYS_ioctl, request(KVM_IRQ_LINE), DEVICES.and(VCPU).and(MAIN)),
    (libc::SYS_ioctl, request(KVM_INTERRUPT), DEVICES.and(VCPU).and(MAIN)),

    // A driver that begins: its device gets kicks, the network's offloads are set, vsock waits anew for its clients.
    (libc::SYS_fcntl, Arg(1, F_DUPFD_CLOEXEC as u32), VCPU),
    (libc::SYS_ioctl, request(TUNSETOFFLOAD), VCPU),
    (libc::SYS_epoll_create1, Always, VCPU),
    (libc::SYS_epoll_ctl, Always, VCPU.and(VSOCK)),

    // Waiting for kicks, requests and clients; does the console take another line?
    (libc::SYS_ppoll, Always, ALL),
    (libc::SYS_epoll_pwait, Always, VSOCK),

    // Disks.
    (libc::SYS_preadv, Always, BLOCK),
    (libc::SYS_pwritev, Always, BLOCK),
    (libc::SYS_fdatasync, Always, BLOCK),
    (libc::SYS_fallocate, Arg(1, (FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE) as u32), BLOCK),
    // O_DIRECT is taken off for a request that is not aligned.
    (libc::SYS_fcntl, Arg(1, F_GETFL as u32), BLOCK.and(MAIN)),
    (libc::SYS_fcntl, Arg(1, F_SETFL as u32), BLOCK),

    // The network's packets, vsock's bytes.
    (libc::SYS_readv, Always, NET.and(VSOCK)),
    (libc::SYS_writev, Always, NET),

    // Clients of vsock: they come, say what they want, get their bytes and a reason. The file server's requests and answers.
    (libc::SYS_accept4, Always, VSOCK.and(MAIN)),
    (libc::SYS_recvfrom, Always, VSOCK.and(FS)),
    (libc::SYS_sendto, Always, VSOCK.and(LOG).and(FS)),
    (libc::SYS_sendmsg, Always, VSOCK.and(MAIN)),
    (libc::SYS_shutdown, Always, VSOCK),

    // Logs: a stream of the guest's is a client of vsock in this process; does the file end within a line?
    (libc::SYS_socketpair, Arg(0, libc::AF_UNIX as u32), LOG),
    (libc::SYS_setsockopt, Both((1, libc::SOL_SOCKET as u32), (2, libc::SO_SNDBUF as u32)), LOG),
    (libc::SYS_pread64, Always, LOG),

    // Requests of the daemon, and the descriptors of a new disk: their kind and size.
    (libc::SYS_recvmsg, Always, MAIN),
    (libc::SYS_fstat, Always, MAIN.and(LOG)),
    (libc::SYS_statx, Arg(2, (libc::AT_EMPTY_PATH | libc::AT_STATX_DONT_SYNC) as u32), MAIN),
    (libc::SYS_lseek, Always, MAIN),
    (libc::SYS_ioctl, request(FIONBIO), MAIN.and(LOG)),
    // Threads for it: an event to stop it by, a stack, a name, a filter.
    (libc::SYS_eventfd2, Arg(1, (EFD_CLOEXEC | libc::EFD_NONBLOCK) as u32), MAIN),
    (libc::SYS_fcntl, Arg(1, F_DUPFD_CLOEXEC as u32), MAIN),
    (libc::SYS_clone, NewThread, MAIN),
    // Answered with ENOSYS by a filter of its own, before it comes to this.
    (libc::SYS_clone3, Always, MAIN),
    (libc::SYS_set_robust_list, Always, MAIN),
    (libc::SYS_rseq, Always, MAIN),
    (libc::SYS_prctl, Arg(0, PR_SET_NAME as u32), MAIN),
    (libc::SYS_prctl, Arg(0, PR_SET_NO_NEW_PRIVS as u32), MAIN),
    (libc::SYS_seccomp, Always, MAIN),
    // The end: vCPUs are told to leave the guest, and waited for.
    (libc::SYS_tgkill, OwnThread(KICK), MAIN),
    (libc::SYS_clock_nanosleep, Always, MAIN),
    // And logs are written to their end.
    (libc::SYS_pipe2, Arg(1, libc::O_CLOEXEC as u32), MAIN),

    // Until the guest runs: boot files.
    (libc::SYS_statx, Arg(2, libc::AT_EMPTY_PATH as u32), SET_UP),
    // RAM, and the state that vCPUs share with the kernel.
    (libc::SYS_mmap, NoExec, SET_UP),
    (libc::SYS_madvise, Arg(2, MADV_HUGEPAGE as u32), SET_UP),
    (libc::SYS_madvise, Arg(2, MADV_NOHUGEPAGE as u32), SET_UP),
    (libc::SYS_madvise, Arg(2, MADV_DONTDUMP as u32), SET_UP),
    // The VM.
    (libc::SYS_ioctl, request(KVM_GET_API_VERSION), SET_UP),
    (libc::SYS_ioctl, request(KVM_CREATE_VM), SET_UP),
    (libc::SYS_ioctl, request(KVM_CHECK_EXTENSION), SET_UP),
    (libc::SYS_ioctl, request(KVM_GET_VCPU_MMAP_SIZE), SET_UP),
    (libc::SYS_ioctl, request(KVM_SET_USER_MEMORY_REGION), SET_UP),
    (libc::SYS_ioctl, request(KVM_CREATE_VCPU), SET_UP),
    (libc::SYS_ioctl, request(KVM_GET_REG_LIST), SET_UP),
    (libc::SYS_ioctl, request(KVM_GET_ONE_REG), SET_UP),
    (libc::SYS_ioctl, request(KVM_SET_ONE_REG), SET_UP),
    (libc::SYS_ioctl, request(KVM_CREATE_DEVICE), SET_UP),
    (libc::SYS_ioctl, request(KVM_GET_DEVICE_ATTR), SET_UP),
    (libc::SYS_ioctl, request(KVM_SET_DEVICE_ATTR), SET_UP),
    (libc::SYS_ioctl, request(KVM_IOEVENTFD), SET_UP),
    // The tap.
    (libc::SYS_ioctl, request(TUNGETIFF), SET_UP),
    (libc::SYS_ioctl, request(TUNSETVNETHDRSZ), SET_UP),
    // The signal that stops vCPUs.
    (libc::SYS_rt_sigaction, Always, SET_UP),

    // What newer architectures do not have, and crates call where it is there. No guests run on it.
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_poll, Always, ALL),
    #[cfg(target_arch = "x86_64")]
    (libc::SYS_epoll_wait, Always, VSOCK),
];

// include/uapi/linux/kvm.h, as asm-generic/ioctl.h makes numbers of it.
const KVM_GET_API_VERSION: u32 = 0xae00;
const KVM_CREATE_VM: u32 = 0xae01;
const KVM_CHECK_EXTENSION: u32 = 0xae03;
const KVM_GET_VCPU_MMAP_SIZE: u32 = 0xae04;
const KVM_CREATE_VCPU: u32 = 0xae41;
const KVM_SET_USER_MEMORY_REGION: u32 = 0x4020_ae46;
const KVM_IRQ_LINE: u32 = 0x4008_ae61;
const KVM_IOEVENTFD: u32 = 0x4040_ae79;
const KVM_RUN: u32 = 0xae80;
const KVM_INTERRUPT: u32 = 0x4004_ae86;
const KVM_GET_ONE_REG: u32 = 0x4010_aeab;
const KVM_SET_ONE_REG: u32 = 0x4010_aeac;
const KVM_GET_REG_LIST: u32 = 0xc008_aeb0;
const KVM_CREATE_DEVICE: u32 = 0xc00c_aee0;
const KVM_SET_DEVICE_ATTR: u32 = 0x4018_aee1;
const KVM_GET_DEVICE_ATTR: u32 = 0x4018_aee2;
// include/uapi/linux/if_tun.h
const TUNGETIFF: u32 = 0x8004_54d2;
const TUNSETOFFLOAD: u32 = 0x4004_54d0;
const TUNSETVNETHDRSZ: u32 = 0x4004_54d8;
// include/uapi/asm-generic/ioctls.h
const FIONBIO: u32 = 0x5421;

#[cfg(test)]
mod tests {
    use super::*;

    const KINDS: [Thread; 8] = [
        Thread::Main,
        Thread::Vcpu,
        Thread::Block,
        Thread::Net,
        Thread::Balloon,
        Thread::Vsock,
        Thread::Fs,
        Thread::Log,
    ];

    /// When it may be called by a thread of this kind.
    fn may(kind: Thread, call: c_long) -> Vec<When> {
        CALLS
            .iter()
            .filter(|(c, _, threads)| *c == call && threads.have(kind))
            .map(|(_, when, _)| *when)
            .collect()
    }

    /// Filters are inherited: whatever the one that starts a thread may not, that thread may not either.
    #[test]
    fn a_thread_that_is_started_later_may_nothing_that_the_first_may_not() {
        for (call, when, _) in CALLS {
            for kind in [Thread::Block, Thread::Fs, Thread::Log] {
                let of_first = may(Thread::Main, *call);
                let covered =
                    !may(kind, *call).contains(when) || of_first.contains(when) || of_first.contains(&Always);
                assert!(covered, "{kind:?} may call {call} when {when:?}");
            }
        }
    }

    #[test]
    fn no_list_has_what_a_vmm_has_no_business_with() {
        let never = [
            libc::SYS_openat,
            libc::SYS_openat2,
            libc::SYS_execve,
            libc::SYS_execveat,
            libc::SYS_socket,
            libc::SYS_connect,
            libc::SYS_bind,
            libc::SYS_kill,
            libc::SYS_pidfd_open,
            libc::SYS_ptrace,
            libc::SYS_mount,
            libc::SYS_unshare,
            libc::SYS_setns,
            libc::SYS_bpf,
            libc::SYS_io_uring_setup,
            libc::SYS_userfaultfd,
        ];
        for call in never {
            assert!(may(Thread::SetUp, call).is_empty(), "{call}");
        }
        // These only of one kind, or with arguments.
        for kind in KINDS {
            for call in
                [libc::SYS_mmap, libc::SYS_mprotect, libc::SYS_ioctl, libc::SYS_clone, libc::SYS_tgkill]
            {
                assert!(!may(kind, call).contains(&Always), "{kind:?} may call {call} as it likes");
            }
            assert_eq!(may(kind, libc::SYS_clone).is_empty(), kind != Thread::Main);
            assert_eq!(may(kind, libc::SYS_ioctl).contains(&request(KVM_RUN)), kind == Thread::Vcpu);
            assert!(!may(kind, libc::SYS_ioctl).contains(&request(KVM_SET_USER_MEMORY_REGION)));
        }
    }
}
