//! System calls that need raw memory, typed.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd as _;

use vm_memory::VolatileSlice;

/// Closes everything but standard input, output and error. Only for the very beginning of a program.
pub(crate) fn close_inherited() -> io::Result<()> {
    // SAFETY: nothing in the program owns a descriptor yet, so none is closed behind its owner's back.
    match unsafe { libc::close_range(3, libc::c_uint::MAX, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// `madvise(2)` on page-aligned guest RAM.
pub(crate) fn advise(memory: &VolatileSlice<'_, ()>, advice: libc::c_int) -> io::Result<()> {
    let guard = memory.ptr_guard_mut();
    // SAFETY: the guard keeps the slice's memory mapped; the advices in use (NOHUGEPAGE, HUGEPAGE, DONTDUMP) change no contents.
    match unsafe { libc::madvise(guard.as_ptr().cast(), guard.len(), advice) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The blocks of `size` bytes, a power of two, that lie wholly in `memory` by their address in this process.
pub(crate) fn whole_blocks<'m>(memory: &VolatileSlice<'m, ()>, size: usize) -> Option<VolatileSlice<'m, ()>> {
    let start = memory.ptr_guard().as_ptr() as usize;
    let first = start.checked_next_multiple_of(size)?;
    let end = (start + memory.len()) & !(size - 1);
    memory.subslice(first - start, end.checked_sub(first).filter(|len| *len > 0)?).ok()
}

/// Fills all of `target` from `file` at `offset`.
pub(crate) fn read_at(file: &File, offset: u64, target: &VolatileSlice<'_, ()>) -> io::Result<()> {
    let mut done = 0;
    while done < target.len() {
        let rest = target.offset(done).map_err(io::Error::other)?;
        let at = i64::try_from(offset + done as u64).map_err(io::Error::other)?;
        let guard = rest.ptr_guard_mut();
        // SAFETY: the guard keeps the slice's memory mapped and writable for its whole length; guest memory may be written by others
        // at any time, so no reference to it exists anywhere.
        let read = unsafe { libc::pread64(file.as_raw_fd(), guard.as_ptr().cast(), rest.len(), at) };
        match usize::try_from(read) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => done += read,
            Err(_) => {
                let error = io::Error::last_os_error();
                if error.kind() != io::ErrorKind::Interrupted {
                    return Err(error);
                }
            }
        }
    }
    Ok(())
}
