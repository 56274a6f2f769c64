//! Session keyrings: without one of its own, a container would hold the keys of whoever started the agent.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io;

const KEYCTL_JOIN_SESSION_KEYRING: libc::c_int = 1;

/// Joins the session keyring of this name, making it if need be.
///
/// # Errors
/// No quota for one more key. A kernel without keyrings is no error: there is nothing to hide then.
pub(crate) fn join_session(name: &CStr) -> io::Result<()> {
    // SAFETY: name is a C string that outlives the call.
    let result = unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, name.as_ptr()) };
    if result >= 0 {
        return Ok(());
    }
    match io::Error::last_os_error() {
        e if e.raw_os_error() == Some(libc::ENOSYS) => Ok(()),
        e => Err(e),
    }
}
