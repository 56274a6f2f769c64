//! A filter ready to load.

use std::fmt;
use std::io;

use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompFilterFlag as Flag};

use super::abi::{Abi, X32_BIT};
use super::code::{Code, Decision, Label, Range};
use super::rules::{Action, Decided, ProfileError, Rules};
use super::sys;

/// BPF_MAXINSNS (linux/bpf_common.h).
const INSTRUCTIONS_MAX: usize = 4096;

/// A compiled seccomp profile.
#[derive(Clone)]
pub struct Program {
    filter: Vec<libc::sock_filter>,
    flags: u32,
}

impl fmt::Debug for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Program")
            .field("instructions", &self.filter.len())
            .field("flags", &self.flags)
            .finish()
    }
}

impl Program {
    /// Compiles a profile for this machine's kernel.
    ///
    /// The native interface is always part of it, others where `architectures` names them; a call by one that is not gets its
    /// thread killed, as with libseccomp. Architectures of other machines and names that an interface does not have are
    /// skipped. Where several rules fit a call the most restrictive wins. A rule with two conditions on one argument means
    /// either. Unless the default action lets calls through, those newer than the newest that the profile names get ENOSYS.
    ///
    /// # Errors
    /// When the profile makes no sense, asks for a listener, or is larger than what the kernel takes.
    pub fn compile(profile: &LinuxSeccomp) -> Result<Self, ProfileError> {
        Self::compile_for(profile, Abi::NATIVE)
    }

    pub(super) fn compile_for(profile: &LinuxSeccomp, native: Abi) -> Result<Self, ProfileError> {
        let rules = Rules::from_oci(profile)?;
        let listed = profile.architectures().as_deref().unwrap_or_default();
        let mut abis = vec![native];
        for abi in listed.iter().filter_map(|arch| Abi::from_oci(*arch, native)) {
            if !abis.contains(&abi) {
                abis.push(abi);
            }
        }
        let filter = assemble(&rules, &abis)?;
        if filter.len() > INSTRUCTIONS_MAX {
            return Err(ProfileError::TooLarge { instructions: filter.len(), limit: INSTRUCTIONS_MAX });
        }
        Ok(Self { filter, flags: flags(profile) })
    }

    /// Puts the filter on the calling thread, for good. Makes one system call, allocates nothing, and touches nothing but the
    /// filter itself: no errno, no thread-local storage.
    ///
    /// # Errors
    /// EACCES without CAP_SYS_ADMIN in the thread's user namespace and without no_new_privs.
    pub fn load(&self) -> io::Result<()> {
        sys::load(&self.filter, self.flags)
    }

    /// The instructions, for a caller that loads them out of memory of its own.
    #[must_use]
    pub fn filter(&self) -> &[libc::sock_filter] {
        &self.filter
    }

    /// Flags for SECCOMP_SET_MODE_FILTER.
    #[must_use]
    pub fn flags(&self) -> u32 {
        self.flags
    }
}

/// Written back to front: the interfaces first, then the choice between them.
fn assemble(rules: &Rules<'_>, abis: &[Abi]) -> Result<Vec<libc::sock_filter>, ProfileError> {
    let mut code = Code::default();
    let mut entries: Vec<(u32, Label)> = Vec::new();
    // x32 has no architecture value of its own: x86_64's search covers it.
    for abi in abis.iter().rev().filter(|abi| **abi != Abi::X32) {
        let mut ranges = Ranges::default();
        match abi {
            Abi::X86_64 => {
                ranges.interface(rules, &rules.decide(Abi::X86_64)?, 0);
                if abis.contains(&Abi::X32) {
                    ranges.interface(rules, &rules.decide(Abi::X32)?, X32_BIT);
                } else {
                    ranges.from(X32_BIT, Decision::Return(Action::KILL_THREAD));
                    // A tracer skips a call by making its number -1, which must not kill.
                    ranges.from(u32::MAX, Decision::Return(rules.default));
                }
            }
            other => ranges.interface(rules, &rules.decide(*other)?, 0),
        }
        let search = code.search(&ranges.0);
        entries.push((abi.audit_arch(), code.load_number(search)));
    }
    let mut next = code.decide(&Decision::Return(Action::KILL_THREAD));
    for (arch, entry) in entries {
        next = code.jump_equal(arch, entry, next);
    }
    code.load_arch(next);
    Ok(code.finish())
}

/// Ranges in ascending order, without neighbours that decide the same.
#[derive(Default)]
struct Ranges(Vec<Range>);

impl Ranges {
    /// All numbers from `start` on, as far as one interface's go.
    fn interface(&mut self, rules: &Rules<'_>, decided: &Decided, start: u32) {
        self.from(start, Decision::Return(rules.default));
        for (number, checks) in decided.by_number() {
            let decision = match checks {
                [(_, only)] if only.conditions.is_empty() => Decision::Return(only.action),
                _ => Decision::Checks(checks.iter().map(|(_, c)| c.clone()).collect(), rules.default),
            };
            self.from(number, decision);
            self.from(number.saturating_add(1), Decision::Return(rules.default));
        }
        if let Some(last) = decided.last().filter(|_| rules.hides_newer_calls()) {
            self.from(last.saturating_add(1), Decision::Return(Action::ENOSYS));
        }
    }

    /// What holds from `start` on, replacing what was said of `start` before.
    fn from(&mut self, start: u32, decision: Decision) {
        if self.0.last().is_some_and(|last| last.start == start) {
            self.0.pop();
        }
        if self.0.last().is_none_or(|last| last.decision != decision) {
            self.0.push(Range { start, decision });
        }
    }
}

/// Without `flags`, runc asks for SPEC_ALLOW: otherwise kernels before 5.16 slow the process down against speculative store
/// bypass. TSYNC means nothing to a process of one thread, and WAIT_KILLABLE_RECV nothing without a listener.
fn flags(profile: &LinuxSeccomp) -> u32 {
    let Some(flags) = profile.flags() else { return sys::SPEC_ALLOW };
    flags.iter().fold(0, |all, flag| {
        all | match flag {
            Flag::SeccompFilterFlagLog => sys::LOG,
            Flag::SeccompFilterFlagSpecAllow => sys::SPEC_ALLOW,
            Flag::SeccompFilterFlagTsync | Flag::SeccompFilterFlagWaitKillableRecv => 0,
        }
    })
}
