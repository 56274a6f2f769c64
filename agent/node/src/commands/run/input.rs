//! What comes on standard input.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, retry_on_intr};
use rustix::stdio::stdin;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Bytes that one read takes at most.
const CHUNK: usize = 32 << 10;

/// Standard input.
///
/// It is shared with whoever started this program, so it stays as it is, blocking: it is read only when there is something, and what comes
/// after the container's end is left to the next reader.
#[derive(Debug)]
pub(super) enum Input {
    /// A terminal, a pipe, a socket.
    Watched(AsyncFd<OwnedFd>),
    /// A file, which never waits for anybody.
    File,
}

impl Input {
    pub(super) fn open() -> io::Result<Self> {
        let stdin = stdin().try_clone_to_owned()?;
        // Deprecated because a type's `as_raw_fd` could name a descriptor that it does not own; an OwnedFd's cannot.
        #[allow(deprecated)]
        match AsyncFd::with_interest(stdin, Interest::READABLE) {
            Ok(fd) => Ok(Self::Watched(fd)),
            // epoll_ctl(2) about files that it does not support.
            Err(error) if Errno::from_io_error(&error) == Some(Errno::PERM) => Ok(Self::File),
            Err(error) => Err(error),
        }
    }

    /// The next bytes; empty at the end.
    pub(super) async fn next(&self) -> io::Result<Vec<u8>> {
        match self {
            Self::Watched(fd) => fd.async_io(Interest::READABLE, |fd| read_if_ready(fd.as_fd())).await,
            Self::File => tokio::task::spawn_blocking(|| read(stdin())).await.map_err(io::Error::other)?,
        }
    }
}

fn read_if_ready(fd: BorrowedFd<'_>) -> io::Result<Vec<u8>> {
    let mut polled = [PollFd::from_borrowed_fd(fd, PollFlags::IN)];
    match retry_on_intr(|| poll(&mut polled, Some(&Timespec::default())))? {
        0 => Err(io::ErrorKind::WouldBlock.into()),
        _ => read(fd),
    }
}

fn read(fd: impl AsFd) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(CHUNK);
    match retry_on_intr(|| rustix::io::read(&fd, rustix::buffer::spare_capacity(&mut bytes))) {
        // A terminal that has gone.
        Err(Errno::IO) => Ok(Vec::new()),
        Err(error) => Err(error.into()),
        Ok(_) => Ok(bytes),
    }
}
