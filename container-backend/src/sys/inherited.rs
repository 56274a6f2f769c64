//! Descriptors that this program was started with.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};

static TAKEN: AtomicBool = AtomicBool::new(false);

/// Takes ownership of `fds`, marking them close-on-exec.
///
/// # Errors
/// Somebody took them before, or one of them is not open.
pub(crate) fn take<const N: usize>(fds: [RawFd; N]) -> io::Result<[OwnedFd; N]> {
    for fd in fds {
        // SAFETY: F_SETFD takes any number and has no memory effects.
        if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Err(io::ErrorKind::AlreadyExists.into());
    }
    // SAFETY: they are open, came with the program, and only this function makes owners of them, once.
    Ok(fds.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }))
}
