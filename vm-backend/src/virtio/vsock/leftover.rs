//! Bytes of the guest that a client's socket did not take at once.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;

use rustix::net::{SendFlags, send};

use crate::virtio::chain::{Buffers, QueueError};

/// A first-in first-out store that takes no memory while it is empty. Its size is bounded by the credit that the guest was given.
#[derive(Debug, Default)]
pub(super) struct Leftover {
    bytes: VecDeque<u8>,
}

impl Leftover {
    pub(super) fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    #[cfg(any(test, feature = "fuzz"))]
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Copies all of `payload` out of guest memory.
    pub(super) fn keep(&mut self, payload: &mut Buffers<'_>) -> Result<(), QueueError> {
        let mut chunk = [0; 4096];
        while !payload.is_empty() {
            let count = chunk.len().min(usize::try_from(payload.len()).unwrap_or(usize::MAX));
            payload.read(&mut chunk[..count])?;
            self.bytes.extend(&chunk[..count]);
        }
        Ok(())
    }

    /// Sends until nothing is left or the socket is full; tells how much went.
    ///
    /// # Errors
    /// Those of send(2) but EAGAIN and EINTR; the client is gone then.
    pub(super) fn send_to(&mut self, socket: BorrowedFd<'_>) -> io::Result<usize> {
        let mut sent = 0;
        while !self.bytes.is_empty() {
            match send(socket, self.bytes.as_slices().0, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
                Ok(count) => {
                    self.bytes.drain(..count);
                    sent += count;
                }
                Err(rustix::io::Errno::AGAIN) => break,
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        if self.bytes.is_empty() {
            self.bytes = VecDeque::new();
        }
        Ok(sent)
    }

    /// Forgets everything; tells how much that was.
    pub(super) fn discard(&mut self) -> usize {
        std::mem::take(&mut self.bytes).len()
    }
}
