//! What no safe wrapper asks a socket.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, AsRawFd as _};

/// Bytes written to a TCP socket that its other side has not acknowledged (SIOCOUTQ of tcp(7), which is TIOCOUTQ by number). An end that
/// was written counts as one.
pub(super) fn unacknowledged(socket: impl AsFd) -> io::Result<usize> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: the descriptor is borrowed, so it is open; the request writes one int, to where `bytes` is.
    let asked = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if asked == -1 { Err(io::Error::last_os_error()) } else { Ok(usize::try_from(bytes).unwrap_or(0)) }
}
