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
    let entries = (1..=MAX_DESCRIPTORS).map(|next| (BUFFER, 1, flags(next), u16::try_from(next).unwrap()));
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
