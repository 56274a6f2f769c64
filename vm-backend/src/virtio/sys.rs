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
    /// One packet of a tap, or what there is of a stream.
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

/// Sends from `buffers`, of which at most [`MAX_BUFFERS`] are used, without waiting; less than all is not an error, and a receiver that has gone
/// one (EPIPE) and no signal.
///
/// # Errors
/// Those of sendmsg(2) but EINTR.
pub(crate) fn send_from(socket: BorrowedFd<'_>, buffers: &[VolatileSlice<'_>]) -> io::Result<usize> {
    let iov = Vectors::new(buffers);
    // SAFETY: all fields of a msghdr are plain numbers and pointers that may be null.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = iov.as_ptr().cast_mut();
    // The C libraries have two types for it.
    message.msg_iovlen = iov.vectors.len() as _;
    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
    // SAFETY: `message` names no more than the vectors of `iov`, which point at memory that `buffers` borrows, each piece as long as its
    // slice says; the kernel only reads all of it.
    retry(|| unsafe { libc::sendmsg(socket.as_raw_fd(), &raw const message, flags) })
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

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use nix::sys::signal::{SigSet, Signal};

    use super::*;

    /// Signals of this thread that wait: a bit per signal from 1 on (proc(5)).
    fn waiting() -> u64 {
        let status = std::fs::read_to_string("/proc/thread-self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("SigPnd:")).unwrap();
        u64::from_str_radix(line.trim(), 16).unwrap()
    }

    #[test]
    fn a_client_that_has_gone_is_an_error_and_no_signal() {
        // One that is blocked waits, although Rust's programs ignore it otherwise.
        let pipe = SigSet::from(Signal::SIGPIPE);
        pipe.thread_block().unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (mut head, mut tail) = (*b"he", *b"llo");
        let buffers = [&mut head[..], &mut tail[..]].map(VolatileSlice::from);
        assert_eq!(send_from(ours.as_fd(), &buffers).unwrap(), 5);
        drop(theirs);
        assert_eq!(send_from(ours.as_fd(), &buffers).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
        assert_eq!(waiting() & 1 << (libc::SIGPIPE - 1), 0);
        pipe.thread_unblock().unwrap();
    }
}
