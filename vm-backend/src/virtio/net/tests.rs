//! With a real tap, in a network namespace of the test's own (needs root).

mod sys;

use std::os::fd::{AsFd, OwnedFd};
use std::thread;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};

use super::*;
use crate::virtio::test_driver::{Driver, DriverQueue, Piece, RAM_START, interrupt, ram};

const RX: usize = 0;
const TX: usize = 1;
const MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];

/// A guest's network device, its driver, and the host's end.
struct Rig {
    driver: Driver,
    host: OwnedFd,
}

/// Opens a tap in a new namespace, which lives as long as the tap.
fn tap() -> (OwnedFd, OwnedFd) {
    let opened = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace: needs root");
        let (tap, index) = sys::open_tap().expect("/dev/net/tun");
        (tap, sys::packet_socket(index).unwrap())
    });
    opened.join().unwrap()
}

impl Rig {
    fn new(features: u64) -> Self {
        let (tap, host) = tap();
        let mut driver = Driver::new(ram(8 << 20));
        driver.slot.fill(Box::new(Net::new(tap, MAC, 1500).unwrap())).unwrap();
        driver.start(features, 256);
        Self { driver, host }
    }

    /// Makes `count` buffers of `size` bytes available.
    fn give(&mut self, count: u64, size: u32) {
        let base = RAM_START + (1 << 20);
        for index in 0..count {
            self.driver.queues[RX].add(&[], &[(base + index * 0x10_000, size)]);
        }
        self.driver.kick(0);
    }

    /// The next packet, with its header, from one buffer or several.
    fn received(&mut self) -> Vec<u8> {
        let base = RAM_START + (1 << 20);
        let mut packet = vec![];
        let mut rest = 1;
        while rest > 0 {
            let (head, length) = self.driver.wait_used(RX);
            packet.extend(self.driver.peek(base + u64::from(head) * 0x10_000, length as usize));
            if packet.len() == length as usize {
                rest = u16::from_le_bytes([packet[10], packet[11]]);
            }
            rest -= 1;
        }
        packet
    }

    fn send(&mut self, header: [u8; HEADER], frame: &[u8]) {
        let at = self.driver.free;
        self.driver.poke(at, &header);
        self.driver.poke(at + 12, frame);
        // Cut in the middle of the header, of the addresses and of the rest.
        let length = u32::try_from(frame.len()).unwrap();
        let pieces: [Piece; 4] = [(at, 5), (at + 5, 11), (at + 16, 20), (at + 36, length - 24)];
        let head = self.driver.queues[TX].add(&pieces, &[]);
        self.driver.kick(1);
        assert_eq!(self.driver.wait_used(TX), (head, 0));
    }

    fn host_sends(&self, header: [u8; 10], frame: &[u8]) {
        let packet = [&header[..], frame].concat();
        assert_eq!(rustix::io::write(&self.host, &packet).unwrap(), packet.len());
    }

    /// The next packet at the host that carries our protocol; the kernel has things to say on a new interface too.
    fn host_receives(&self) -> Vec<u8> {
        self.host_receives_such(|packet| packet[12..14] == TYPE)
    }

    fn host_receives_such(&self, wanted: impl Fn(&[u8]) -> bool) -> Vec<u8> {
        let mut packet = vec![0; 70_000];
        loop {
            let length = rustix::io::read(&self.host, &mut packet[..]).unwrap();
            if wanted(&packet[10..]) {
                return packet[10..length].to_vec();
            }
        }
    }
}

/// An EtherType for experiments (IEEE 802).
const TYPE: [u8; 2] = [0x88, 0xb5];

fn frame(length: usize) -> Vec<u8> {
    let mut frame = (0..length).map(|at| at.to_le_bytes()[0]).collect::<Vec<_>>();
    frame[..6].copy_from_slice(&MAC);
    frame[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
    frame[12..14].copy_from_slice(&TYPE);
    frame
}

/// An IPv4 TCP segment of `payload` bytes, far longer than the MTU, and the header that has it cut.
fn segment(payload: usize) -> ([u8; 10], Vec<u8>) {
    let mut packet = frame(14 + 40 + payload);
    packet[12..14].copy_from_slice(&[0x08, 0]);
    let total = u16::try_from(40 + payload).unwrap().to_be_bytes();
    packet[14..34]
        .copy_from_slice(&[0x45, 0, total[0], total[1], 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2]);
    packet[34..54]
        .copy_from_slice(&[0, 80, 0, 80, 0, 0, 0, 1, 0, 0, 0, 1, 0x50, 0x10, 0xff, 0xff, 0, 0, 0, 0]);
    // Needs a checksum; TCP over IPv4; 54 bytes of headers; 1400 to each segment; the sum from 34, 16 on.
    let (length, size, start, offset) = (54_u16.to_le_bytes(), 1400_u16.to_le_bytes(), [34, 0], [16, 0]);
    let header = [1, 1, length[0], length[1], size[0], size[1], start[0], start[1], offset[0], offset[1]];
    (header, packet)
}

/// The next received packet that is one of ours, not of the kernel's making.
fn ours(rig: &mut Rig) -> Vec<u8> {
    loop {
        let packet = rig.received();
        if packet[HEADER..HEADER + 6] == MAC {
            return packet;
        }
    }
}

#[test]
fn a_packet_of_the_guest_reaches_the_host() {
    let mut rig = Rig::new(u64::MAX);
    for length in [60, 200, 1514] {
        rig.send([0; HEADER], &frame(length));
        assert_eq!(rig.host_receives(), frame(length));
    }
}

#[test]
fn a_packet_of_the_host_reaches_the_guest() {
    for features in [u64::MAX, !feature::MERGED_BUFFERS, RING_FEATURES] {
        let mut rig = Rig::new(features);
        rig.give(32, 2048);
        rig.host_sends([0; 10], &frame(1000));
        let packet = ours(&mut rig);
        assert_eq!(packet[..HEADER], [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
        assert_eq!(packet[HEADER..], frame(1000));
    }
}

#[test]
fn a_long_packet_of_the_guest_is_cut_by_the_host() {
    let mut rig = Rig::new(u64::MAX);
    for payload in [3000, 20_000, 65_000] {
        let (header, packet) = segment(payload);
        let mut with_count = [0; HEADER];
        with_count[..10].copy_from_slice(&header);
        rig.send(with_count, &packet);
        let received = rig.host_receives_such(|packet| packet[12..14] == [8, 0] && packet[23] == 6);
        assert_eq!(received[54..], packet[54..], "whole until it leaves the host");
    }
}

#[test]
fn a_long_packet_fills_several_buffers_that_appear_together() {
    let mut rig = Rig::new(u64::MAX);
    rig.give(100, 1536);
    let (header, packet) = segment(60_000);
    rig.host_sends(header, &packet);
    let received = ours(&mut rig);
    assert_eq!(received[..2], [1, 1], "the guest computes the sum and need not cut");
    assert_eq!(u16::from_le_bytes([received[10], received[11]]), 40);
    assert_eq!(received[HEADER + 54..], packet[54..]);
}

#[test]
fn a_guest_that_cannot_take_long_packets_gets_short_ones() {
    let mut rig = Rig::new(!(feature::GUEST_TSO4 | feature::GUEST_TSO6));
    rig.give(100, 1536);
    let (header, packet) = segment(14_000);
    rig.host_sends(header, &packet);
    for index in 0..10 {
        let received = ours(&mut rig);
        assert_eq!(received[HEADER + 54..], packet[54 + index * 1400..][..1400]);
        assert_eq!(received[1], 0);
    }
}

#[test]
fn a_long_packet_waits_for_the_rest_of_its_room() {
    let mut rig = Rig::new(u64::MAX);
    rig.give(5, 1536);
    let (header, packet) = segment(10_000);
    rig.host_sends(header, &packet);
    let base = RAM_START + (1 << 20);
    rig.driver.wire.until(|| (rig.driver.peek(base + 4 * 0x10_000 + 1535, 1) != [0]).then_some(()));
    let index = rig.driver.queues[RX].next_descriptor_index();
    for more in 0..5 {
        rig.driver.queues[RX].add(&[], &[(base + (u64::from(index) + more) * 0x10_000, 1536)]);
    }
    rig.driver.kick(0);
    let received = ours(&mut rig);
    assert_eq!(received[HEADER + 54..], packet[54..]);
}

#[test]
fn a_host_packet_waits_for_buffers() {
    let mut rig = Rig::new(u64::MAX);
    rig.host_sends([0; 10], &frame(500));
    // Sending works meanwhile.
    rig.send([0; HEADER], &frame(60));
    assert_eq!(rig.host_receives(), frame(60));
    rig.give(64, 2048);
    assert_eq!(ours(&mut rig)[HEADER..], frame(500));
}

#[test]
fn without_buffers_nothing_is_read_and_the_kick_is_awaited() {
    let memory = ram(1 << 20);
    let mut ring = DriverQueue::new(std::sync::Arc::clone(&memory), RAM_START, 16);
    let mut queue = ring.device_side();
    let (host, tap) = std::os::unix::net::UnixDatagram::pair().unwrap();
    tap.set_nonblocking(true).unwrap();
    let mut receiver = Receiver::new(u64::MAX);
    host.send(&[7; 100]).unwrap();
    let mut receive = || receiver.receive(tap.as_fd(), &mut queue, &memory, &interrupt()).unwrap();
    assert_eq!(receive(), Received::NoBuffers);
    assert_eq!(receive(), Received::NoBuffers);
    ring.add(&[], &[(RAM_START + 0x8000, 200)]);
    assert_eq!(receive(), Received::NoBuffers);
    assert_eq!(ring.take_used(), Some((0, 100)));
    ring.add(&[], &[(RAM_START + 0x8000, 200)]);
    assert_eq!(receive(), Received::Empty);
}

#[test]
fn the_thread_sleeps_while_a_packet_waits_for_buffers_and_after_the_tap_is_gone() {
    let memory = ram(1 << 20);
    let mut rings = [0, 0x4000].map(|at| DriverQueue::new(Arc::clone(&memory), RAM_START + at, 16));
    let [receive, send] = rings.each_ref().map(DriverQueue::device_side);
    let kick = receive.kick.try_clone().unwrap();
    let (host, tap) = std::os::unix::net::UnixDatagram::pair().unwrap();
    tap.set_nonblocking(true).unwrap();
    let link = Link {
        tap: Arc::new(tap.into()),
        memory: Arc::clone(&memory),
        features: u64::MAX,
        interrupt: interrupt(),
    };
    host.send(&[7; 100]).unwrap();
    let (sender, spent) = std::sync::mpsc::channel();
    let mut worker = Worker::new(Thread::Net).unwrap();
    let started = worker.start(interrupt(), move |stop| {
        let result = link.run(stop, receive, send);
        sender.send(nix::time::clock_gettime(nix::time::ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap()).unwrap();
        result
    });
    thread::sleep(Duration::from_millis(150));
    rings[0].add(&[], &[(RAM_START + 0x8000, 200)]);
    kick.write(1).unwrap();
    let end = Instant::now() + Duration::from_secs(10);
    while rings[0].take_used().is_none() {
        assert!(Instant::now() < end, "the kick is heard");
        thread::sleep(Duration::from_millis(1));
    }
    drop(host);
    rings[0].add(&[], &[(RAM_START + 0x8000, 200)]);
    kick.write(1).unwrap();
    thread::sleep(Duration::from_millis(150));
    started.unwrap();
    drop(worker);
    // It needs a fraction of a millisecond; one that does not sleep takes all that even a busy machine gives it.
    let spent = Duration::from(spent.recv().unwrap());
    assert!(spent < Duration::from_millis(5), "{spent:?} of CPU time");
}

#[test]
fn a_packet_that_all_buffers_together_cannot_hold_is_dropped() {
    let memory = ram(1 << 20);
    let mut ring = DriverQueue::new(std::sync::Arc::clone(&memory), RAM_START, 4);
    let mut queue = ring.device_side();
    let (host, tap) = std::os::unix::net::UnixDatagram::pair().unwrap();
    tap.set_nonblocking(true).unwrap();
    let mut receiver = Receiver::new(u64::MAX);
    for _ in 0..4 {
        ring.add(&[], &[(RAM_START + 0x8000, 200)]);
    }
    host.send(&[7; 900]).unwrap();
    host.send(&[8; 300]).unwrap();
    let received = receiver.receive(tap.as_fd(), &mut queue, &memory, &interrupt()).unwrap();
    assert_eq!(received, Received::Empty);
    assert_eq!(
        (ring.take_used(), ring.take_used(), ring.take_used()),
        (Some((0, 200)), Some((1, 100)), None)
    );
}

#[test]
fn headers_that_ask_for_what_was_not_negotiated_are_dropped() {
    let mut rig = Rig::new(!(feature::CSUM | feature::HOST_TSO4 | feature::HOST_TSO6 | feature::HOST_ECN));
    for start in [[1, 0], [0, 1], [1, 1], [1, 4], [0, 0x80], [2, 0], [0xff, 0xff], [0, 3], [0, 5]] {
        let mut header = [0; HEADER];
        header[..2].copy_from_slice(&start);
        // A checksum that the kernel would take.
        header[6] = 34;
        header[8] = 16;
        rig.send(header, &frame(100));
    }
    rig.send([0; HEADER], &frame(61));
    assert_eq!(rig.host_receives(), frame(61), "the first that went through");
}

#[test]
fn packets_too_short_or_too_long_are_dropped() {
    let mut rig = Rig::new(u64::MAX);
    let at = rig.driver.free;
    for pieces in [vec![(at, 11)], vec![(at, 12)], vec![(at, 25)], vec![(at, 12 + 65535 + 19)]] {
        let head = rig.driver.queues[TX].add(&pieces, &[]);
        rig.driver.kick(1);
        assert_eq!(rig.driver.wait_used(TX), (head, 0));
    }
    rig.send([0; HEADER], &frame(61));
    assert_eq!(rig.host_receives(), frame(61));
}

#[test]
fn a_buffer_that_cannot_hold_a_header_stops_the_device() {
    let mut rig = Rig::new(u64::MAX);
    rig.give(1, 11);
    rig.driver.wait_needs_reset();
    rig.driver.start(u64::MAX, 256);
    rig.give(32, 2048);
    rig.host_sends([0; 10], &frame(100));
    assert_eq!(ours(&mut rig)[HEADER..], frame(100));
}

#[test]
fn the_configuration_tells_address_and_mtu() {
    let rig = Rig::new(u64::MAX);
    let mut config = [0; 12];
    rig.driver.slot.read(0x100, &mut config);
    assert_eq!(config[..6], MAC);
    assert_eq!(u16::from_le_bytes([config[10], config[11]]), 1500);
}

#[test]
fn what_is_no_tap_for_packets_with_headers_is_refused() {
    let (pipe, _) = rustix::pipe::pipe().unwrap();
    assert!(matches!(Net::new(pipe, MAC, 1500), Err(NetError::NoTap { .. })));
    assert!(matches!(Net::new(tap().0, MAC, 67), Err(NetError::Mtu(67))));
}

#[test]
fn offloads_are_those_that_the_kernel_takes_together() {
    assert_eq!(offloads(0), 0);
    assert_eq!(offloads(feature::GUEST_TSO4), 0);
    assert_eq!(offloads(feature::GUEST_CSUM | feature::GUEST_ECN), libc::TUN_F_CSUM);
    assert_eq!(offloads(u64::MAX), 15);
}
