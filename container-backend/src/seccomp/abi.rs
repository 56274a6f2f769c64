//! The system call interfaces that a kernel of this machine offers, and the numbers that names have there.

use oci_spec::runtime::Arch;

/// Set in the number of every x32 call (`__X32_SYSCALL_BIT`).
pub(super) const X32_BIT: u32 = 0x4000_0000;

/// One system call interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Abi {
    X86_64,
    /// The 32-bit interface of an x86_64 kernel.
    X86,
    /// 32-bit pointers in 64-bit mode: shares x86_64's architecture value, marks its numbers.
    X32,
    Riscv64,
}

impl Abi {
    /// The interface of 64-bit programs here.
    #[cfg(target_arch = "x86_64")]
    pub(super) const NATIVE: Self = Self::X86_64;
    #[cfg(target_arch = "riscv64")]
    pub(super) const NATIVE: Self = Self::Riscv64;

    /// What `seccomp_data.arch` holds (linux/audit.h).
    pub(super) fn audit_arch(self) -> u32 {
        match self {
            Self::X86_64 | Self::X32 => 0xc000_003e,
            Self::X86 => 0x4000_0003,
            Self::Riscv64 => 0xc000_00f3,
        }
    }

    /// Arguments are 32 bits wide: the upper halves are no part of them.
    pub(super) fn is_32_bit(self) -> bool {
        matches!(self, Self::X86 | Self::X32)
    }

    /// The interface that a profile means, if the kernel of a machine with `native` programs has it. Others are dropped: no
    /// call can come by them.
    pub(super) fn from_oci(arch: Arch, native: Self) -> Option<Self> {
        match (arch, native) {
            (Arch::ScmpArchNative, _) => Some(native),
            (Arch::ScmpArchX86_64, Self::X86_64) => Some(Self::X86_64),
            (Arch::ScmpArchX86, Self::X86_64) => Some(Self::X86),
            (Arch::ScmpArchX32, Self::X86_64) => Some(Self::X32),
            (Arch::ScmpArchRiscv64, Self::Riscv64) => Some(Self::Riscv64),
            _ => None,
        }
    }
}

/// Calls that the `syscalls` crate does not know, with the same number everywhere. From the kernel's
/// scripts/syscall.tbl as of 7.1.
const NEWER: [(&str, u32); 10] = [
    ("mseal", 462),
    ("setxattrat", 463),
    ("getxattrat", 464),
    ("listxattrat", 465),
    ("removexattrat", 466),
    ("open_tree_attr", 467),
    ("file_getattr", 468),
    ("file_setattr", 469),
    ("listns", 470),
    ("rseq_slice_yield", 471),
];

/// From arch/x86/entry/syscalls/syscall_64.tbl.
#[cfg(any(target_arch = "x86_64", test))]
const X86_64_MORE: [(&str, u32); 2] = [("uretprobe", 335), ("uprobe", 336)];

/// The crate has 79 as `fstatat` and 84 as `sync_file_range2`, which are the names of other architectures: a profile that allows
/// `newfstatat` would keep every libc here from calling stat.
#[cfg(any(target_arch = "riscv64", test))]
const RISCV64_MORE: [(&str, u32); 2] = [("newfstatat", 79), ("sync_file_range", 84)];

/// Calls with an x32 entry of their own (syscall_64.tbl, abi `x32`). The rest have x86_64's number.
#[cfg(any(target_arch = "x86_64", test))]
const X32_OWN: [(&str, u32); 36] = [
    ("rt_sigaction", 512),
    ("rt_sigreturn", 513),
    ("ioctl", 514),
    ("readv", 515),
    ("writev", 516),
    ("recvfrom", 517),
    ("sendmsg", 518),
    ("recvmsg", 519),
    ("execve", 520),
    ("ptrace", 521),
    ("rt_sigpending", 522),
    ("rt_sigtimedwait", 523),
    ("rt_sigqueueinfo", 524),
    ("sigaltstack", 525),
    ("timer_create", 526),
    ("mq_notify", 527),
    ("kexec_load", 528),
    ("waitid", 529),
    ("set_robust_list", 530),
    ("get_robust_list", 531),
    ("vmsplice", 532),
    ("move_pages", 533),
    ("preadv", 534),
    ("pwritev", 535),
    ("rt_tgsigqueueinfo", 536),
    ("recvmmsg", 537),
    ("sendmmsg", 538),
    ("process_vm_readv", 539),
    ("process_vm_writev", 540),
    ("setsockopt", 541),
    ("getsockopt", 542),
    ("io_setup", 543),
    ("io_submit", 544),
    ("execveat", 545),
    ("preadv2", 546),
    ("pwritev2", 547),
];

/// x86_64 calls that x32 has under no number (abi `64` without an `x32` twin).
#[cfg(any(target_arch = "x86_64", test))]
const X32_NOT: [&str; 11] = [
    "_sysctl",
    "create_module",
    "epoll_ctl_old",
    "epoll_wait_old",
    "get_kernel_syms",
    "get_thread_area",
    "nfsservctl",
    "query_module",
    "set_thread_area",
    "uselib",
    "vserver",
];

/// Names and numbers of one interface, made for one compilation: kept, they would cost every pod agent some pages.
#[derive(Debug)]
pub(super) struct Numbers {
    sorted: Vec<(&'static str, u32)>,
}

impl Numbers {
    pub(super) fn of(abi: Abi) -> Self {
        let mut sorted: Vec<(&'static str, u32)> = NEWER.to_vec();
        match abi {
            #[cfg(any(target_arch = "x86_64", test))]
            Abi::X86_64 | Abi::X32 => {
                use syscalls::x86_64::Sysno;
                sorted.extend(known(Sysno::last().id(), |id| Sysno::new(id).map(|s| s.name())));
                sorted.extend(X86_64_MORE);
            }
            #[cfg(any(target_arch = "x86_64", test))]
            Abi::X86 => {
                use syscalls::x86::Sysno;
                sorted.extend(known(Sysno::last().id(), |id| Sysno::new(id).map(|s| s.name())));
            }
            #[cfg(any(target_arch = "riscv64", test))]
            Abi::Riscv64 => {
                use syscalls::riscv64::Sysno;
                sorted.extend(known(Sysno::last().id(), |id| Sysno::new(id).map(|s| s.name())));
                sorted.extend(RISCV64_MORE);
            }
            // An interface of another machine, which `Abi::from_oci` never gives.
            #[cfg(not(test))]
            _ => {}
        }
        #[cfg(any(target_arch = "x86_64", test))]
        if abi == Abi::X32 {
            sorted.retain(|(name, _)| !X32_NOT.contains(name) && !X32_OWN.iter().any(|(own, _)| own == name));
            sorted.extend(X32_OWN);
            for (_, number) in &mut sorted {
                *number |= X32_BIT;
            }
        }
        sorted.sort_unstable();
        Self { sorted }
    }

    /// The number of a call, if this interface has it.
    pub(super) fn get(&self, name: &str) -> Option<u32> {
        let at = self.sorted.binary_search_by(|(known, _)| (*known).cmp(name)).ok()?;
        self.sorted.get(at).map(|(_, number)| *number)
    }
}

fn known(
    last: i32,
    name: impl Fn(usize) -> Option<&'static str>,
) -> impl Iterator<Item = (&'static str, u32)> {
    (0..=u32::try_from(last).unwrap_or(0)).filter_map(move |id| Some((name(id as usize)?, id)))
}

/// 32-bit x86 has the socket and System V IPC calls a second time, behind one number each with the call in argument 0
/// (linux/net.h, linux/ipc.h). IPC keeps a version in that argument's upper half.
pub(super) struct Multiplexed {
    pub(super) by: &'static str,
    pub(super) mask: u64,
    pub(super) call: u64,
}

pub(super) fn multiplexed(abi: Abi, name: &str) -> Option<Multiplexed> {
    if abi != Abi::X86 {
        return None;
    }
    let socketcall = |call| Some(Multiplexed { by: "socketcall", mask: 0xffff_ffff, call });
    let ipc = |call| Some(Multiplexed { by: "ipc", mask: 0xffff, call });
    match name {
        "socket" => socketcall(1),
        "bind" => socketcall(2),
        "connect" => socketcall(3),
        "listen" => socketcall(4),
        "accept" => socketcall(5),
        "getsockname" => socketcall(6),
        "getpeername" => socketcall(7),
        "socketpair" => socketcall(8),
        "send" => socketcall(9),
        "recv" => socketcall(10),
        "sendto" => socketcall(11),
        "recvfrom" => socketcall(12),
        "shutdown" => socketcall(13),
        "setsockopt" => socketcall(14),
        "getsockopt" => socketcall(15),
        "sendmsg" => socketcall(16),
        "recvmsg" => socketcall(17),
        "accept4" => socketcall(18),
        "recvmmsg" => socketcall(19),
        "sendmmsg" => socketcall(20),
        "semop" => ipc(1),
        "semget" => ipc(2),
        "semctl" => ipc(3),
        "semtimedop" => ipc(4),
        "msgsnd" => ipc(11),
        "msgrcv" => ipc(12),
        "msgget" => ipc(13),
        "msgctl" => ipc(14),
        "shmat" => ipc(21),
        "shmdt" => ipc(22),
        "shmget" => ipc(23),
        "shmctl" => ipc(24),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_kernels_tables() {
        for (abi, name, number) in [
            (Abi::X86_64, "read", Some(0)),
            (Abi::X86_64, "lsm_list_modules", Some(461)),
            (Abi::X86_64, "uretprobe", Some(335)),
            (Abi::X86_64, "mseal", Some(462)),
            (Abi::X86_64, "socketcall", None),
            (Abi::X86, "socketcall", Some(102)),
            (Abi::X86, "clone3", Some(435)),
            (Abi::X86, "arch_prctl", Some(384)),
            (Abi::X32, "read", Some(X32_BIT)),
            (Abi::X32, "execve", Some(X32_BIT | 520)),
            (Abi::X32, "uselib", None),
            (Abi::X32, "clone3", Some(X32_BIT | 435)),
            (Abi::Riscv64, "newfstatat", Some(79)),
            (Abi::Riscv64, "sync_file_range", Some(84)),
            (Abi::Riscv64, "riscv_flush_icache", Some(259)),
            (Abi::Riscv64, "riscv_hwprobe", Some(258)),
            (Abi::Riscv64, "open", None),
        ] {
            assert_eq!(Numbers::of(abi).get(name), number, "{name} of {abi:?}");
        }
    }

    /// The crate must not come to know a call under another number than our tables.
    #[test]
    fn no_name_has_two_numbers() {
        for abi in [Abi::X86_64, Abi::X86, Abi::X32, Abi::Riscv64] {
            let numbers = Numbers::of(abi);
            for pair in numbers.sorted.windows(2) {
                assert!(pair[0].0 != pair[1].0, "{pair:?} of {abi:?}");
            }
        }
    }

    #[test]
    fn multiplexed_calls_exist_on_32_bit_x86_alone() {
        for (name, by, call) in [
            ("socket", "socketcall", 1),
            ("bind", "socketcall", 2),
            ("recv", "socketcall", 10),
            ("sendmmsg", "socketcall", 20),
            ("semop", "ipc", 1),
            ("msgctl", "ipc", 14),
            ("shmat", "ipc", 21),
            ("shmget", "ipc", 23),
            ("shmctl", "ipc", 24),
        ] {
            let found = multiplexed(Abi::X86, name).expect(name);
            assert_eq!((found.by, found.call), (by, call), "{name}");
        }
        assert!(multiplexed(Abi::X86_64, "bind").is_none() && multiplexed(Abi::X86, "read").is_none());
    }
}
