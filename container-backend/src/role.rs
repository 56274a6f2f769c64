//! A fork of the agent that keeps doing one thing, such as writing a log.

use std::ffi::CString;
use std::io;
use std::os::fd::BorrowedFd;

use crate::child::Child;
use crate::sys::clone::{self, Birth};
use crate::sys::process;

/// Forks a child that runs `body` and exits with its result.
///
/// The child has default signal dispositions, a session of its own, `name` (at most 15 bytes) as its command name, and
/// no descriptors but 0, 1, 2 and those of `keep`. It must not drop anything that owns another descriptor: `body` runs
/// on a copy of the agent's memory, so let it use what is in `keep` and leave the rest alone.
///
/// The caller must have one thread.
///
/// # Errors
/// The name has a NUL byte, or there are too many processes.
pub fn fork_role(name: &str, keep: &[BorrowedFd<'_>], body: impl FnOnce() -> i32) -> io::Result<Child> {
    let name = CString::new(name)?;
    clone::fork(&Birth::default(), || {
        let stdio = [0, 1, 2].map(process::standard_stream);
        let kept: Vec<_> = stdio.iter().copied().chain(keep.iter().copied()).collect();
        if process::close_all_except(&kept).is_err() {
            return 1;
        }
        // A failure changes what ps shows, nothing else.
        let _ = rustix::thread::set_name(&name);
        let _ = rustix::process::setsid();
        body()
    })
}
