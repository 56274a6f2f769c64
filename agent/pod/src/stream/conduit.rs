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

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixStream;

    use rustix::net::sockopt::set_socket_send_buffer_size;

    use super::*;

    #[test]
    fn what_a_socket_does_not_take_at_once_stays_until_it_does() {
        let [(from, mut sender), (to, mut receiver)] = [(); 2].map(|()| UnixStream::pair().unwrap());
        from.set_nonblocking(true).unwrap();
        to.set_nonblocking(true).unwrap();
        set_socket_send_buffer_size(&to, 4096).unwrap();
        let sent: Vec<u8> = (0..50_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        // In more pieces than a socket takes at once.
        sent.chunks(500).for_each(|piece| sender.write_all(piece).unwrap());
        drop(sender);
        let (mut conduit, mut received, mut parts) = (Conduit::new().unwrap(), Vec::new(), 0);
        while conduit.fill(from.as_fd()).unwrap() > 0 {
            loop {
                match conduit.empty(to.as_fd()) {
                    Ok(true) => break,
                    Ok(false) => parts += 1,
                    Err(error) => {
                        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
                        let mut some = [0; 1000];
                        let count = receiver.read(&mut some).unwrap();
                        received.extend_from_slice(&some[..count]);
                    }
                }
            }
        }
        drop(to);
        receiver.read_to_end(&mut received).unwrap();
        assert!(received == sent && parts > 0, "{} bytes; {parts} times a part", received.len());
    }
}
