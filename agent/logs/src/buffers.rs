//! A writer's memory.

use std::io;

use crate::frame::BUFFER;
use crate::sys::Pages;
use crate::writer::BATCH;

/// Room for what two streams have said and what goes to the disk next: 97 KiB, of which a page exists once it is used, until the
/// writer is told that nothing happens.
#[derive(Debug)]
pub struct Buffers {
    pages: Pages,
}

impl Buffers {
    /// # Errors
    /// The kernel has no memory.
    pub fn new() -> io::Result<Self> {
        Ok(Self { pages: Pages::new(2 * BUFFER + BATCH)? })
    }

    /// Those of two framers, and the batch.
    pub(crate) fn parts(&mut self) -> ([&mut [u8]; 2], &mut [u8]) {
        let (first, rest) = self.pages.as_mut_slice().split_at_mut(BUFFER);
        let (second, batch) = rest.split_at_mut(BUFFER);
        ([first, second], batch)
    }
}
