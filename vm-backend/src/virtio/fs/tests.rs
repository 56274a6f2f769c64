use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socketpair};

use super::*;
use crate::share::wire::{MAX_REQUEST, Request};
use crate::virtio::Removal;
use crate::virtio::test_driver::{Driver, RAM_START, ram};

/// Where a test keeps a request, and its answer.
const ASKED: u64 = RAM_START + (1 << 20);
const ANSWER: u64 = ASKED + (256 << 10);

/// A driver, and the server's end.
fn rig() -> (Driver, OwnedFd) {
    let (ours, theirs) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).unwrap();
    let mut driver = Driver::new(ram(4 << 20));
    driver.slot.fill(Box::new(Files::new(ours).unwrap())).unwrap();
    driver.start(u64::MAX, QUEUE_SIZE);
    (driver, theirs)
}

/// A request whose number is `unique`, with nothing in it.
fn request(unique: u64) -> Vec<u8> {
    let mut request = vec![0; 40];
    request[8..16].copy_from_slice(&unique.to_ne_bytes());
    request
}

fn hear(server: &OwnedFd) -> (Request, Vec<u8>) {
    let mut packet = vec![0; MAX_REQUEST + 64];
    let count = recv(server, &mut packet, RecvFlags::empty()).unwrap().0;
    let (header, request) = Request::parse(&packet[..count]).unwrap();
    (header, request.to_vec())
}

fn answer(server: &OwnedFd, number: u64, text: &[u8]) {
    send(server, &[&number.to_ne_bytes()[..], text].concat(), SendFlags::NOSIGNAL).unwrap();
}

fn offer(driver: &mut Driver, queue: usize, request: &[u8], room: u32) -> u16 {
    driver.poke(ASKED, request);
    let asked = [(ASKED, u32::try_from(request.len()).unwrap())];
    let head = match room {
        0 => driver.queues[queue].add(&asked, &[]),
        room => driver.queues[queue].add(&asked, &[(ANSWER, room)]),
    };
    driver.kick(u32::try_from(queue).unwrap());
    head
}

fn error_of(driver: &Driver) -> (i32, u64) {
    let told = driver.peek(ANSWER, 16);
    let error = i32::from_ne_bytes(told[4..8].try_into().unwrap());
    (error, u64::from_ne_bytes(told[8..16].try_into().unwrap()))
}

#[test]
fn it_is_what_the_driver_looks_for() {
    let (driver, _server) = rig();
    assert_eq!(driver.read32(8), 26);
    let mut tag = [0; 36];
    driver.slot.read(0x100, &mut tag);
    assert_eq!(&tag[..8], b"hartpod\0");
    assert_eq!(driver.read32(0x100 + 36), 1);
}

#[test]
fn a_request_goes_to_the_server_and_its_answer_to_who_asked() {
    let (mut driver, server) = rig();
    let first = offer(&mut driver, 1, &request(7), 4096);
    let (header, asked) = hear(&server);
    assert_eq!((header.room, asked), (4096, request(7)));
    let second = offer(&mut driver, 1, &request(8), 24);
    let (other, _) = hear(&server);
    assert_ne!(header.number, other.number);
    // In the other order, and longer than there is room for.
    answer(&server, other.number, &[9; 100]);
    assert_eq!(driver.wait_used(1), (second, 24));
    answer(&server, header.number, b"what was asked for");
    assert_eq!(driver.wait_used(1), (first, 18));
    assert_eq!(driver.peek(ANSWER, 19), b"what was asked for\x09");
}

#[test]
fn what_awaits_no_answer_is_given_back_at_once() {
    let (mut driver, server) = rig();
    let forgotten = offer(&mut driver, 0, &request(1), 0);
    assert_eq!(driver.wait_used(0), (forgotten, 0));
    assert_eq!(hear(&server).0.room, 0);
}

#[test]
fn what_is_no_request_goes_to_nobody() {
    let (mut driver, server) = rig();
    for length in [0, 39, MAX_REQUEST + 1] {
        let head = offer(&mut driver, 1, &vec![1; length], 4096);
        assert_eq!(driver.wait_used(1), (head, 0));
    }
    offer(&mut driver, 1, &request(3), 16);
    assert_eq!(hear(&server).1, request(3));
}

#[test]
fn answers_that_nobody_awaits_are_dropped() {
    let (mut driver, server) = rig();
    for packet in [&b""[..0], b"short", &[0xff; 100]] {
        if !packet.is_empty() {
            send(&server, packet, SendFlags::NOSIGNAL).unwrap();
        }
    }
    let head = offer(&mut driver, 1, &request(3), 16);
    let (header, _) = hear(&server);
    answer(&server, header.number, b"once");
    answer(&server, header.number, b"twice");
    assert_eq!(driver.wait_used(1), (head, 4));
    let next = offer(&mut driver, 1, &request(4), 16);
    answer(&server, hear(&server).0.number, b"next");
    assert_eq!(driver.wait_used(1), (next, 4));
}

#[test]
fn without_its_server_everything_fails_with_eio() {
    let (mut driver, server) = rig();
    let waiting = offer(&mut driver, 1, &request(5), 4096);
    hear(&server);
    drop(server);
    assert_eq!(driver.wait_used(1), (waiting, 16));
    assert_eq!(error_of(&driver), (-libc::EIO, 5));
    let late = offer(&mut driver, 1, &request(6), 4096);
    assert_eq!(driver.wait_used(1), (late, 16));
    assert_eq!(error_of(&driver), (-libc::EIO, 6));
    let forgotten = offer(&mut driver, 0, &request(7), 0);
    assert_eq!(driver.wait_used(0), (forgotten, 0));
}

#[test]
fn a_server_that_does_not_listen_holds_up_its_guest_and_not_the_host() {
    let (mut driver, server) = rig();
    let sent = (0..QUEUE_SIZE - 2).map(|_| offer_large(&mut driver)).count();
    // The device is still there, and can be taken away from a driver that waits.
    driver.write32(0x070, 0);
    driver.start(u64::MAX, QUEUE_SIZE);
    let head = offer(&mut driver, 1, &request(99), 16);
    let found = (0..=sent).map(|_| hear(&server)).find(|(_, request)| request[8..16] == 99_u64.to_ne_bytes());
    answer(&server, found.unwrap().0.number, b"here");
    assert_eq!(driver.wait_used(1), (head, 4));
    driver.slot.empty(Removal::Forced).unwrap();
}

/// Many of them are more than a socket takes.
fn offer_large(driver: &mut Driver) {
    let head = offer(driver, 0, &request(1), 0);
    let mut large = request(2);
    large.resize(100_000, 0);
    // Not waited for: it may be held up.
    let _ = head;
    driver.poke(ASKED, &large);
    driver.queues[1].add(&[(ASKED, 100_000)], &[(ANSWER, 16)]);
    driver.kick(1);
}

#[test]
fn a_driver_that_asks_for_more_than_it_has_places_is_stopped() {
    let (mut driver, server) = rig();
    driver.poke(ASKED, &request(1));
    for _ in 0..2 * QUEUE_SIZE {
        driver.queues[1].add(&[(ASKED, 40)], &[(ANSWER, 16)]);
        driver.kick(1);
        // Taken, and never answered.
        let mut poll = [PollFd::new(&server, PollFlags::IN)];
        let patience = rustix::event::Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
        if driver.read32(0x070) & 64 != 0 || rustix::event::poll(&mut poll, Some(&patience)) == Ok(0) {
            break;
        }
        hear(&server);
    }
    driver.wait_needs_reset();
}
