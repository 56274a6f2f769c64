//! System calls as whoever has taken over a VMM makes them: by number, with whatever arguments.
#![allow(unsafe_code)]

use nix::errno::Errno;
use nix::libc::{self, c_long};

/// Makes one. Pointers among the arguments are to what outlives the call, or to nowhere.
pub(super) fn call(number: c_long, arguments: &[usize]) -> Result<i64, Errno> {
    let mut all = [0; 6];
    all[..arguments.len()].copy_from_slice(arguments);
    let [a, b, c, d, e, f] = all;
    // SAFETY: not for every call that there is; the attacks that use this leave alone what Rust owns: they map new memory and none that is
    // there, and pass buffers of their own with their size. A process that one of them clones ends in `fork`.
    Errno::result(unsafe { libc::syscall(number, a, b, c, d, e, f) })
}

/// A process, by the oldest way there is. It ends at once.
pub(super) fn fork() -> Result<i64, Errno> {
    let cloned = call(libc::SYS_clone, &[libc::SIGCHLD as usize])?;
    if cloned == 0 {
        // SAFETY: ends the child, which must do nothing else.
        unsafe { libc::_exit(0) };
    }
    Ok(cloned)
}
