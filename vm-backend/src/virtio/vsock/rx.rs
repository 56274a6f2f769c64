//! The queue of buffers that the guest receives packets in.

use std::collections::VecDeque;

use virtio_queue::QueueT;

use super::packet::{HEADER_LEN, Header, MAX_PAYLOAD};
use crate::memory::GuestMemory;
use crate::virtio::ActiveQueue;
use crate::virtio::chain::{Buffers, QueueError};

/// Buffers that one read of a client's socket fills at most: 16 of Linux's 4 KiB.
const READ_SLOTS: usize = 16;

/// The ring, and the buffers taken from it that are still empty.
#[derive(Debug)]
pub(super) struct RxRing<'m> {
    memory: &'m GuestMemory,
    queue: ActiveQueue,
    slots: VecDeque<Slot<'m>>,
}

#[derive(Debug)]
struct Slot<'m> {
    head: u16,
    header: Buffers<'m>,
    payload: Buffers<'m>,
}

impl Slot<'_> {
    /// Bytes of payload that a packet in it can have.
    fn room(&self) -> u64 {
        self.payload.len().min(MAX_PAYLOAD.into())
    }
}

impl<'m> RxRing<'m> {
    pub(super) fn new(memory: &'m GuestMemory, queue: ActiveQueue) -> Self {
        Self { memory, queue, slots: VecDeque::new() }
    }

    /// Whether there is a buffer for a packet.
    pub(super) fn has_slot(&mut self) -> Result<bool, QueueError> {
        self.fetch(1)?;
        Ok(!self.slots.is_empty())
    }

    /// Room for up to `limit` bytes of payload, in the order in which [`send`](Self::send) fills packets.
    pub(super) fn payload_room(&mut self, limit: u32) -> Result<Buffers<'m>, QueueError> {
        let mut room = Buffers::default();
        let mut left = u64::from(limit);
        self.fetch(READ_SLOTS)?;
        for slot in self.slots.iter().take(READ_SLOTS) {
            let count = slot.room().min(left);
            if count == 0 {
                break;
            }
            match count == slot.payload.len() {
                true => room.append(&slot.payload),
                false => room.append(&slot.payload.clone().take(count)?),
            }
            left -= count;
        }
        Ok(room)
    }

    /// Sends packets with this header and `payload` bytes that are in the buffers already; one without payload if there are none.
    ///
    /// # Errors
    /// [`QueueError::Short`] without a buffer.
    pub(super) fn send(&mut self, header: Header, payload: usize) -> Result<usize, QueueError> {
        let mut left = payload as u64;
        let mut packets = 0;
        loop {
            let mut slot = self.slots.pop_front().ok_or(QueueError::Short)?;
            let count = slot.room().min(left);
            // Both are below 2^17.
            let len = u32::try_from(count).map_err(|_| QueueError::Short)?;
            let written = u32::try_from(slot.header.len() + count).map_err(|_| QueueError::Short)?;
            slot.header.write(&Header { len, ..header }.to_bytes())?;
            self.queue.complete(self.memory, slot.head, written)?;
            packets += 1;
            left -= count;
            if left == 0 {
                return Ok(packets);
            }
        }
    }

    /// The queue itself, for interrupts and kicks.
    pub(super) fn queue(&mut self) -> &mut ActiveQueue {
        &mut self.queue
    }

    /// Takes buffers from the ring until there are `wanted`, if there are that many. One without room for a header and a byte is given
    /// back empty; a ring of those at most, or a guest that offers them as fast as they come back would hold the thread.
    fn fetch(&mut self, wanted: usize) -> Result<(), QueueError> {
        let mut refused = 0;
        while self.slots.len() < wanted && refused < self.queue.queue.size() {
            let Some(mut chain) = self.queue.next_chain(self.memory)? else {
                break;
            };
            if chain.writable.len() <= HEADER_LEN as u64 {
                self.queue.complete(self.memory, chain.head, 0)?;
                refused += 1;
                continue;
            }
            let header = chain.writable.take(HEADER_LEN as u64)?;
            self.slots.push_back(Slot { head: chain.head, header, payload: chain.writable });
        }
        Ok(())
    }
}
