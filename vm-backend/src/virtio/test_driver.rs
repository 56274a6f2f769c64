//! The driver's side, as a guest's kernel would play it: for tests and fuzzing. What cannot be panics, as in a test.
#![allow(clippy::expect_used)]

use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use virtio_queue::desc::split::Descriptor;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::{ActiveQueue, Interrupt, Line, QUEUES, Slot};
use crate::memory::{GuestMemory, GuestRam};

/// Where the RAM of [`ram`] begins, so that low addresses are none.
pub const RAM_START: u64 = 0x8000_0000;

/// Descriptor flags (VIRTIO 1.2 section 2.7.5).
pub const NEXT: u16 = 1;
pub const WRITE: u16 = 2;
pub const INDIRECT: u16 = 4;

/// How long a test waits for a device before it is failed.
const DEADLINE: Duration = Duration::from_secs(10);

/// Guest RAM of `size` bytes, in two regions that touch: buffers may span them.
///
/// # Panics
/// There is no memory.
pub fn ram(size: usize) -> GuestRam {
    let half = size / 2;
    let second = GuestAddress(RAM_START + half as u64);
    let regions = [(GuestAddress(RAM_START), half), (second, size - half)];
    Arc::new(GuestMemory::from_ranges(&regions).expect("guest RAM"))
}

/// Kicks as a VMM makes them.
///
/// # Panics
/// There are no descriptors.
pub fn kicks() -> [EventFd; QUEUES] {
    std::array::from_fn(|_| EventFd::new(EFD_CLOEXEC | EFD_NONBLOCK).expect("eventfd"))
}

/// A wire that counts how often it was raised.
#[derive(Debug, Clone, Default)]
pub struct Wire(Arc<(Mutex<u64>, Condvar)>);

impl Line for Wire {
    fn set(&self, high: bool) {
        if high {
            *self.count() += 1;
            self.0.1.notify_all();
        }
    }
}

impl Wire {
    fn count(&self) -> std::sync::MutexGuard<'_, u64> {
        self.0.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// How often it was raised.
    #[must_use]
    pub fn raised(&self) -> u64 {
        *self.count()
    }

    /// Waits until `done` says something, looking again after each interrupt.
    ///
    /// # Panics
    /// It does not happen in time.
    pub fn until<T>(&self, mut done: impl FnMut() -> Option<T>) -> T {
        let end = Instant::now() + DEADLINE;
        loop {
            let count = self.count();
            if let Some(value) = done() {
                return value;
            }
            assert!(Instant::now() < end, "the device did not answer in time");
            drop(self.0.1.wait_timeout(count, Duration::from_millis(20)));
        }
    }
}

/// A buffer of a chain: where, and how long.
pub type Piece = (u64, u32);

/// The driver's side of a queue. Descriptors are handed out in a circle and never freed: as long as fewer chains are under way than the
/// ring has descriptors that is enough.
#[derive(Debug)]
pub struct DriverQueue {
    memory: GuestRam,
    pub size: u16,
    pub descriptors: u64,
    pub available: u64,
    pub used: u64,
    next_descriptor: u16,
    next_available: u16,
    next_used: u16,
}

impl DriverQueue {
    /// Bytes that the rings of the largest queue here take.
    pub const BYTES: u64 = 0x4000;

    /// Lays out empty rings of `size` from `base` on.
    #[must_use]
    pub fn new(memory: GuestRam, base: u64, size: u16) -> Self {
        let available = base + u64::from(size) * 16;
        let used = (available + 6 + u64::from(size) * 2).next_multiple_of(4);
        Self {
            memory,
            size,
            descriptors: base,
            available,
            used,
            next_descriptor: 0,
            next_available: 0,
            next_used: 0,
        }
    }

    /// What a device works with, without a transport.
    ///
    /// # Panics
    /// The rings are not in RAM.
    #[must_use]
    pub fn device_side(&self) -> ActiveQueue {
        let mut queue = Queue::new(self.size).expect("a power of two");
        queue.try_set_desc_table_address(GuestAddress(self.descriptors)).expect("aligned");
        queue.try_set_avail_ring_address(GuestAddress(self.available)).expect("aligned");
        queue.try_set_used_ring_address(GuestAddress(self.used)).expect("aligned");
        queue.set_ready(true);
        assert!(queue.is_valid(&*self.memory));
        ActiveQueue {
            queue,
            kick: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).expect("eventfd"),
            counters: Arc::default(),
        }
    }

    /// Where the next chain begins.
    #[must_use]
    pub fn next_descriptor_index(&self) -> u16 {
        self.next_descriptor
    }

    /// Writes descriptor `index`.
    pub fn descriptor(&self, index: u16, (address, length): Piece, flags: u16, next: u16) {
        let descriptor = Descriptor::new(address, length, flags, next);
        let place = self.descriptors + u64::from(index % self.size) * 16;
        self.memory.write_obj(descriptor, GuestAddress(place)).expect("rings in RAM");
    }

    /// Makes the chain at `head` available.
    pub fn offer(&mut self, head: u16) {
        let place = self.available + 4 + u64::from(self.next_available % self.size) * 2;
        self.memory.write_obj(head.to_le(), GuestAddress(place)).expect("rings in RAM");
        self.next_available = self.next_available.wrapping_add(1);
        self.set_available_index(self.next_available);
    }

    /// Claims that this many chains were made available in all.
    pub fn set_available_index(&self, index: u16) {
        let place = GuestAddress(self.available + 2);
        self.memory.store(index.to_le(), place, Ordering::Release).expect("rings in RAM");
    }

    /// Asks for no interrupts (or for them again).
    pub fn set_no_interrupt(&self, quiet: bool) {
        self.memory.write_obj(u16::from(quiet).to_le(), GuestAddress(self.available)).expect("rings in RAM");
    }

    /// Adds a chain and returns its head.
    pub fn add(&mut self, readable: &[Piece], writable: &[Piece]) -> u16 {
        let head = self.next_descriptor;
        let pieces =
            readable.iter().map(|piece| (*piece, 0)).chain(writable.iter().map(|piece| (*piece, WRITE)));
        let last = readable.len() + writable.len() - 1;
        for (place, (piece, flags)) in pieces.enumerate() {
            let index = self.next_descriptor;
            self.next_descriptor = (index + 1) % self.size;
            let flags = if place == last { flags } else { flags | NEXT };
            self.descriptor(index, piece, flags, self.next_descriptor);
        }
        self.offer(head);
        head
    }

    /// The next chain that the device gave back: its head, and how much it wrote.
    pub fn take_used(&mut self) -> Option<(u16, u32)> {
        let index: u16 =
            self.memory.load(GuestAddress(self.used + 2), Ordering::Acquire).expect("rings in RAM");
        if u16::from_le(index) == self.next_used {
            return None;
        }
        let place = GuestAddress(self.used + 4 + u64::from(self.next_used % self.size) * 8);
        let [head, written]: [u32; 2] = self.memory.read_obj(place).expect("rings in RAM");
        self.next_used = self.next_used.wrapping_add(1);
        Some((u16::try_from(u32::from_le(head)).expect("a head"), u32::from_le(written)))
    }
}

/// A driver of the device in a slot.
#[derive(Debug)]
pub struct Driver {
    pub slot: Slot,
    pub wire: Wire,
    pub memory: GuestRam,
    pub queues: Vec<DriverQueue>,
    /// The first byte of RAM that no ring takes.
    pub free: u64,
}

impl Driver {
    /// An empty slot over `memory`.
    #[must_use]
    pub fn new(memory: GuestRam) -> Self {
        let wire = Wire::default();
        let slot = Slot::new(Box::new(wire.clone()), kicks(), Arc::clone(&memory));
        Self { slot, wire, memory, queues: Vec::new(), free: RAM_START }
    }

    #[must_use]
    pub fn read32(&self, offset: u64) -> u32 {
        let mut data = [0; 4];
        self.slot.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    pub fn write32(&mut self, offset: u64, value: u32) {
        self.slot.write(offset, &value.to_le_bytes());
    }

    /// Sets the device up as Linux does, with those of `wanted` features that it offers and all of its queues, of `size` or less.
    pub fn start(&mut self, wanted: u64, size: u16) {
        for status in [0, 1, 3] {
            self.write32(0x070, status);
        }
        for half in [0, 1] {
            self.write32(0x014, half);
            let offered = self.read32(0x010);
            self.write32(0x024, half);
            // Cut to the half in question.
            #[allow(clippy::cast_possible_truncation)]
            self.write32(0x020, offered & (wanted >> (32 * half)) as u32);
        }
        self.write32(0x070, 11);
        assert_eq!(self.read32(0x070), 11, "the device takes the features");
        self.queues.clear();
        self.free = RAM_START;
        for index in 0..u32::try_from(QUEUES).expect("few") {
            self.write32(0x030, index);
            let max = u16::try_from(self.read32(0x034)).expect("at most 32768");
            if max == 0 {
                break;
            }
            assert_eq!(self.read32(0x044), 0, "no queue is ready after a reset");
            self.set_up_queue(size.min(max));
        }
        self.write32(0x070, 15);
    }

    fn set_up_queue(&mut self, size: u16) {
        let queue = DriverQueue::new(Arc::clone(&self.memory), self.free, size);
        // As drivers do: what an earlier one has left there would be taken for news.
        self.poke(self.free, &vec![0; usize::try_from(DriverQueue::BYTES).expect("few")]);
        self.free += DriverQueue::BYTES;
        let places = [(0x080, queue.descriptors), (0x090, queue.available), (0x0a0, queue.used)];
        self.write32(0x038, size.into());
        for (register, address) in places {
            let [low, high] =
                [address & 0xffff_ffff, address >> 32].map(|half| u32::try_from(half).expect("a half"));
            self.write32(register, low);
            self.write32(register + 4, high);
        }
        self.write32(0x044, 1);
        assert_eq!(self.read32(0x044), 1);
        self.queues.push(queue);
    }

    /// Tells the device that there is something in queue `index`.
    pub fn kick(&mut self, index: u32) {
        self.write32(0x050, index);
    }

    /// Waits until the device gave a chain of queue `index` back.
    pub fn wait_used(&mut self, index: usize) -> (u16, u32) {
        let queue = &mut self.queues[index];
        self.wire.until(|| queue.take_used())
    }

    /// Waits until the device asked for a reset.
    pub fn wait_needs_reset(&self) {
        self.wire.until(|| (self.read32(0x070) & 64 != 0).then_some(()));
    }

    /// Copies `data` to guest address `at`.
    pub fn poke(&self, at: u64, data: &[u8]) {
        self.memory.write_slice(data, GuestAddress(at)).expect("RAM");
    }

    /// Copies `count` bytes from guest address `at`.
    #[must_use]
    pub fn peek(&self, at: u64, count: usize) -> Vec<u8> {
        let mut data = vec![0; count];
        self.memory.read_slice(&mut data, GuestAddress(at)).expect("RAM");
        data
    }
}

/// An interrupt that goes nowhere in particular.
#[must_use]
pub fn interrupt() -> Arc<Interrupt> {
    Arc::new(Interrupt::new(Box::new(Wire::default())))
}
