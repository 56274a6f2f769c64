//! A child that does nothing but be in new namespaces until their descriptors are open.
//!
//! For a process with threads too: the child shares our memory but no stack, and makes raw system calls only, as in [`super::spawn`].
//! It waits for the end of a pipe that only we write to, so it goes with us, whatever becomes of us.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};

use rustix::pipe::{PipeFlags, pipe_with};

use super::clone::{CLONE_CLEAR_SIGHAND, CloneArgs};
use super::process::{Which, wait_exit};
use super::raw::{self, syscall};

/// For a few frames without optimisation.
const STACK: usize = 32 * 1024;

/// The child; it ends when this is dropped.
#[derive(Debug)]
pub(crate) struct IdleChild {
    pid: i32,
    pidfd: OwnedFd,
    lifeline: Option<OwnedFd>,
    /// The child's, and what it works from.
    _memory: (Vec<u128>, Box<Lifeline>),
}

/// The pipe's end that the child has, by its number.
#[derive(Debug)]
struct Lifeline {
    reader: RawFd,
}

impl IdleChild {
    /// Starts it in new namespaces: `CLONE_NEW..`, those that a user namespace among them owns included.
    pub(crate) fn start(namespaces: libc::c_int) -> io::Result<Self> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
        let task = Box::new(Lifeline { reader: reader.as_raw_fd() });
        let mut stack = vec![0_u128; STACK / size_of::<u128>()];
        let mut pidfd: RawFd = -1;
        let mut args = CloneArgs {
            flags: (libc::CLONE_VM | libc::CLONE_PIDFD | namespaces) as u64 | CLONE_CLEAR_SIGHAND,
            pidfd: &raw mut pidfd as u64,
            exit_signal: libc::SIGCHLD as u64,
            stack: stack.as_mut_ptr() as u64,
            stack_size: STACK as u64,
            ..CloneArgs::default()
        };
        // SAFETY: the child has a stack of its own, which like the task lives until drop has seen its end; it calls `child` with the
        // address of a Lifeline.
        let result = unsafe { raw::clone_onto_stack(&mut args, child, std::ptr::from_ref(&*task) as usize) };
        #[allow(clippy::cast_possible_truncation)] // a pid or an errno
        match result as i32 {
            e if e < 0 => Err(io::Error::from_raw_os_error(-e)),
            pid => {
                // SAFETY: the kernel has just stored a new descriptor in pidfd, which nothing else owns.
                let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
                Ok(Self { pid, pidfd, lifeline: Some(writer), _memory: (stack, task) })
            }
        }
    }

    /// Its number in this process's pid namespace.
    pub(crate) fn pid(&self) -> i32 {
        self.pid
    }
}

impl Drop for IdleChild {
    fn drop(&mut self) {
        self.lifeline = None;
        // Its stack may go only after it has: nothing but the signal that cannot be refused could keep this from ending.
        let _ = super::process::pidfd_signal(self.pidfd.as_fd(), libc::SIGKILL);
        while let Err(error) = wait_exit_blocking(&self.pidfd) {
            if error.kind() != io::ErrorKind::Interrupted {
                break;
            }
        }
    }
}

fn wait_exit_blocking(pidfd: &OwnedFd) -> io::Result<()> {
    use rustix::event::{PollFd, PollFlags, poll};

    poll(&mut [PollFd::new(pidfd, PollFlags::IN)], None)?;
    wait_exit(&Which::PidFd(pidfd.as_fd()), true).map(drop)
}

/// # Safety
/// `task` is the address of a [`Lifeline`]; this is the child of [`IdleChild::start`].
unsafe extern "C" fn child(task: usize) -> ! {
    // SAFETY: the caller's promise.
    let task = unsafe { &*(task as *const Lifeline) };
    let reader = task.reader as usize;
    // Nothing else of ours: this pipe's other end, those of other children, locks, sockets. All of them would outlive us with it.
    // SAFETY: the child's own descriptor table.
    unsafe {
        if reader > 0 {
            syscall(libc::SYS_close_range, [0, reader - 1, 0, 0, 0, 0]);
        }
        syscall(libc::SYS_close_range, [reader + 1, u32::MAX as usize, 0, 0, 0, 0]);
    }
    let mut byte = 0_u8;
    loop {
        let to = &raw mut byte as usize;
        // SAFETY: reads into a byte of this stack. Nobody writes, so anything but an interruption is the end.
        let read = unsafe { syscall(libc::SYS_read, [reader, to, 1, 0, 0, 0]) };
        if read != -(libc::EINTR as isize) {
            break;
        }
    }
    loop {
        // SAFETY: ends the child only; it shares memory, not the thread group.
        unsafe { syscall(libc::SYS_exit_group, [0, 0, 0, 0, 0, 0]) };
    }
}
