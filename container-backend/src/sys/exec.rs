//! `execve(2)` and unsharing, for a child that has one thread.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char};
use std::io;

use rustix::thread::UnshareFlags;

use crate::errno::Errno;

/// Executes; returns why it could not.
pub(crate) fn execve(path: &CStr, argv: &[CString], envp: &[CString]) -> Errno {
    let table = |strings: &[CString]| -> Vec<*const c_char> {
        strings.iter().map(|s| s.as_ptr()).chain([std::ptr::null()]).collect()
    };
    let (argv, envp) = (table(argv), table(envp));
    // SAFETY: path is a C string, and both tables end with null and hold pointers to strings that outlive the call.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    io::Error::last_os_error().into()
}

/// New namespaces for this process, which has one thread.
pub(crate) fn unshare(flags: UnshareFlags) -> Result<(), Errno> {
    // SAFETY: the descriptor table is not among what callers unshare, so no OwnedFd changes its meaning.
    Ok(unsafe { rustix::thread::unshare_unsafe(flags - UnshareFlags::FILES) }?)
}
