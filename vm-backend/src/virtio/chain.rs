//! Descriptor chains: what a driver put into a queue, checked.
//!
//! A chain is walked once: each descriptor is copied out of the ring and its range checked against guest RAM, then the ring is not looked
//! at again. Buffers stay where they are ([`VolatileSlice`]): what a device must rely on it copies out first, once, since the guest can
//! write to it at any time.
//!
//! Everything is bounded: [`MAX_DESCRIPTORS`] per chain whatever their links say, so that a loop ends, and 4 GiB in all.

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::test_driver::{DriverQueue, INDIRECT, NEXT, RAM_START, WRITE, interrupt, ram};

    const BUFFER: u64 = RAM_START + 0x8000;

    fn rig(size: u16) -> (crate::memory::GuestRam, DriverQueue) {
        let memory = ram(1 << 20);
        let ring = DriverQueue::new(memory.clone(), RAM_START, size);
        (memory, ring)
    }

    /// Walks from descriptor 0 on.
    fn walk(ring: &DriverQueue, memory: &GuestMemory) -> Result<(u64, u64), QueueError> {
        let queue = ring.device_side().queue;
        Chain::walk(&queue, memory, 0).map(|chain| (chain.readable.len(), chain.writable.len()))
    }

    fn table(memory: &GuestMemory, at: u64, entries: &[(u64, u32, u16, u16)]) {
        for (place, (address, length, flags, next)) in (0_u64..).zip(entries) {
            let descriptor = Descriptor::new(*address, *length, *flags, *next);
            memory.write_obj(descriptor, GuestAddress(at + place * 16)).unwrap();
        }
    }

    #[test]
    fn a_chain_is_taken_apart_into_what_is_read_and_what_is_written() {
        let (memory, mut ring) = rig(8);
        ring.add(&[(BUFFER, 10), (BUFFER + 100, 0), (BUFFER + 20, 5)], &[(BUFFER + 200, 7)]);
        assert_eq!(walk(&ring, &memory), Ok((15, 7)));
    }

    #[test]
    fn loops_end() {
        let (memory, ring) = rig(8);
        ring.descriptor(0, (BUFFER, 1), NEXT, 1);
        ring.descriptor(1, (BUFFER, 1), NEXT, 0);
        assert_eq!(walk(&ring, &memory), Err(QueueError::TooLong(8)));
        // In an indirect table, whose length is its own bound.
        ring.descriptor(0, (BUFFER, 16 * 1024), INDIRECT, 0);
        table(&memory, BUFFER, &[(BUFFER, 1, NEXT, 0)]);
        assert_eq!(walk(&ring, &memory), Err(QueueError::TooLong(1024)));
        // Without data, too.
        ring.descriptor(0, (BUFFER, 0), NEXT, 0);
        assert_eq!(walk(&ring, &memory), Err(QueueError::TooLong(8)));
    }

    #[test]
    fn a_chain_as_long_as_its_table_is_taken() {
        let (memory, mut ring) = rig(4);
        ring.add(&[(BUFFER, 1); 3], &[(BUFFER, 1)]);
        assert_eq!(walk(&ring, &memory), Ok((3, 1)));
        // One direct descriptor before the table.
        ring.descriptor(0, (BUFFER, 1), NEXT, 1);
        ring.descriptor(1, (BUFFER + 512, 48), INDIRECT, 0);
        let entries = [(BUFFER, 2, NEXT, 2), (BUFFER, 4, WRITE, 0), (BUFFER, 8, NEXT | WRITE, 1)];
        table(&memory, BUFFER + 512, &entries);
        assert_eq!(walk(&ring, &memory), Ok((3, 12)));
    }

    #[test]
    fn the_longest_indirect_table_is_taken() {
        let (memory, ring) = rig(4);
        let flags = |next| if next < MAX_DESCRIPTORS { NEXT } else { 0 };
        let entries =
            (1..=MAX_DESCRIPTORS).map(|next| (BUFFER, 1, flags(next), u16::try_from(next).unwrap()));
        table(&memory, RAM_START + 0x1_0000, &entries.collect::<Vec<_>>());
        ring.descriptor(0, (RAM_START + 0x1_0000, 16 * 1024), INDIRECT, 0);
        assert_eq!(walk(&ring, &memory), Ok((1024, 0)));
    }

    #[test]
    fn addresses_outside_of_ram_are_found() {
        let end = RAM_START + (1 << 20);
        for (address, length) in [
            (0, 1),
            (RAM_START - 1, 2),
            (end - 1, 2),
            (end, 1),
            (u64::MAX, 2),
            (u64::MAX - 10, u32::MAX),
            (RAM_START, 1 << 21),
        ] {
            let (memory, mut ring) = rig(4);
            ring.add(&[(address, length)], &[]);
            assert_eq!(walk(&ring, &memory), Err(QueueError::Address { address, length }));
        }
        let (memory, mut ring) = rig(4);
        ring.add(&[(RAM_START, 1 << 20)], &[]);
        assert_eq!(walk(&ring, &memory), Ok((1 << 20, 0)));
    }

    #[test]
    fn indices_outside_of_the_table_are_found() {
        let (memory, ring) = rig(4);
        ring.descriptor(0, (BUFFER, 1), NEXT, 4);
        assert_eq!(walk(&ring, &memory), Err(QueueError::Index(4)));
        let queue = ring.device_side().queue;
        assert_eq!(Chain::walk(&queue, &memory, 4).err(), Some(QueueError::Index(4)));
        ring.descriptor(0, (BUFFER, 32), INDIRECT, 0);
        table(&memory, BUFFER, &[(BUFFER, 1, NEXT, 2)]);
        assert_eq!(walk(&ring, &memory), Err(QueueError::Index(2)));
    }

    #[test]
    fn indirect_tables_are_whole_single_and_in_ram() {
        let (memory, ring) = rig(4);
        for length in [0, 15, 17, 16 * 1025, u32::MAX] {
            ring.descriptor(0, (BUFFER, length), INDIRECT, 0);
            assert_eq!(walk(&ring, &memory), Err(QueueError::IndirectLength(length)));
        }
        ring.descriptor(0, (BUFFER, 16), INDIRECT | NEXT, 1);
        assert_eq!(walk(&ring, &memory), Err(QueueError::IndirectNested));
        ring.descriptor(0, (BUFFER, 16), INDIRECT, 0);
        table(&memory, BUFFER, &[(BUFFER, 16, INDIRECT, 0)]);
        assert_eq!(walk(&ring, &memory), Err(QueueError::IndirectNested));
        for address in [0, RAM_START + (1 << 20) - 8, u64::MAX - 3] {
            ring.descriptor(0, (address, 16), INDIRECT, 0);
            assert_eq!(walk(&ring, &memory), Err(QueueError::Ring), "{address:#x}");
        }
    }

    #[test]
    fn chains_out_of_order_or_too_large_are_found() {
        let (memory, ring) = rig(4);
        ring.descriptor(0, (BUFFER, 1), NEXT | WRITE, 1);
        ring.descriptor(1, (BUFFER, 1), 0, 0);
        assert_eq!(walk(&ring, &memory), Err(QueueError::Order));
        // The same 8 MiB over and over.
        let memory = ram(8 << 20);
        let ring = DriverQueue::new(memory.clone(), RAM_START, 4);
        let entries = (1..=1024).map(|next| (RAM_START, 8 << 20, NEXT, next)).collect::<Vec<_>>();
        table(&memory, BUFFER, &entries);
        ring.descriptor(0, (BUFFER, 16 * 1024), INDIRECT, 0);
        assert_eq!(walk(&ring, &memory), Err(QueueError::TooLarge));
    }

    #[test]
    fn a_ring_that_claims_too_much_is_broken() {
        let (memory, mut ring) = rig(4);
        let mut queue = ring.device_side();
        assert!(matches!(queue.next_chain(&memory), Ok(None)));
        ring.add(&[(BUFFER, 1)], &[]);
        assert!(matches!(queue.next_chain(&memory), Ok(Some(_))));
        ring.set_available_index(6);
        assert_eq!(queue.next_chain(&memory).err(), Some(QueueError::AvailableIndex));
        ring.set_available_index(0);
        assert_eq!(queue.next_chain(&memory).err(), Some(QueueError::AvailableIndex));
    }

    #[test]
    fn a_driver_that_wants_no_interrupt_gets_none() {
        let (memory, mut ring) = rig(4);
        let (mut queue, raised) = (ring.device_side(), interrupt());
        for (quiet, status) in [(true, 0), (false, 1)] {
            ring.set_no_interrupt(quiet);
            let head = ring.add(&[(BUFFER, 1)], &[]);
            queue.next_chain(&memory).unwrap();
            queue.complete(&memory, head, 0).unwrap();
            queue.interrupt(&memory, &raised).unwrap();
            assert_eq!(raised.status(), status);
            assert_eq!(ring.take_used(), Some((head, 0)));
        }
    }

    #[test]
    fn indices_go_round_their_16_bits() {
        let (memory, mut ring) = rig(4);
        let mut queue = ring.device_side();
        for round in 0..70_000_u32 {
            let head = ring.add(&[(BUFFER, 1)], &[]);
            assert_eq!(queue.next_chain(&memory).unwrap().unwrap().head, head);
            queue.complete_together(&memory, &[(head, round)]).unwrap();
            assert_eq!(ring.take_used(), Some((head, round)));
        }
    }

    #[test]
    fn buffers_are_read_and_written_across_their_pieces() {
        let (memory, mut ring) = rig(8);
        memory.write_slice(b"hello, device", GuestAddress(BUFFER)).unwrap();
        ring.add(&[(BUFFER, 3), (BUFFER + 3, 1), (BUFFER + 4, 9)], &[(BUFFER + 100, 2), (BUFFER + 102, 4)]);
        let queue = ring.device_side().queue;
        let Chain { mut readable, mut writable, .. } = Chain::walk(&queue, &memory, 0).unwrap();
        let mut word = [0; 5];
        readable.read(&mut word).unwrap();
        assert_eq!(&word, b"hello");
        assert_eq!(readable.read(&mut [0; 9]), Err(QueueError::Short));
        assert_eq!(readable.len(), 8, "what is too short is not touched");
        assert_eq!(readable.take_all_but(6).unwrap().len(), 2);
        assert_eq!(readable.read_value::<u8>(), Ok(b'd'));
        writable.write(b"abc").unwrap();
        writable.fill_zero();
        let mut written = [1; 7];
        memory.read_slice(&mut written, GuestAddress(BUFFER + 100)).unwrap();
        assert_eq!(&written, b"abc\0\0\0\0");
    }
}
