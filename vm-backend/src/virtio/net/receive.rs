//! From the tap to the guest.
//!
//! A packet is read straight into the buffers that the guest has made available, several for one packet where it allowed that. How
//! long the next packet is the kernel does not tell, and what finds no room it cuts off: so a spare buffer of the longest packet's length
//! stands behind the guest's. A packet that reaches into it waits for more buffers of the guest.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;

use virtio_queue::QueueT;
use vm_memory::VolatileSlice;

use super::{BATCH, HEADER, MAX_FRAME, feature};
use crate::memory::GuestMemory;
use crate::virtio::chain::{Chain, QueueError};
use crate::virtio::sys::{self, At, MAX_BUFFERS};
use crate::virtio::{ActiveQueue, Interrupt};

/// Why receiving ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Received {
    /// The tap has nothing more.
    Empty,
    /// The batch is over; there may be more.
    More,
    /// The guest has made too few buffers available.
    NoBuffers,
    /// The tap will never have anything more.
    Gone,
}

/// What is kept from one packet to the next.
#[derive(Debug)]
pub struct Receiver<'m> {
    merged: bool,
    /// Room that is asked for before a packet is read: enough for all that is usual.
    wanted: u64,
    /// Buffers of the guest that have nothing in them yet.
    ready: VecDeque<Chain<'m>>,
    room: u64,
    /// Pieces of memory that the buffers are in.
    pieces: usize,
    spare: Vec<u8>,
    waiting: Option<Waiting>,
}

/// A packet that waits for more buffers of the guest: its beginning is in `ready`, its rest in `spare`.
#[derive(Debug, Clone, Copy)]
struct Waiting {
    length: u64,
    /// Bytes of it that are in the guest's buffers: the room that there was when it was read.
    filled: u64,
}

/// Where the number of buffers stands in a header.
const BUFFERS_AT: u64 = 10;

impl<'m> Receiver<'m> {
    #[must_use]
    pub fn new(features: u64) -> Self {
        let large = features & (feature::GUEST_TSO4 | feature::GUEST_TSO6) != 0;
        let usual = if large { MAX_FRAME } else { 1518 };
        Self {
            merged: features & feature::MERGED_BUFFERS != 0,
            wanted: (HEADER + usual) as u64,
            ready: VecDeque::new(),
            room: 0,
            pieces: 0,
            spare: vec![0; HEADER + MAX_FRAME],
            waiting: None,
        }
    }

    /// Receives at most a batch of packets.
    ///
    /// # Errors
    /// The driver broke the queue; the device cannot go on.
    pub fn receive(
        &mut self,
        tap: BorrowedFd<'_>,
        queue: &mut ActiveQueue,
        memory: &'m GuestMemory,
        interrupt: &Interrupt,
    ) -> Result<Received, QueueError> {
        let mut packets = 0;
        let end = loop {
            if packets == BATCH {
                break Received::More;
            }
            match self.receive_one(tap, queue, memory)? {
                None => packets += 1,
                Some(end) => break end,
            }
        };
        if packets > 0 {
            queue.interrupt(memory, interrupt)?;
        }
        Ok(end)
    }

    /// One packet; or why there is none.
    fn receive_one(
        &mut self,
        tap: BorrowedFd<'_>,
        queue: &mut ActiveQueue,
        memory: &'m GuestMemory,
    ) -> Result<Option<Received>, QueueError> {
        if let Some(Waiting { length, filled }) = self.waiting {
            self.gather(queue, memory, length)?;
            return match () {
                () if self.room >= length => {
                    self.waiting = None;
                    self.copy_rest(filled, length)?;
                    self.deliver(queue, memory, length)
                }
                () if self.all_given(queue) => {
                    // All of the guest's buffers are too small together.
                    self.waiting = None;
                    Ok(None)
                }
                () => Ok(Some(Received::NoBuffers)),
            };
        }
        self.gather(queue, memory, self.wanted)?;
        if self.ready.is_empty() {
            return Ok(Some(Received::NoBuffers));
        }
        let length = match self.read(tap) {
            Ok(length) => length,
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(Some(Received::Empty)),
            Err(_) => return Ok(Some(Received::Gone)),
        };
        match length {
            0 => Ok(Some(Received::Gone)),
            length if length <= self.room => self.deliver(queue, memory, length),
            length => {
                // Without merging one buffer is all that a packet gets.
                self.waiting = self.merged.then_some(Waiting { length, filled: self.room });
                Ok(None)
            }
        }
    }

    /// Takes buffers of the guest until there is room for `wanted` bytes, or without merging one.
    fn gather(
        &mut self,
        queue: &mut ActiveQueue,
        memory: &'m GuestMemory,
        wanted: u64,
    ) -> Result<(), QueueError> {
        while self.room < wanted && !self.all_given(queue) && (self.merged || self.ready.is_empty()) {
            let Some(chain) = queue.next_chain(memory)? else { break };
            // The header must fit the first one, and any may be that (section 5.1.6.3.1).
            if chain.writable.len() < HEADER as u64 {
                return Err(QueueError::Short);
            }
            // The spare buffer must still be the last one of the call. No driver makes so many pieces.
            self.pieces += chain.writable.pieces();
            if self.pieces >= MAX_BUFFERS {
                return Err(QueueError::TooLong(self.pieces));
            }
            self.room += chain.writable.len();
            self.ready.push_back(chain);
        }
        Ok(())
    }

    /// Whether the guest cannot give more than it has.
    fn all_given(&self, queue: &ActiveQueue) -> bool {
        self.ready.len() >= usize::from(queue.queue.size())
    }

    fn read(&mut self, tap: BorrowedFd<'_>) -> io::Result<u64> {
        let mut pieces = Vec::with_capacity(self.pieces + 1);
        for chain in &mut self.ready {
            pieces.extend_from_slice(chain.writable.slices());
        }
        pieces.push(VolatileSlice::from(&mut self.spare[..]));
        sys::read_into(tap, &pieces, At::Packet).map(|length| length as u64)
    }

    /// Copies what a packet has in `spare` behind the first `filled` bytes of the buffers.
    fn copy_rest(&mut self, filled: u64, length: u64) -> Result<(), QueueError> {
        let mut skip = filled;
        let rest = usize::try_from(length - filled).map_err(|_| QueueError::Short)?;
        let mut rest = self.spare.get(..rest).ok_or(QueueError::Short)?;
        for chain in &self.ready {
            let mut room = chain.writable.clone();
            let skipped = skip.min(room.len());
            room.take(skipped)?;
            skip -= skipped;
            let count = rest.len().min(usize::try_from(room.len()).unwrap_or(usize::MAX));
            let (now, later) = rest.split_at(count);
            room.write(now)?;
            rest = later;
        }
        Ok(())
    }

    /// Gives the buffers that the packet fills to the driver, the first telling how many there are.
    fn deliver(
        &mut self,
        queue: &mut ActiveQueue,
        memory: &GuestMemory,
        length: u64,
    ) -> Result<Option<Received>, QueueError> {
        let mut used = Vec::new();
        let mut rest = length;
        let mut header = None;
        while rest > 0 {
            let chain = self.ready.pop_front().ok_or(QueueError::Short)?;
            let room = chain.writable.len();
            self.room -= room;
            self.pieces -= chain.writable.pieces();
            let filled = rest.min(room);
            rest -= filled;
            used.push((chain.head, u32::try_from(filled).map_err(|_| QueueError::TooLarge)?));
            header.get_or_insert(chain.writable);
        }
        let mut header = header.ok_or(QueueError::Short)?;
        header.take(BUFFERS_AT)?;
        // At most the queue's size.
        header.write(&u16::try_from(used.len()).unwrap_or(u16::MAX).to_le_bytes())?;
        queue.complete_together(memory, &used)?;
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixDatagram;

    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::virtio::test_driver::{DriverQueue, Piece, RAM_START, interrupt, ram};

    #[test]
    fn a_packet_whose_buffers_come_one_by_one_is_whole() {
        const BUFFERS: [Piece; 4] = [
            (RAM_START + 0x4000, 700),
            (RAM_START + 0x5000, 300),
            (RAM_START + 0x6000, 13),
            (RAM_START + 0x7000, 4000),
        ];
        let memory = ram(64 << 10);
        let mut ring = DriverQueue::new(memory.clone(), RAM_START, 16);
        let mut queue = ring.device_side();
        let (host, tap) = UnixDatagram::pair().unwrap();
        tap.set_nonblocking(true).unwrap();
        let packet: Vec<u8> = (0..3000_u32).map(|at| at.to_le_bytes()[0] ^ at.to_le_bytes()[1]).collect();
        host.send(&packet).unwrap();
        let (mut receiver, raised) = (Receiver::new(feature::ALL), interrupt());
        for buffer in BUFFERS {
            assert_eq!(ring.take_used(), None);
            ring.add(&[], &[buffer]);
            let end = receiver.receive(tap.as_fd(), &mut queue, &memory, &raised).unwrap();
            assert_eq!(end, Received::NoBuffers);
        }
        let mut received = Vec::new();
        for (at, _) in BUFFERS {
            let (_, length) = ring.take_used().unwrap();
            let mut piece = vec![0; length as usize];
            memory.read_slice(&mut piece, GuestAddress(at)).unwrap();
            received.extend(piece);
        }
        assert_eq!(received[10..12], [4, 0]);
        assert_eq!(received[12..], packet[12..]);
    }
}
