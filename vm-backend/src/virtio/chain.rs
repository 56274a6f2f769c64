//! Descriptor chains: what a driver put into a queue, checked.
//!
//! A chain is walked once: each descriptor is copied out of the ring and its range checked against guest RAM, then the ring is not looked
//! at again. Buffers stay where they are ([`VolatileSlice`]): what a device must rely on it copies out first, once, since the guest can
//! write to it at any time.
//!
//! Everything is bounded: [`MAX_DESCRIPTORS`] per chain whatever their links say, so that a loop ends, and 4 GiB in all.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;

use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueT};
use vm_memory::{ByteValued, Bytes, GuestAddress, GuestMemoryBackend, VolatileSlice};

use crate::memory::GuestMemory;

/// The longest chain that is taken, an indirect table included: what one readv(2) takes.
///
/// A driver may not make a chain longer than its queue (VIRTIO 1.2 section 2.7.5.3.1), but Linux does so in an indirect table when it had to
/// allocate a smaller queue than it was offered.
pub const MAX_DESCRIPTORS: usize = 1024;

/// What a driver did to a queue that no driver may do. Nothing can be said about the chain after that, not even where a status would go:
/// the device stops and asks for a reset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum QueueError {
    #[error("the available ring claims more chains than the queue has places")]
    AvailableIndex,
    #[error("descriptor {0} is past the end of its table")]
    Index(u16),
    #[error("a chain of more than {0} descriptors, or a loop")]
    TooLong(usize),
    #[error("a chain of more than 4 GiB")]
    TooLarge,
    #[error("{length} bytes at {address:#x} are not guest memory")]
    Address { address: u64, length: u32 },
    #[error("a buffer to read from follows one to write to")]
    Order,
    #[error("an indirect table of {0} bytes")]
    IndirectLength(u32),
    #[error("an indirect table where none may be")]
    IndirectNested,
    #[error("the rings are not guest memory any more")]
    Ring,
    #[error("a buffer ends before what belongs into it")]
    Short,
}

/// A chain that a driver has made available.
#[derive(Debug)]
pub struct Chain<'m> {
    /// What the used ring names it by.
    pub head: u16,
    /// For the device to read.
    pub readable: Buffers<'m>,
    /// For the device to write.
    pub writable: Buffers<'m>,
}

impl<'m> Chain<'m> {
    /// Walks the chain that begins at descriptor `head`.
    ///
    /// # Errors
    /// See [`QueueError`].
    pub fn walk(queue: &Queue, memory: &'m GuestMemory, head: u16) -> Result<Self, QueueError> {
        let mut chain = Self { head, readable: Buffers::default(), writable: Buffers::default() };
        let mut table =
            Table { address: queue.desc_table(), entries: usize::from(queue.size()), indirect: false };
        let (mut index, mut seen, mut limit) = (head, 0, table.entries);
        loop {
            if seen == limit.min(MAX_DESCRIPTORS) {
                return Err(QueueError::TooLong(seen));
            }
            seen += 1;
            let descriptor = table.read(memory, index)?;
            if descriptor.refers_to_indirect_table() {
                table = table.enter(&descriptor)?;
                // The descriptor that points to the table is not part of the chain.
                seen -= 1;
                limit = seen + table.entries;
                index = 0;
                continue;
            }
            chain.push(memory, &descriptor)?;
            if !descriptor.has_next() {
                return Ok(chain);
            }
            index = descriptor.next();
        }
    }

    fn push(&mut self, memory: &'m GuestMemory, descriptor: &Descriptor) -> Result<(), QueueError> {
        let (address, length) = (descriptor.addr(), descriptor.len());
        let total = self.readable.len() + self.writable.len() + u64::from(length);
        if total > u64::from(u32::MAX) {
            return Err(QueueError::TooLarge);
        }
        let buffers = match descriptor.is_write_only() {
            true => &mut self.writable,
            false if self.writable.slices.is_empty() => &mut self.readable,
            false => return Err(QueueError::Order),
        };
        let wrong = QueueError::Address { address: address.0, length };
        let size = usize::try_from(length).map_err(|_| wrong)?;
        for slice in memory.get_slices(address, size) {
            buffers.push(slice.map_err(|_| wrong)?);
        }
        Ok(())
    }
}

/// The descriptors of a queue, or those that one of them refers to.
struct Table {
    address: u64,
    entries: usize,
    indirect: bool,
}

impl Table {
    fn read(&self, memory: &GuestMemory, index: u16) -> Result<Descriptor, QueueError> {
        if usize::from(index) >= self.entries {
            return Err(QueueError::Index(index));
        }
        let address = u64::from(index)
            .checked_mul(DESCRIPTOR_SIZE.into())
            .and_then(|offset| self.address.checked_add(offset))
            .ok_or(QueueError::Ring)?;
        memory.read_obj(GuestAddress(address)).map_err(|_| QueueError::Ring)
    }

    fn enter(&self, descriptor: &Descriptor) -> Result<Self, QueueError> {
        if self.indirect || descriptor.has_next() {
            return Err(QueueError::IndirectNested);
        }
        let length = descriptor.len();
        let entries = length / DESCRIPTOR_SIZE;
        if length % DESCRIPTOR_SIZE != 0 || !(1..=MAX_DESCRIPTORS).contains(&(entries as usize)) {
            return Err(QueueError::IndirectLength(length));
        }
        Ok(Self { address: descriptor.addr().0, entries: entries as usize, indirect: true })
    }
}

/// Bytes of a descriptor (VIRTIO 1.2 section 2.7.5).
const DESCRIPTOR_SIZE: u32 = 16;

/// Pieces of guest memory that are one buffer to the device. Reading and writing consume it from its beginning.
#[derive(Debug, Clone, Default)]
pub struct Buffers<'m> {
    slices: VecDeque<VolatileSlice<'m>>,
    length: u64,
}

impl<'m> Buffers<'m> {
    /// Bytes left.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.length
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// How many pieces of memory that is.
    #[must_use]
    pub fn pieces(&self) -> usize {
        self.slices.len()
    }

    /// What is left, for a call that takes many pieces.
    pub fn slices(&mut self) -> &[VolatileSlice<'m>] {
        self.slices.make_contiguous()
    }

    /// Adds what is left of `other` to the end.
    pub fn append(&mut self, other: &Self) {
        self.slices.extend(other.slices.iter().copied());
        self.length += other.length;
    }

    /// Takes the first `count` bytes off.
    ///
    /// # Errors
    /// [`QueueError::Short`] where there are fewer; nothing is taken then.
    pub fn take(&mut self, count: u64) -> Result<Self, QueueError> {
        if count > self.length {
            return Err(QueueError::Short);
        }
        let mut taken = Self::default();
        while taken.length < count {
            let slice = self.slices.pop_front().ok_or(QueueError::Short)?;
            self.length -= slice.len() as u64;
            let wanted = count - taken.length;
            if wanted >= slice.len() as u64 {
                taken.push(slice);
                continue;
            }
            // It fits: it is below the length of a slice.
            let wanted = usize::try_from(wanted).map_err(|_| QueueError::Short)?;
            let (head, tail) = slice.split_at(wanted).map_err(|_| QueueError::Short)?;
            taken.push(head);
            self.slices.push_front(tail);
            self.length += tail.len() as u64;
        }
        Ok(taken)
    }

    /// Takes all but the last `count` bytes off.
    ///
    /// # Errors
    /// [`QueueError::Short`] where there are fewer than `count`.
    pub fn take_all_but(&mut self, count: u64) -> Result<Self, QueueError> {
        let rest = self.length.checked_sub(count).ok_or(QueueError::Short)?;
        self.take(rest)
    }

    /// Copies from the beginning into `data` and consumes.
    ///
    /// # Errors
    /// [`QueueError::Short`] where there are fewer bytes.
    pub fn read(&mut self, data: &mut [u8]) -> Result<(), QueueError> {
        let mut rest = data;
        for slice in self.take(rest.len() as u64)?.slices {
            let (now, later) = rest.split_at_mut(slice.len());
            slice.copy_to(now);
            rest = later;
        }
        Ok(())
    }

    /// Copies `data` to the beginning and consumes.
    ///
    /// # Errors
    /// [`QueueError::Short`] where there is less room.
    pub fn write(&mut self, data: &[u8]) -> Result<(), QueueError> {
        let mut rest = data;
        for slice in self.take(rest.len() as u64)?.slices {
            let (now, later) = rest.split_at(slice.len());
            slice.copy_from(now);
            rest = later;
        }
        Ok(())
    }

    /// Copies a value from the beginning and consumes.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn read_value<T: ByteValued>(&mut self) -> Result<T, QueueError> {
        let mut value = T::zeroed();
        self.read(value.as_mut_slice())?;
        Ok(value)
    }

    /// Writes zeros over all that is left.
    pub fn fill_zero(self) {
        const ZEROS: [u8; 4096] = [0; 4096];
        for slice in self.slices {
            let mut at = 0;
            while at < slice.len() {
                let count = ZEROS.len().min(slice.len() - at);
                if slice.write_slice(&ZEROS[..count], at).is_err() {
                    return;
                }
                at += count;
            }
        }
    }

    fn push(&mut self, slice: VolatileSlice<'m>) {
        self.length += slice.len() as u64;
        self.slices.push_back(slice);
    }
}
