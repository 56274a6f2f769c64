//! Memory that comes from the kernel and goes back to it.
#![allow(unsafe_code)]

use std::io;
use std::ptr::NonNull;

/// Anonymous private memory: zeros, of which no page exists before it is touched.
#[derive(Debug)]
pub(crate) struct Pages {
    start: NonNull<u8>,
    length: usize,
}

// SAFETY: the mapping belongs to this value alone, like the memory of a Box; nothing about it depends on the thread.
unsafe impl Send for Pages {}

impl Pages {
    /// At least one byte; rounded up to whole pages by the kernel.
    pub(crate) fn new(length: usize) -> io::Result<Self> {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new anonymous mapping at a place of the kernel's choice touches no memory that anybody has.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), length, protection, flags, -1, 0) };
        if start == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(start.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { start, length })
    }

    pub(crate) fn as_mut_slice(&mut self) -> &mut [u8] {
        // SAFETY: start and length are those of the mapping, which is readable and writable until self drops; self is borrowed mutably,
        // so this is the only reference into it.
        unsafe { std::slice::from_raw_parts_mut(self.start.as_ptr(), self.length) }
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: the mapping is this value's own, and no reference into it outlives the value.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.length) };
    }
}

/// Gives the whole pages within `memory`, a part of [`Pages`], back to the kernel; they read as zeros afterwards.
pub(crate) fn release(memory: &mut [u8]) {
    let page = rustix::param::page_size();
    let offset = memory.as_ptr().align_offset(page);
    let Some(pages) = memory.get_mut(offset..).filter(|rest| rest.len() >= page) else { return };
    let length = pages.len() / page * page;
    // SAFETY: the range lies within `memory`, which is borrowed mutably, so nobody else reads it; anonymous memory that was
    // released reads as zeros, which are valid bytes. A failure changes nothing.
    unsafe { libc::madvise(pages.as_mut_ptr().cast(), length, libc::MADV_DONTNEED) };
}
