//! Signals, waiting and the descriptor table of the calling process.
#![allow(unsafe_code)]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};

use crate::child::Exit;

/// `_NSIG` of every architecture that we run on; bytes of its signal sets.
pub(super) const SIGNALS: usize = 64;
pub(super) const SIGNAL_SET: usize = SIGNALS / 8;

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Ends the process without running any destructor or exit handler.
pub(crate) fn exit_now(code: i32) -> ! {
    // SAFETY: _exit takes any number and does not return.
    unsafe { libc::_exit(code) }
}

/// Default dispositions and an empty mask: what a fresh program expects. The Rust runtime ignores SIGPIPE, and whoever started
/// us may have ignored anything; both would survive execve. Not by libc, which hides the two signals that it uses itself.
pub(crate) fn reset_signals() {
    // `struct sigaction` of any architecture: a handler (SIG_DFL is 0), flags, maybe a restorer, and a mask.
    let default = [0_u64; 4];
    for signal in 1..=SIGNALS {
        let nowhere = std::ptr::null_mut::<u64>();
        // SAFETY: default is as large as the kernel's struct; the error for SIGKILL and SIGSTOP does not matter.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), nowhere, SIGNAL_SET) };
    }
    let none = 0_u64;
    let nowhere = std::ptr::null_mut::<u64>();
    // SAFETY: the set has the size that is told.
    unsafe {
        libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, &raw const none, nowhere, SIGNAL_SET)
    };
}

/// A soft limit of any process.
pub(crate) fn soft_limit(pid: i32, resource: libc::__rlimit_resource_t) -> io::Result<u64> {
    let mut limit = libc::rlimit64 { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: nothing is set, and limit is of the type that the kernel fills.
    let result = unsafe { libc::prlimit64(pid, resource, std::ptr::null(), &raw mut limit) };
    check(result.into())?;
    Ok(limit.rlim_cur)
}

/// Sends a signal, by number so that real-time signals work too.
pub(crate) fn pidfd_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    let none = std::ptr::null::<libc::siginfo_t>();
    // SAFETY: a null siginfo means the same as kill(2).
    check(unsafe { libc::syscall(libc::SYS_pidfd_send_signal, pidfd.as_raw_fd(), signal, none, 0) }).map(drop)
}

/// Which child to look at.
pub(crate) enum Which<'a> {
    PidFd(BorrowedFd<'a>),
    Pid(i32),
    Any,
}

/// `waitid(2)` for exits, never blocking: the pid and how it ended. `take` reaps it, otherwise it stays a zombie.
pub(crate) fn wait_exit(which: &Which<'_>, take: bool) -> io::Result<Option<(i32, Exit)>> {
    let (kind, id) = match which {
        Which::PidFd(fd) => (libc::P_PIDFD, fd.as_raw_fd() as libc::id_t),
        Which::Pid(pid) => (libc::P_PID, *pid as libc::id_t),
        Which::Any => (libc::P_ALL, 0),
    };
    let mut info = MaybeUninit::<libc::siginfo_t>::zeroed();
    let flags = libc::WEXITED | libc::WNOHANG | if take { 0 } else { libc::WNOWAIT };
    loop {
        // SAFETY: info is a siginfo_t that outlives the call.
        match check(libc::c_long::from(unsafe { libc::waitid(kind, id, info.as_mut_ptr(), flags) })) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
            Ok(_) => break,
        }
    }
    // SAFETY: all-zero is a valid siginfo_t, and waitid has filled it in if a child had exited.
    let info = unsafe { info.assume_init() };
    // SAFETY: waitid fills the SIGCHLD variant of the union, or leaves the zeroes.
    let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
    if pid == 0 {
        return Ok(None);
    }
    let exit = if info.si_code == libc::CLD_EXITED { Exit::Code(status) } else { Exit::Signal(status) };
    Ok(Some((pid, exit)))
}

/// Closes every descriptor but those in `keep`. Only for a process that owns no other descriptor it will still use or
/// drop: a forked child that never returns to its parent's code.
pub(crate) fn close_all_except(keep: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut kept: Vec<RawFd> = keep.iter().map(AsRawFd::as_raw_fd).collect();
    kept.sort_unstable();
    let mut first = 0;
    for fd in kept {
        if fd > first {
            close_range(first, fd - 1, 0)?;
        }
        first = fd + 1;
    }
    close_range(first, RawFd::MAX, 0)
}

/// Marks every descriptor from `first` on close-on-exec.
pub(crate) fn close_on_exec_from(first: RawFd) -> io::Result<()> {
    close_range(first, RawFd::MAX, libc::CLOSE_RANGE_CLOEXEC as i32)
}

fn close_range(first: RawFd, last: RawFd, flags: i32) -> io::Result<()> {
    // SAFETY: closing is sound because of what close_all_except asks of its caller.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) }).map(drop)
}

/// Descriptor 0, 1 or 2, which a child of the agent always has.
pub(crate) fn standard_stream(fd: RawFd) -> BorrowedFd<'static> {
    // SAFETY: the agent is started with all three open, and nothing ever closes them.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

/// For the holder: exited children vanish by themselves (SIGCHLD is ignored), and no signal interrupts anything.
pub(crate) fn ignore_children_and_block_signals() -> io::Result<()> {
    // SAFETY: SIG_IGN is a valid disposition.
    if unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) } == libc::SIG_ERR {
        return Err(io::Error::last_os_error());
    }
    let mut set = MaybeUninit::uninit();
    // SAFETY: sigfillset initialises the set that sigprocmask then reads.
    check(unsafe {
        libc::sigfillset(set.as_mut_ptr());
        libc::c_long::from(libc::sigprocmask(libc::SIG_SETMASK, set.as_ptr(), std::ptr::null_mut()))
    })
    .map(drop)
}
