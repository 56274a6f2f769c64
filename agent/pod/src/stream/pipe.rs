//! The agent's end of a pipe to a process, or the master of its terminal.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use tokio::io::Interest;

use super::CHUNK;
use super::connection::read_some;
use crate::sys::Watched;

/// An end of a pipe, or a terminal, that the runtime watches.
#[derive(Debug)]
pub(crate) struct Pipe(Watched);

impl Pipe {
    /// An end to read from. Its open file is made non-blocking; a pipe's other end is a file of its own and stays as it is.
    pub(crate) fn reader(fd: OwnedFd) -> io::Result<Self> {
        Self::watched(fd, Interest::READABLE)
    }

    /// An end to write to, in the same way. What others read from the same terminal does not wake the agent.
    pub(crate) fn writer(fd: OwnedFd) -> io::Result<Self> {
        Self::watched(fd, Interest::WRITABLE)
    }

    fn watched(fd: OwnedFd, interest: Interest) -> io::Result<Self> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        Watched::new(fd, interest).map(Self)
    }

    /// Waits until there is something to read, which the end is, too.
    pub(super) async fn readable(&self) -> io::Result<()> {
        self.until(Interest::READABLE, PollFlags::IN).await
    }

    /// Waits until there is room, or nobody reads any more.
    pub(super) async fn writable(&self) -> io::Result<()> {
        self.until(Interest::WRITABLE, PollFlags::OUT).await
    }

    async fn until(&self, interest: Interest, flags: PollFlags) -> io::Result<()> {
        let is_so = |fd: BorrowedFd<'_>| {
            let mut polled = [PollFd::from_borrowed_fd(fd, flags)];
            match poll(&mut polled, Some(&Timespec::default()))? {
                0 => Err(io::ErrorKind::WouldBlock.into()),
                _ => Ok(()),
            }
        };
        self.0.io(interest, is_so).await
    }

    /// What there is to read; empty at the end, which for a terminal is the hang-up of its last slave.
    pub(crate) async fn read(&self) -> io::Result<Vec<u8>> {
        match self.0.io(Interest::READABLE, |fd| read_some(fd, CHUNK)).await {
            Err(error) if error.raw_os_error() == Some(Errno::IO.raw_os_error()) => Ok(Vec::new()),
            outcome => outcome,
        }
    }

    pub(super) async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let count = self.0.io(Interest::WRITABLE, |fd| Ok(rustix::io::write(fd, bytes)?)).await?;
            bytes = bytes.get(count..).unwrap_or_default();
        }
        Ok(())
    }

    /// Reads to the end and throws it away.
    pub(crate) async fn drain(self) {
        while self.read().await.is_ok_and(|bytes| !bytes.is_empty()) {}
    }
}

impl AsFd for Pipe {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
