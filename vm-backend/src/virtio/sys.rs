//! Kernel calls on guest memory, which no safe wrapper can take: a guest writes it while the VMM looks, so it is never a Rust slice.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr::NonNull;

use nix::sys::mman::{MmapAdvise, madvise};
use vm_memory::VolatileSlice;
use vmm_sys_util::eventfd::EventFd;

/// The most buffers that one call takes (UIO_MAXIOV of the kernel).
pub(crate) const MAX_BUFFERS: usize = 1024;

/// Which call, and from where in the file.
#[derive(Debug, Clone, Copy)]
pub(crate) enum At {
    /// At this byte; the file's own position is neither used nor moved.
    Offset(i64),
    /// One packet of a tap or socket.
    Packet,
}

/// Reads into `buffers`, of which at most [`MAX_BUFFERS`] are used; less than all is not an error.
///
/// # Errors
/// Those of preadv(2) and readv(2) but EINTR.
pub(crate) fn read_into(fd: BorrowedFd<'_>, buffers: &[VolatileSlice<'_>], at: At) -> io::Result<usize> {
    let iov = Vectors::new(buffers);
    let (fd, vectors, count) = (fd.as_raw_fd(), iov.as_ptr(), iov.count());
    match at {
        // SAFETY: `iov` points at memory that `buffers` borrows, each piece as long as its slice says; it is guest memory, which
        // nobody holds a Rust reference to.
        At::Offset(offset) => retry(|| unsafe { libc::preadv(fd, vectors, count, offset) }),
        // SAFETY: as above.
        At::Packet => retry(|| unsafe { libc::readv(fd, vectors, count) }),
    }
}

/// Writes from `buffers`, of which at most [`MAX_BUFFERS`] are used; less than all is not an error.
///
/// # Errors
/// Those of pwritev(2) and writev(2) but EINTR.
pub(crate) fn write_from(fd: BorrowedFd<'_>, buffers: &[VolatileSlice<'_>], at: At) -> io::Result<usize> {
    let iov = Vectors::new(buffers);
    let (fd, vectors, count) = (fd.as_raw_fd(), iov.as_ptr(), iov.count());
    match at {
        // SAFETY: `iov` points at memory that `buffers` borrows, each piece as long as its slice says; the kernel only reads it.
        At::Offset(offset) => retry(|| unsafe { libc::pwritev(fd, vectors, count, offset) }),
        // SAFETY: as above.
        At::Packet => retry(|| unsafe { libc::writev(fd, vectors, count) }),
    }
}

/// Tells the host that nothing in these pages is needed. They must be whole.
///
/// # Errors
/// Those of madvise(2).
pub(crate) fn give_back(pages: &VolatileSlice<'_>) -> io::Result<()> {
    let Some(start) = NonNull::new(pages.ptr_guard_mut().as_ptr()) else { return Ok(()) };
    // SAFETY: the range is guest memory that `pages` borrows. Its contents change, which a guest can do to them at any time: nobody holds
    // a Rust reference to it.
    unsafe { madvise(start.cast(), pages.len(), MmapAdvise::MADV_DONTNEED) }?;
    Ok(())
}

/// An eventfd as what poll takes.
pub(crate) fn borrow(event: &EventFd) -> BorrowedFd<'_> {
    // SAFETY: the descriptor is open as long as `event` lives, which the result borrows.
    unsafe { BorrowedFd::borrow_raw(event.as_raw_fd()) }
}

struct Vectors {
    vectors: Vec<libc::iovec>,
}

impl Vectors {
    fn new(buffers: &[VolatileSlice<'_>]) -> Self {
        let vectors = buffers.iter().take(MAX_BUFFERS).map(|slice| libc::iovec {
            iov_base: slice.ptr_guard_mut().as_ptr().cast(),
            iov_len: slice.len(),
        });
        Self { vectors: vectors.collect() }
    }

    fn as_ptr(&self) -> *const libc::iovec {
        self.vectors.as_ptr()
    }

    /// At most [`MAX_BUFFERS`].
    fn count(&self) -> libc::c_int {
        libc::c_int::try_from(self.vectors.len()).unwrap_or(libc::c_int::MAX)
    }
}

fn retry(mut call: impl FnMut() -> isize) -> io::Result<usize> {
    loop {
        let failure = match usize::try_from(call()) {
            Ok(done) => return Ok(done),
            Err(_) => io::Error::last_os_error(),
        };
        if failure.kind() != io::ErrorKind::Interrupted {
            return Err(failure);
        }
    }
}
