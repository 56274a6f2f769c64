//! Kernel calls of the jail that no crate wraps.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::ptr;

use rustix::thread::CapabilitySet;

use super::landlock::Ruleset;

/// Leaves the session keyring of whoever started this process for an empty one without a name. A kernel without keyrings is no error.
pub(super) fn join_new_session_keyring() -> io::Result<()> {
    // SAFETY: a null name is what asks for a keyring without one.
    let joined = unsafe {
        libc::syscall(libc::SYS_keyctl, libc::KEYCTL_JOIN_SESSION_KEYRING, ptr::null::<libc::c_char>())
    };
    match joined {
        0.. => Ok(()),
        _ => match io::Error::last_os_error() {
            e if e.raw_os_error() == Some(libc::ENOSYS) => Ok(()),
            e => Err(e),
        },
    }
}

/// One heap for all threads. glibc asks a file in /proc before it shrinks one of several, whenever that first comes to pass; and threads here
/// allocate too little to be in each other's way.
pub(super) fn use_one_heap() {
    #[cfg(target_env = "gnu")]
    // SAFETY: the call takes numbers only, and there is one thread.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Drops every capability of this kernel but `kept` from the bounding set, those too that are newer than this program.
pub(super) fn empty_bounding_set_but(kept: CapabilitySet) -> io::Result<()> {
    for capability in (0..64).filter(|capability| kept.bits() & 1 << capability == 0) {
        // SAFETY: the call takes numbers only.
        if unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) } != 0 {
            match io::Error::last_os_error() {
                // Past the last one.
                e if e.raw_os_error() == Some(libc::EINVAL) && capability > 0 => return Ok(()),
                e => return Err(e),
            }
        }
    }
    Ok(())
}

/// The version of Landlock.
pub(super) fn landlock_abi() -> io::Result<u32> {
    const LANDLOCK_CREATE_RULESET_VERSION: libc::c_uint = 1;
    // SAFETY: asked for the version the kernel reads no ruleset.
    let abi = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            ptr::null::<Ruleset>(),
            0_usize,
            LANDLOCK_CREATE_RULESET_VERSION,
        )
    };
    u32::try_from(abi).map_err(|_| io::Error::last_os_error())
}

pub(super) fn landlock_create_ruleset(ruleset: &Ruleset) -> io::Result<OwnedFd> {
    // SAFETY: the kernel reads as many bytes as it is told, which are the ruleset's.
    let fd = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            ptr::from_ref(ruleset),
            size_of::<Ruleset>(),
            0 as libc::c_uint,
        )
    };
    match libc::c_int::try_from(fd) {
        // SAFETY: the kernel has just made it, and nobody else has its number.
        Ok(fd @ 0..) => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

pub(super) fn landlock_restrict_self(ruleset: &OwnedFd) -> io::Result<()> {
    // SAFETY: the call takes a descriptor, which lives meanwhile, and a number.
    match unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0 as libc::c_uint) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
