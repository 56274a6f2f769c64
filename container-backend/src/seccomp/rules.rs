//! An OCI seccomp profile, checked and cut down to what decides a call: per number, a list of checks.

use oci_spec::runtime::{
    LinuxSeccomp, LinuxSeccompAction as OciAction, LinuxSeccompArg, LinuxSeccompOperator as Operator,
    LinuxSyscall,
};

use super::abi::{Abi, Numbers, multiplexed};

/// A system call has six arguments.
pub(super) const ARGS: usize = 6;

/// The highest errno that a filter can return (MAX_ERRNO).
const ERRNO_MAX: u32 = 4095;

/// More checks than a profile within the kernel's 4096 instructions can hold, duplicates allowed for. A rule with many names and
/// many values multiplies them: this keeps a small file from filling the memory.
const CHECKS_MAX: usize = 100_000;

/// Why a profile cannot be had.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProfileError {
    #[error("argument index {0} of a seccomp rule is not below 6")]
    ArgumentIndex(usize),
    #[error("errno {0} of a seccomp rule is above 4095")]
    Errno(u32),
    #[error("a seccomp rule has an empty syscall name")]
    EmptyName,
    #[error("seccomp action SCMP_ACT_NOTIFY is not supported: there is no listener")]
    Notify,
    #[error("the seccomp profile has more than {limit} combinations of a syscall and a condition")]
    TooManyChecks { limit: usize },
    #[error("the seccomp profile needs {instructions} instructions; the kernel takes {limit}")]
    TooLarge { instructions: usize, limit: usize },
}

/// What a filter returns (linux/seccomp.h).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Action(pub(super) u32);

impl Action {
    pub(super) const KILL_THREAD: Self = Self(libc::SECCOMP_RET_KILL_THREAD);
    pub(super) const ENOSYS: Self = Self(libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32);

    /// Trace may carry any 16 bits, errno only errnos, others nothing: as runc, a stray value is no error.
    fn from_oci(action: OciAction, data: Option<u32>) -> Result<Self, ProfileError> {
        // As in runc and crun, where the profile names none.
        let data = data.unwrap_or(libc::EPERM as u32);
        Ok(Self(match action {
            OciAction::ScmpActKill | OciAction::ScmpActKillThread => libc::SECCOMP_RET_KILL_THREAD,
            OciAction::ScmpActKillProcess => libc::SECCOMP_RET_KILL_PROCESS,
            OciAction::ScmpActTrap => libc::SECCOMP_RET_TRAP,
            OciAction::ScmpActErrno if data > ERRNO_MAX => return Err(ProfileError::Errno(data)),
            OciAction::ScmpActErrno => libc::SECCOMP_RET_ERRNO | data,
            OciAction::ScmpActNotify => return Err(ProfileError::Notify),
            OciAction::ScmpActTrace => libc::SECCOMP_RET_TRACE | data & libc::SECCOMP_RET_DATA,
            OciAction::ScmpActLog => libc::SECCOMP_RET_LOG,
            OciAction::ScmpActAllow => libc::SECCOMP_RET_ALLOW,
        }))
    }

    /// The kernel's order among several filters' answers: the lowest signed action wins.
    fn severity(self) -> i32 {
        (self.0 & libc::SECCOMP_RET_ACTION_FULL) as i32
    }

    /// Whether the call still reaches the kernel, or a tracer that decides for itself.
    fn lets_through(self) -> bool {
        self.severity() >= libc::SECCOMP_RET_TRACE as i32
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
    MaskedEqual { mask: u64 },
}

/// One condition on one argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Condition {
    /// Below [`ARGS`].
    pub(super) argument: usize,
    pub(super) comparison: Comparison,
    pub(super) value: u64,
    /// Only the lower halves of argument, value and mask count.
    pub(super) narrow: bool,
}

impl Condition {
    fn from_oci(arg: &LinuxSeccompArg) -> Result<Self, ProfileError> {
        if arg.index() >= ARGS {
            return Err(ProfileError::ArgumentIndex(arg.index()));
        }
        let (comparison, value) = match arg.op() {
            Operator::ScmpCmpNe => (Comparison::NotEqual, arg.value()),
            Operator::ScmpCmpLt => (Comparison::Less, arg.value()),
            Operator::ScmpCmpLe => (Comparison::LessOrEqual, arg.value()),
            Operator::ScmpCmpEq => (Comparison::Equal, arg.value()),
            Operator::ScmpCmpGe => (Comparison::GreaterOrEqual, arg.value()),
            Operator::ScmpCmpGt => (Comparison::Greater, arg.value()),
            // Bits of the wanted value outside of the mask could never match; libseccomp drops them.
            Operator::ScmpCmpMaskedEq => {
                let mask = arg.value();
                (Comparison::MaskedEqual { mask }, arg.value_two().unwrap_or(0) & mask)
            }
        };
        Ok(Self { argument: arg.index(), comparison, value, narrow: false })
    }
}

/// If all conditions hold, the action.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Check {
    pub(super) conditions: Vec<Condition>,
    pub(super) action: Action,
}

struct Rule<'a> {
    names: &'a [String],
    /// Each stands for a rule of its own; one without conditions always holds.
    alternatives: Vec<Vec<Condition>>,
    action: Action,
}

impl<'a> Rule<'a> {
    fn from_oci(syscall: &'a LinuxSyscall) -> Result<Self, ProfileError> {
        if syscall.names().iter().any(String::is_empty) {
            return Err(ProfileError::EmptyName);
        }
        let args = syscall.args().as_deref().unwrap_or_default();
        let conditions = args.iter().map(Condition::from_oci).collect::<Result<Vec<_>, _>>()?;
        let repeated = conditions
            .iter()
            .enumerate()
            .any(|(i, c)| conditions.iter().take(i).any(|before| before.argument == c.argument));
        // Docker's first profiles listed values of one argument to mean any of them; runc still reads them so.
        let alternatives =
            if repeated { conditions.into_iter().map(|c| vec![c]).collect() } else { vec![conditions] };
        Ok(Self {
            names: syscall.names(),
            alternatives,
            action: Action::from_oci(syscall.action(), syscall.errno_ret())?,
        })
    }
}

/// A profile whose every rule makes sense.
pub(super) struct Rules<'a> {
    pub(super) default: Action,
    rules: Vec<Rule<'a>>,
}

/// The checks of one interface with their numbers, in ascending order; those of one number in the order in which they decide.
pub(super) struct Decided(Vec<(u32, Check)>);

impl Decided {
    /// The highest number that the profile names.
    pub(super) fn last(&self) -> Option<u32> {
        self.0.last().map(|(number, _)| *number)
    }

    /// Each number with its checks, up to the first that always holds.
    pub(super) fn by_number(&self) -> impl Iterator<Item = (u32, &[(u32, Check)])> {
        self.0.chunk_by(|a, b| a.0 == b.0).filter_map(|checks| {
            let certain = checks.iter().position(|(_, check)| check.conditions.is_empty());
            let (number, _) = checks.first()?;
            Some((*number, certain.map_or(checks, |at| checks.get(..=at).unwrap_or(checks))))
        })
    }
}

impl<'a> Rules<'a> {
    pub(super) fn from_oci(profile: &'a LinuxSeccomp) -> Result<Self, ProfileError> {
        let default = Action::from_oci(profile.default_action(), profile.default_errno_ret())?;
        let syscalls = profile.syscalls().as_deref().unwrap_or_default();
        let rules = syscalls.iter().map(Rule::from_oci).collect::<Result<_, _>>()?;
        Ok(Self { default, rules })
    }

    /// Calls newer than what the profile's author knew get ENOSYS instead of the default action, so that a libc falls back to
    /// an older call rather than taking EPERM for an answer. As in runc, not where the default lets calls through.
    pub(super) fn hides_newer_calls(&self) -> bool {
        !self.default.lets_through()
    }

    /// What the profile says of every number of one interface. Names it does not have are skipped.
    ///
    /// Of several checks that hold, the most restrictive action wins, whatever the order: the kernel's own rule for several
    /// filters. (libseccomp lets an unconditional rule hide conditional ones, so that a refused argument is allowed after
    /// all.) Checks are therefore sorted by severity, and end with the first that always holds.
    pub(super) fn decide(&self, abi: Abi) -> Result<Decided, ProfileError> {
        let numbers = Numbers::of(abi);
        let mut checks: Vec<(u32, Check)> = Vec::new();
        for rule in &self.rules {
            for name in rule.names {
                if checks.len() > CHECKS_MAX {
                    return Err(ProfileError::TooManyChecks { limit: CHECKS_MAX });
                }
                if let Some(number) = numbers.get(name) {
                    checks.extend(rule.checks(abi).map(|check| (number, check)));
                }
                let Some(multiplexed) = multiplexed(abi, name) else { continue };
                // Their arguments are in memory, out of a filter's sight: a rule about them cannot hold here.
                if rule.alternatives.iter().all(Vec::is_empty) {
                    let condition = Condition {
                        argument: 0,
                        comparison: Comparison::MaskedEqual { mask: multiplexed.mask },
                        value: multiplexed.call,
                        narrow: true,
                    };
                    let check = Check { conditions: vec![condition], action: rule.action };
                    checks.extend(numbers.get(multiplexed.by).map(|number| (number, check)));
                }
            }
        }
        // Stable: of equally severe checks the profile's first decides.
        checks.sort_by_key(|(number, check)| (*number, check.action.severity()));
        Ok(Decided(checks))
    }
}

impl Rule<'_> {
    fn checks(&self, abi: Abi) -> impl Iterator<Item = Check> + '_ {
        self.alternatives.iter().map(move |conditions| {
            let conditions = conditions.iter().map(|c| Condition { narrow: abi.is_32_bit(), ..*c });
            Check { conditions: conditions.collect(), action: self.action }
        })
    }
}
