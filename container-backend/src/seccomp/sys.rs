//! seccomp(2), for a process that may have nothing left but its code, its stack and the filter.
#![allow(unsafe_code)]

use std::io;

use syscalls::Sysno;

// linux/seccomp.h.
const SET_MODE_FILTER: usize = 1;
pub(super) const LOG: u32 = 1 << 1;
pub(super) const SPEC_ALLOW: u32 = 1 << 2;

/// Adds a filter to the calling thread.
pub(super) fn load(filter: &[libc::sock_filter], flags: u32) -> io::Result<()> {
    let Ok(len) = u16::try_from(filter.len()) else {
        return Err(io::Error::from_raw_os_error(libc::E2BIG));
    };
    // The kernel only reads it; the C type has no const.
    let program = libc::sock_fprog { len, filter: filter.as_ptr().cast_mut() };
    let argument = &raw const program as usize;
    // SAFETY: `program` and the `len` instructions it points to are borrowed for the call, which copies them. The call is made
    // inline, without libc's errno.
    let result = unsafe { syscalls::syscall3(Sysno::seccomp, SET_MODE_FILTER, flags as usize, argument) };
    match result {
        Ok(_) => Ok(()),
        Err(errno) => Err(io::Error::from_raw_os_error(errno.into_raw())),
    }
}

/// Any call with integers for arguments, so that tests see what a filter makes of it.
#[cfg(test)]
pub(super) fn probe(call: Sysno, args: [usize; 3]) -> Result<usize, i32> {
    assert!(matches!(
        call,
        Sysno::clone3
            | Sysno::keyctl
            | Sysno::statmount
            | Sysno::socket
            | Sysno::unshare
            | Sysno::personality
    ));
    // SAFETY: with the null pointers and integers that tests pass, none of these calls writes memory or makes a thread.
    unsafe { syscalls::syscall3(call, args[0], args[1], args[2]) }.map_err(syscalls::Errno::into_raw)
}
