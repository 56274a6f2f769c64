//! Bytes from one socket to another without passing through the agent's memory.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::pipe::{PipeFlags, SpliceFlags, fcntl_setpipe_size, pipe_with, splice};

/// Bytes that a conduit holds where the kernel allows it; the memory is the sockets' own, lent to the pipe.
const ROOM: usize = 256 * 1024;

/// A pipe between two sockets: the kernel splices to and from pipes only.
#[derive(Debug)]
pub(super) struct Conduit {
    reader: OwnedFd,
    writer: OwnedFd,
    /// Bytes in it.
    held: usize,
}

impl Conduit {
    pub(super) fn new() -> io::Result<Self> {
        let (reader, writer) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        // A smaller one does as well, but slower.
        let _ = fcntl_setpipe_size(&writer, ROOM);
        Ok(Self { reader, writer, held: 0 })
    }

    /// Takes what has come to a socket; 0 at its end. `InvalidInput` where the kernel cannot.
    pub(super) fn fill(&mut self, from: BorrowedFd<'_>) -> io::Result<usize> {
        self.held = splice(from, None, &self.writer, None, ROOM, flags())?;
        Ok(self.held)
    }

    /// Gives some of what it holds to a socket. True when nothing is left.
    pub(super) fn empty(&mut self, to: BorrowedFd<'_>) -> io::Result<bool> {
        if self.held > 0 {
            self.held -= splice(self.reader.as_fd(), None, to, None, self.held, flags())?.min(self.held);
        }
        Ok(self.held == 0)
    }
}

fn flags() -> SpliceFlags {
    SpliceFlags::NONBLOCK | SpliceFlags::MOVE
}
