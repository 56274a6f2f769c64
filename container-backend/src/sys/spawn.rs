//! Starts a program from a process with threads, with exact descriptors and born in a cgroup.
//!
//! What posix_spawn(3) does, by hand, because only the newest C libraries let it choose a cgroup, and moving a running process
//! into one waits for an RCU grace period (7 to 14 ms): `clone3(2)` with CLONE_VM and CLONE_VFORK makes a child that runs on a
//! small stack of its own in our memory while this thread waits. Other threads run on and may hold any lock, so the child makes
//! raw system calls only: no libc, no allocation, no thread-local storage, no panic.
#![allow(unsafe_code)]

use std::ffi::{CString, c_char};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicI32, Ordering};

use super::clone::{CLONE_CLEAR_SIGHAND, CLONE_INTO_CGROUP, CloneArgs};
use super::process::{SIGNAL_SET, SIGNALS, Which, wait_exit};
use super::raw::{self, syscall};

/// What the program gets beside /dev/null as 0 and 1.
pub(crate) struct Descriptors<'a> {
    pub(crate) stderr: BorrowedFd<'a>,
    pub(crate) third: BorrowedFd<'a>,
    pub(crate) fourth: BorrowedFd<'a>,
}

/// Number of descriptors that the program gets. They are put in place one after another, so their sources lie above.
const FDS: usize = 5;
const FIRST_FREE: RawFd = 5;
/// For a few frames without optimisation.
const STACK: usize = 32 * 1024;

/// What the child works from, in memory that it shares with us.
struct Task {
    path: *const c_char,
    argv: *const *const c_char,
    envp: *const *const c_char,
    fds: [RawFd; FDS],
    /// Why it failed; 0 if it did not.
    errno: AtomicI32,
}

fn above_targets(fd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    Ok(rustix::io::fcntl_dupfd_cloexec(fd, FIRST_FREE)?)
}

fn null() -> io::Result<OwnedFd> {
    use rustix::fs::{Mode, OFlags, open};
    use std::os::fd::AsFd as _;

    above_targets(open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?.as_fd())
}

/// Starts the program that `image` is open on, with no arguments, in a session of its own, with default signal dispositions and
/// nothing blocked, in the v2 cgroup whose folder `cgroup` is, or else in the caller's. Its pid and pidfd.
pub(crate) fn spawn(
    image: BorrowedFd<'_>,
    name: &str,
    environment: &[String],
    fds: &Descriptors<'_>,
    cgroup: Option<BorrowedFd<'_>>,
) -> io::Result<(i32, OwnedFd)> {
    let null = null()?;
    let stderr = above_targets(fds.stderr)?;
    let sockets = [above_targets(fds.third)?, above_targets(fds.fourth)?];
    let image = above_targets(image)?;
    let path = CString::new(format!("/proc/self/fd/{}", image.as_raw_fd()))?;
    let name = CString::new(name)?;
    let environment = environment.iter().map(|v| CString::new(v.as_str())).collect::<Result<Vec<_>, _>>()?;
    let argv = [name.as_ptr(), std::ptr::null()];
    let envp: Vec<*const c_char> = environment.iter().map(|v| v.as_ptr()).chain([std::ptr::null()]).collect();
    let task = Task {
        path: path.as_ptr(),
        argv: argv.as_ptr(),
        envp: envp.as_ptr(),
        fds: [&null, &null, &stderr, &sockets[0], &sockets[1]].map(AsRawFd::as_raw_fd),
        errno: AtomicI32::new(0),
    };
    let blocked = BlockedSignals::new();
    let started = start(&task, cgroup);
    drop(blocked);
    let (pid, pidfd) = started?;
    match task.errno.load(Ordering::Relaxed) {
        0 => Ok((pid, pidfd)),
        errno => {
            use std::os::fd::AsFd as _;

            // CLONE_VFORK woke us because it exited, so there is nothing to wait for.
            wait_exit(&Which::PidFd(pidfd.as_fd()), true)?;
            Err(io::Error::from_raw_os_error(errno))
        }
    }
}

fn start(task: &Task, cgroup: Option<BorrowedFd<'_>>) -> io::Result<(i32, OwnedFd)> {
    let mut stack = vec![0_u128; STACK / size_of::<u128>()];
    let mut pidfd: RawFd = -1;
    let mut args = CloneArgs {
        flags: (libc::CLONE_VM | libc::CLONE_VFORK | libc::CLONE_PIDFD) as u64 | CLONE_CLEAR_SIGHAND,
        pidfd: &raw mut pidfd as u64,
        exit_signal: libc::SIGCHLD as u64,
        stack: stack.as_mut_ptr() as u64,
        stack_size: STACK as u64,
        ..CloneArgs::default()
    };
    if let Some(cgroup) = cgroup {
        args.flags |= CLONE_INTO_CGROUP;
        args.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: the child has a stack of its own, which like the task lives until CLONE_VFORK lets this thread go on; it calls
    // `child` with the address of a Task.
    let result = unsafe { raw::clone_onto_stack(&mut args, child, std::ptr::from_ref(task) as usize) };
    #[allow(clippy::cast_possible_truncation)] // a pid or an errno
    match result as i32 {
        e if e < 0 => Err(io::Error::from_raw_os_error(-e)),
        // SAFETY: the kernel has just stored a new descriptor in pidfd, which nothing else owns.
        pid => Ok((pid, unsafe { OwnedFd::from_raw_fd(pidfd) })),
    }
}

/// No handler of ours may run in the child, which shares our memory.
struct BlockedSignals {
    before: u64,
}

impl BlockedSignals {
    fn new() -> Self {
        let (all, mut before) = (u64::MAX, 0);
        // SAFETY: both sets have the size that is told.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigprocmask,
                libc::SIG_SETMASK,
                &raw const all,
                &raw mut before,
                SIGNAL_SET,
            )
        };
        Self { before }
    }
}

impl Drop for BlockedSignals {
    fn drop(&mut self) {
        let nowhere = std::ptr::null_mut::<u64>();
        let before = &raw const self.before;
        // SAFETY: the set has the size that is told.
        unsafe { libc::syscall(libc::SYS_rt_sigprocmask, libc::SIG_SETMASK, before, nowhere, SIGNAL_SET) };
    }
}

/// # Safety
/// `task` is the address of a [`Task`]; this is the child of [`start`].
unsafe extern "C" fn child(task: usize) -> ! {
    // SAFETY: the caller's promise.
    let task = unsafe { &*(task as *const Task) };
    let failed = prepare(task);
    let failed = if failed < 0 { failed } else { execve(task) };
    #[allow(clippy::cast_possible_truncation)] // a negated errno
    task.errno.store(-failed as i32, Ordering::Relaxed);
    loop {
        // SAFETY: ends the child only; it shares memory, not the thread group.
        unsafe { syscall(libc::SYS_exit_group, [127, 0, 0, 0, 0, 0]) };
    }
}

/// 0, or a negated errno.
fn prepare(task: &Task) -> isize {
    // SAFETY: no memory involved.
    unsafe { syscall(libc::SYS_setsid, [0; 6]) };
    let mut target = 0;
    while target < FDS {
        // SAFETY: changes the child's own descriptor table.
        let result = unsafe { syscall(libc::SYS_dup3, [task.fds[target] as usize, target, 0, 0, 0, 0]) };
        if result < 0 {
            return result;
        }
        target += 1;
    }
    let close_on_exec = libc::CLOSE_RANGE_CLOEXEC as usize;
    // SAFETY: as above; the image stays open until execve.
    let marked = unsafe { syscall(libc::SYS_close_range, [FDS, u32::MAX as usize, close_on_exec, 0, 0, 0]) };
    if marked < 0 {
        return marked;
    }
    // Handlers are gone by CLONE_CLEAR_SIGHAND; what is ignored stays ignored unless it is reset.
    let default = [0_u64; 4];
    let mut signal = 1;
    while signal <= SIGNALS {
        // SAFETY: default is as large as the kernel's struct; the error for SIGKILL and SIGSTOP does not matter.
        unsafe {
            syscall(libc::SYS_rt_sigaction, [signal, &raw const default as usize, 0, SIGNAL_SET, 0, 0])
        };
        signal += 1;
    }
    let none = 0_u64;
    let set = libc::SIG_SETMASK as usize;
    // SAFETY: the set has the size that is told.
    unsafe { syscall(libc::SYS_rt_sigprocmask, [set, &raw const none as usize, 0, SIGNAL_SET, 0, 0]) }
}

fn execve(task: &Task) -> isize {
    let (path, argv, envp) = (task.path as usize, task.argv as usize, task.envp as usize);
    // SAFETY: a C string and two terminated tables that outlive the child.
    unsafe { syscall(libc::SYS_execve, [path, argv, envp, 0, 0, 0]) }
}
