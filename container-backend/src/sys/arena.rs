//! The one piece of memory that a scrubbed process keeps: its stack and what execve needs.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io;
use std::ptr::NonNull;

/// Generous for a handful of frames without optimisation.
const STACK: usize = 64 * 1024;

/// Anonymous memory, never freed: whoever makes one is about to scrub itself and execve.
///
/// From its start: the stack, then data, growing.
pub(crate) struct Arena {
    base: NonNull<u8>,
    len: usize,
    used: usize,
}

impl Arena {
    /// Room for a stack and `data` bytes.
    pub(crate) fn new(data: usize) -> io::Result<Self> {
        // Whole pages: the scrub maps zeroes over what comes next.
        // SAFETY: reads a constant.
        let page = usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).map_err(io::Error::other)?;
        let len = (STACK + data).next_multiple_of(page);
        let (protection, flags) =
            (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a fresh anonymous mapping at an address of the kernel's choice overlaps nothing.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), len, protection, flags, -1, 0) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::OutOfMemory)?;
        Ok(Self { base, len, used: STACK })
    }

    /// Its addresses.
    pub(crate) fn range(&self) -> (usize, usize) {
        let start = self.base.as_ptr() as usize;
        (start, start + self.len)
    }

    /// Upper end of the stack, aligned as every ABI wants it.
    pub(crate) fn stack_top(&self) -> usize {
        self.base.as_ptr() as usize + STACK
    }

    /// What a string needs of the room given to [`Arena::new`].
    pub(crate) fn cost(text: &CStr) -> usize {
        text.to_bytes_with_nul().len()
    }

    /// What a table of `len` values needs, alignment included.
    pub(crate) fn table_cost<T>(len: usize) -> usize {
        size_of::<T>() * len + align_of::<T>()
    }

    /// Copies a string in; its address.
    pub(crate) fn text(&mut self, text: &CStr) -> io::Result<usize> {
        self.table(text.to_bytes_with_nul())
    }

    /// Copies values in; the address of the first.
    pub(crate) fn table<T: Copy>(&mut self, values: &[T]) -> io::Result<usize> {
        let address = self.reserve::<T>(values.len())?;
        // SAFETY: reserve gave aligned room for exactly these values, inside the mapping, that nothing else refers to.
        unsafe { std::ptr::copy_nonoverlapping(values.as_ptr(), address as *mut T, values.len()) };
        Ok(address)
    }

    /// Room for `len` values, zeroed; its address.
    pub(crate) fn reserve<T>(&mut self, len: usize) -> io::Result<usize> {
        let start = self.used.next_multiple_of(align_of::<T>());
        let end = len.checked_mul(size_of::<T>()).and_then(|size| start.checked_add(size));
        match end {
            Some(end) if end <= self.len => {
                self.used = end;
                Ok(self.base.as_ptr() as usize + start)
            }
            _ => Err(io::ErrorKind::OutOfMemory.into()),
        }
    }
}
