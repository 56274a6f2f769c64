//! The filters of threads, made of the list in `calls`.
//!
//! A thread inherits the filters of the one that starts it and adds its own; a call must pass all of them. What one of them does not let pass
//! ends the process at once (SIGSYS), and the kernel's log names the call (`type=1326 .. syscall=N`).

use std::collections::BTreeMap;
use std::io;
use std::sync::mpsc;
use std::thread::{Builder, JoinHandle};

use rustix::process::getpid;
use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen as Len, SeccompCmpOp as Op, SeccompCondition,
    SeccompFilter, SeccompRule, apply_filter,
};

use super::calls::{CALLS, When};
use super::file_server::FILE_SERVER;
use super::{At as _, JailError};

/// What a thread of the VMM is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Thread {
    /// The first one, while it makes the VM: it may do what any of them may.
    SetUp,
    /// The first one from then on: requests of the daemon. It starts threads of disks and logs, so it may do what they may.
    Main,
    Vcpu,
    Block,
    Net,
    Balloon,
    Vsock,
    /// Volumes.
    Fs,
    /// Writes containers' logs.
    Log,
}

impl Thread {
    /// As it shows in /proc; Linux cuts it to 15 bytes.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::SetUp | Self::Main => "hartpod-vmm",
            Self::Vcpu => "vcpu",
            Self::Block => "blk",
            Self::Net => "net",
            Self::Balloon => "balloon",
            Self::Vsock => "vsock",
            Self::Fs => "fs",
            Self::Log => "log",
        }
    }
}

/// Takes from this thread, and from those that it starts, all system calls but those of its kind. A process begins with
/// [`Thread::SetUp`].
///
/// # Errors
/// The kernel has no seccomp, or no memory for a filter.
pub fn confine(kind: Thread) -> Result<(), JailError> {
    // Sanitizers have needs of their own.
    if cfg!(feature = "fuzz") {
        return Ok(());
    }
    if kind == Thread::SetUp {
        apply(&without_clone3()?)?;
    }
    apply(&filter(kind)?)
}

/// Starts a thread, and returns once it is confined.
///
/// # Errors
/// There can be no more threads, or it could not be confined; `body` has not begun then.
pub fn start_thread(
    kind: Thread,
    thread: Builder,
    body: impl FnOnce() + Send + 'static,
) -> Result<JoinHandle<()>, JailError> {
    look_up_once();
    let (sender, confined) = mpsc::sync_channel(1);
    let thread = thread.spawn(move || {
        let result = confine(kind);
        let begin = result.is_ok();
        // The one that starts it waits for it.
        let _ = sender.send(result);
        drop(sender);
        if begin {
            body();
        }
    });
    let thread = thread.at("start a thread")?;
    let ended = |_| Err(io::Error::from(io::ErrorKind::BrokenPipe)).at("start a thread");
    confined.recv().unwrap_or_else(ended)?;
    Ok(thread)
}

/// The flags that glibc and musl start threads with.
const NEW_THREAD: u64 = (libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD
    | libc::CLONE_SYSVSEM
    | libc::CLONE_SETTLS
    | libc::CLONE_PARENT_SETTID
    | libc::CLONE_CHILD_CLEARTID) as u64;

/// What crates look up when they first need it, and by calls that no list has: rustix the page's size, of the auxiliary vector, on older kernels
/// from /proc.
pub(super) fn look_up_once() {
    let _ = rustix::param::page_size();
}

fn apply(program: &BpfProgram) -> Result<(), JailError> {
    apply_filter(program).map_err(io::Error::other).at("install a seccomp filter")
}

/// As [`confine`], for the file server, all of whose threads do the same.
pub(super) fn confine_file_server() -> Result<(), JailError> {
    apply(&without_clone3()?)?;
    apply(&filter_of(FILE_SERVER.iter().map(|(call, when)| (*call, *when)))?)
}

/// The filter of a kind of thread.
fn filter(kind: Thread) -> Result<BpfProgram, JailError> {
    let its = CALLS.iter().filter(|(_, _, threads)| threads.have(kind));
    filter_of(its.map(|(call, when, _)| (*call, *when)))
}

fn filter_of(calls: impl Iterator<Item = (libc::c_long, When)>) -> Result<BpfProgram, JailError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = BTreeMap::new();
    let mut always = Vec::new();
    for (call, when) in calls {
        let of_call = rules.entry(call).or_default();
        match conditions(when) {
            None => always.push(call),
            Some(conditions) => {
                of_call.push(rule(conditions).map_err(io::Error::other).at("make a seccomp filter")?)
            }
        }
    }
    // No rule means no condition.
    for call in always {
        rules.insert(call, Vec::new());
    }
    compile(rules, SeccompAction::KillProcess, SeccompAction::Allow)
}

/// Makes clone3(2) fail as in kernels without it, so that the C library falls back to clone(2): only there a filter can see the flags, which
/// tell a thread from a process.
fn without_clone3() -> Result<BpfProgram, JailError> {
    let missing = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    compile(BTreeMap::from([(libc::SYS_clone3, Vec::new())]), SeccompAction::Allow, missing)
}

fn compile(
    rules: BTreeMap<i64, Vec<SeccompRule>>,
    otherwise: SeccompAction,
    matched: SeccompAction,
) -> Result<BpfProgram, JailError> {
    let arch = std::env::consts::ARCH.try_into();
    arch.and_then(|arch| SeccompFilter::new(rules, otherwise, matched, arch))
        .and_then(BpfProgram::try_from)
        .map_err(io::Error::other)
        .at("make a seccomp filter")
}

/// A rule of which all conditions must hold.
fn rule(conditions: Vec<Result<SeccompCondition, BackendError>>) -> Result<SeccompRule, BackendError> {
    SeccompRule::new(conditions.into_iter().collect::<Result<_, _>>()?)
}

/// `None` where there are none.
fn conditions(when: When) -> Option<Vec<Result<SeccompCondition, BackendError>>> {
    let equal = |argument, value: u64| SeccompCondition::new(argument, Len::Dword, Op::Eq, value);
    let masked =
        |argument, mask, value: u64| SeccompCondition::new(argument, Len::Qword, Op::MaskedEq(mask), value);
    let (exec, anonymous) =
        (u64::from(libc::PROT_EXEC.unsigned_abs()), u64::from(libc::MAP_ANONYMOUS.unsigned_abs()));
    Some(match when {
        When::Always => return None,
        When::Arg(argument, value) => vec![equal(argument, value.into())],
        When::Both((one, value), (other, other_value)) => {
            vec![equal(one, value.into()), equal(other, other_value.into())]
        }
        When::NoExec => vec![masked(2, exec, 0)],
        When::NewMemory => vec![masked(2, exec, 0), masked(3, anonymous, anonymous)],
        When::OwnThread(signal) => {
            vec![
                equal(0, getpid().as_raw_nonzero().get().unsigned_abs().into()),
                equal(2, signal.unsigned_abs().into()),
            ]
        }
        When::NewThread => vec![SeccompCondition::new(0, Len::Qword, Op::Eq, NEW_THREAD)],
    })
}
