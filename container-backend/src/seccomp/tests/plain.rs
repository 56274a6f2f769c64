//! What a profile means, twice: its filter run by an interpreter, and its rules read one after the other.

use std::collections::HashMap;

use libc::{SECCOMP_RET_ACTION_FULL, SECCOMP_RET_ERRNO, SECCOMP_RET_KILL_THREAD};
use oci_spec::runtime::{Arch, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompOperator, LinuxSyscall};

use crate::seccomp::abi::{Abi, Numbers, X32_BIT, multiplexed};

pub(super) type Args = [u64; 6];

/// Runs a filter as the kernel does, and fails on what its checker would refuse.
pub(in crate::seccomp) fn run(filter: &[libc::sock_filter], arch: u32, number: u32, args: Args) -> u32 {
    let mut words = vec![number, arch, 0, 0];
    for arg in args {
        words.extend([(arg & 0xffff_ffff) as u32, (arg >> 32) as u32]);
    }
    let (mut a, mut pc) = (0, 0);
    loop {
        let i = filter[pc];
        pc += 1;
        let jump = |holds: bool| usize::from(if holds { i.jt } else { i.jf });
        match i.code {
            0x20 => a = words[i.k as usize / 4],
            0x54 => a &= i.k,
            0x05 => pc += i.k as usize,
            0x15 => pc += jump(a == i.k),
            0x25 => pc += jump(a > i.k),
            0x35 => pc += jump(a >= i.k),
            0x06 => return i.k,
            code => panic!("opcode {code:#x}"),
        }
    }
}

/// The documented meaning of a profile, one rule after the other.
pub(super) struct Plain<'a> {
    profile: &'a LinuxSeccomp,
    native: Abi,
    /// By architecture and number, in order; with what argument 0 must be where the number stands for several calls.
    rules: HashMap<(u32, u32), Vec<(&'a LinuxSyscall, Through)>>,
    last: HashMap<u8, u32>,
}

/// Mask and value of argument 0.
type Through = Option<(u64, u64)>;

pub(super) const ALL: [(Arch, Abi); 4] = [
    (Arch::ScmpArchX86_64, Abi::X86_64),
    (Arch::ScmpArchX86, Abi::X86),
    (Arch::ScmpArchX32, Abi::X32),
    (Arch::ScmpArchRiscv64, Abi::Riscv64),
];

fn value(action: LinuxSeccompAction, data: Option<u32>) -> u32 {
    match action {
        LinuxSeccompAction::ScmpActKill | LinuxSeccompAction::ScmpActKillThread => 0,
        LinuxSeccompAction::ScmpActKillProcess => 0x8000_0000,
        LinuxSeccompAction::ScmpActTrap => 0x3_0000,
        LinuxSeccompAction::ScmpActErrno => 0x5_0000 | data.unwrap_or(1),
        LinuxSeccompAction::ScmpActTrace => 0x7ff0_0000 | data.unwrap_or(1),
        LinuxSeccompAction::ScmpActLog => 0x7ffc_0000,
        LinuxSeccompAction::ScmpActAllow => 0x7fff_0000,
        LinuxSeccompAction::ScmpActNotify => panic!("no listener"),
    }
}

impl<'a> Plain<'a> {
    pub(super) fn new(profile: &'a LinuxSeccomp, native: Abi) -> Self {
        let mut plain = Self { profile, native, rules: HashMap::new(), last: HashMap::new() };
        for (_, abi) in &ALL {
            if !plain.offers(*abi) {
                continue;
            }
            let table = Numbers::of(*abi);
            for rule in profile.syscalls().as_deref().unwrap_or_default() {
                for name in rule.names() {
                    let mut saw = |number: u32| {
                        let last = plain.last.entry(*abi as u8).or_default();
                        *last = number.max(*last);
                    };
                    if let Some(number) = table.get(name) {
                        saw(number);
                        plain.rules.entry((abi.audit_arch(), number)).or_default().push((rule, None));
                    }
                    let unconditional = rule.args().as_ref().is_none_or(Vec::is_empty);
                    if let Some(m) = multiplexed(*abi, name).filter(|_| unconditional) {
                        let number = table.get(m.by).expect("multiplexer");
                        saw(number);
                        let key = (abi.audit_arch(), number);
                        plain.rules.entry(key).or_default().push((rule, Some((m.mask, m.call))));
                    }
                }
            }
        }
        plain
    }

    fn offers(&self, abi: Abi) -> bool {
        let listed = self.profile.architectures().as_deref().unwrap_or_default();
        let foreign = (abi == Abi::Riscv64) != (self.native == Abi::Riscv64);
        abi == self.native || !foreign && ALL.iter().any(|(arch, a)| *a == abi && listed.contains(arch))
    }

    pub(super) fn answer(&self, arch: u32, number: u32, args: Args) -> u32 {
        let default = value(self.profile.default_action(), self.profile.default_errno_ret());
        let x32 = arch == Abi::X32.audit_arch() && number >= X32_BIT;
        let Some((_, abi)) = ALL.iter().find(|(_, a)| a.audit_arch() == arch && (*a == Abi::X32) == x32)
        else {
            return SECCOMP_RET_KILL_THREAD;
        };
        if !self.offers(*abi) {
            return if x32 && number == u32::MAX && self.offers(Abi::X86_64) {
                default
            } else {
                SECCOMP_RET_KILL_THREAD
            };
        }
        let lenient = default & SECCOMP_RET_ACTION_FULL >= 0x7ff0_0000 && default & 0x8000_0000 == 0;
        if !lenient && self.last.get(&(*abi as u8)).is_some_and(|last| number > *last) {
            return SECCOMP_RET_ERRNO | 38;
        }
        let mut fitting: Vec<&LinuxSyscall> = Vec::new();
        for (rule, through) in self.rules.get(&(arch, number)).into_iter().flatten() {
            let fitted = match through {
                Some((mask, call)) => args[0] & mask == *call,
                None => fits(rule, args, matches!(abi, Abi::X86 | Abi::X32)),
            };
            if fitted {
                fitting.push(rule);
            }
        }
        let actions = fitting.iter().map(|r| value(r.action(), r.errno_ret()));
        actions.min_by_key(|a| (a & SECCOMP_RET_ACTION_FULL) as i32).unwrap_or(default)
    }
}

fn fits(rule: &LinuxSyscall, args: Args, narrow: bool) -> bool {
    let conditions = rule.args().as_deref().unwrap_or_default();
    let mut holds = conditions.iter().map(|c| {
        let low = |v: u64| if narrow { v & 0xffff_ffff } else { v };
        let (arg, wanted) = (low(args[c.index()]), low(c.value()));
        match c.op() {
            LinuxSeccompOperator::ScmpCmpNe => arg != wanted,
            LinuxSeccompOperator::ScmpCmpLt => arg < wanted,
            LinuxSeccompOperator::ScmpCmpLe => arg <= wanted,
            LinuxSeccompOperator::ScmpCmpEq => arg == wanted,
            LinuxSeccompOperator::ScmpCmpGe => arg >= wanted,
            LinuxSeccompOperator::ScmpCmpGt => arg > wanted,
            LinuxSeccompOperator::ScmpCmpMaskedEq => arg & wanted == c.value_two().unwrap_or(0) & wanted,
        }
    });
    let mut indices: Vec<_> = conditions.iter().map(|c| c.index()).collect();
    indices.sort_unstable();
    if indices.windows(2).any(|w| w[0] == w[1]) { holds.any(|h| h) } else { holds.all(|h| h) }
}
