//! A hostile guest and restless clients, played from a string of bytes: shared by the fuzz target and the tests.

#![allow(clippy::expect_used, clippy::cast_possible_truncation)]

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use vm_memory::{Bytes, GuestAddress};

use super::dialer::Dialer;
use super::limits::Limits;
use super::mux::{Mux, Outside};
use super::packet::{HEADER_LEN, HOST_CID, Header, STREAM};
use super::poll::Poller;
use super::ready::ReadySignal;
use super::thread::{Rounds, Session};
use crate::memory::{GuestMemory, GuestRam};
use crate::virtio::fuzz_entry::{Input, play};
use crate::virtio::test_driver::{DriverQueue, RAM_START, interrupt, ram};

const CID: u64 = 3;
const RAM_SIZE: usize = 256 << 10;
const RING_SIZE: u16 = 16;
/// Where buffers and packets are, beyond the rings.
const BUFFERS: u64 = RAM_START + 0x1_0000;
/// Steps per input.
const STEPS: usize = 200;
/// Small bounds are soon reached.
const LIMITS: Limits = Limits {
    connections: 6,
    room: 64 << 10,
    small_room: 4 << 10,
    memory: 128 << 10,
    resets: 8,
    greeting: Duration::from_secs(5),
    answer: Duration::from_secs(10),
    farewell: Duration::from_secs(8),
    legacy: Duration::from_secs(20),
};

/// Plays an input; returns if all went well, whatever the guest did, and panics otherwise.
pub fn vsock(data: &[u8]) {
    let mut input = Input::new(data);
    let memory = ram(RAM_SIZE);
    let rings = [0, 0x4000, 0x8000].map(|at| DriverQueue::new(memory.clone(), RAM_START + at, RING_SIZE));
    let [rx, tx, events] = rings.each_ref().map(DriverQueue::device_side);
    let (listener, address) = listener();
    let ready = Arc::new(AtomicUsize::new(0));
    let dialer = Dialer::new().expect("an eventfd");
    let outside = Outside {
        guest_cid: CID,
        listener: Arc::new(listener.into()),
        dialer: dialer.clone(),
        ready: signal(&ready),
    };
    let mux = Mux::new(outside, LIMITS, Poller::new().expect("an epoll set")).expect("a listener");
    let lost = Arc::new(AtomicBool::new(input.u8() % 2 == 0));
    let session = Session { memory: memory.clone(), interrupt: interrupt(), mux, rx, tx, events, lost };
    session.with_rounds(|rounds| {
        let clients = Vec::new();
        let mut world = World { memory: &memory, rings, address, dialer, clients, now: Instant::now() };
        for _ in 0..STEPS {
            if input.is_over() {
                break;
            }
            if !world.step(&mut input, rounds) {
                return;
            }
        }
        // The guest ends: once nobody is there who might read, the device has nothing left to do.
        world.dialer.hang_up();
        world.clients.clear();
        let _ = rounds.finish();
    });
    assert!(ready.load(Ordering::SeqCst) <= 1, "ready was told twice");
}

fn signal(count: &Arc<AtomicUsize>) -> Arc<ReadySignal> {
    let count = Arc::clone(count);
    let count_it = move || {
        count.fetch_add(1, Ordering::SeqCst);
    };
    Arc::new(ReadySignal::new(Box::new(count_it)))
}

fn listener() -> (UnixListener, SocketAddr) {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let name = format!("hartpod-fuzz-vsock-{}-{number}", std::process::id());
    let address = SocketAddr::from_abstract_name(name).expect("a name");
    let listener = UnixListener::bind_addr(&address).expect("a socket");
    listener.set_nonblocking(true).expect("a flag");
    (listener, address)
}

struct World<'a> {
    memory: &'a GuestRam,
    rings: [DriverQueue; 3],
    address: SocketAddr,
    dialer: Dialer,
    clients: Vec<UnixStream>,
    /// The device's clock, which the input can advance.
    now: Instant,
}

impl World<'_> {
    /// One thing happens, and the device does its part; `false` once it has stopped.
    fn step(&mut self, input: &mut Input<'_>, rounds: &mut Rounds<'_>) -> bool {
        match input.u8() % 16 {
            0 => {
                let ring = usize::from(input.u8() % 3);
                play(input, self.memory, &mut self.rings[ring]);
            }
            1..=3 => self.offer_buffers(input),
            4..=8 => self.send_packet(input),
            9 => self.now += Duration::from_millis(u64::from(input.u16())),
            10 => self.connect(input),
            _ => self.client_does(input),
        }
        for _ in 0..4 {
            let ready = rounds.ready();
            match rounds.round(&ready, self.now) {
                Ok(more) => {
                    rounds.assert_bounded();
                    if !more {
                        break;
                    }
                }
                Err(_) => return false,
            }
        }
        true
    }

    fn offer_buffers(&mut self, input: &mut Input<'_>) {
        for _ in 0..input.u8() % 8 {
            let length = input.one_of(&[44, 45, 100, 4096, 4096, 4096, 70_000, 0, 43]);
            self.rings[0].add(&[], &[(BUFFERS, 44), (BUFFERS + u64::from(input.u8()), length)]);
        }
    }

    /// A packet that is nearly right.
    fn send_packet(&mut self, input: &mut Input<'_>) {
        let header = Header {
            src_cid: input.one_of(&[CID, CID, CID, CID, CID, CID, 2, u64::MAX]),
            dst_cid: input.one_of(&[HOST_CID, HOST_CID, HOST_CID, HOST_CID, HOST_CID, HOST_CID, CID, 0]),
            src_port: u32::from(input.u8() % 4),
            dst_port: (1 << 30) + u32::from(input.u8() % 8),
            len: 0,
            kind: input.one_of(&[STREAM, STREAM, STREAM, STREAM, STREAM, STREAM, 0, 2]),
            op: input.one_of(&[2, 2, 2, 5, 5, 5, 5, 5, 6, 7, 4, 4, 3, 1, 0, 9]),
            flags: u32::from(input.u8() % 4),
            buf_alloc: input.one_of(&[1 << 18, 1 << 18, 1 << 18, 1, 0, u32::MAX, 1 << 31]),
            fwd_cnt: input.one_of(&[0, 0, 0, 0, 5, 1 << 18, u32::MAX, 1 << 31]),
        };
        let header = match input.u8() {
            0 => Header { dst_port: 1024, op: 1, ..header },
            _ => header,
        };
        let length = input.one_of(&[0, 1, 5, 100, 4096, 30_000, 65_536, 65_537]);
        let claimed = [length, input.u32()][usize::from(input.u8() % 16 == 0)];
        let place = BUFFERS + 0x8000;
        write(self.memory, place, &Header { len: claimed, ..header }.to_bytes());
        let payload = place + HEADER_LEN as u64;
        match input.u8() % 3 {
            0 => self.rings[1].add(&[(place, HEADER_LEN as u32 + length)], &[]),
            1 => self.rings[1].add(&[(place, HEADER_LEN as u32), (payload, length)], &[]),
            _ => self.rings[1].add(&[(place, 20), (place + 20, 26), (payload + 2, length)], &[]),
        };
    }

    fn connect(&mut self, input: &mut Input<'_>) {
        if self.clients.len() >= LIMITS.connections + 2 {
            self.clients.clear();
        }
        if input.u8() % 4 == 0 {
            let own = self.dialer.dial(u32::from(input.u8() % 4), b"and more").expect("a socket");
            let own = UnixStream::from(own);
            own.set_nonblocking(true).expect("a flag");
            return self.clients.push(own);
        }
        let client = UnixStream::connect_addr(&self.address).expect("the device listens");
        client.set_nonblocking(true).expect("a flag");
        let line = match input.u8() % 8 {
            0 => String::from("CONNECT 1"),
            1 => String::from("GET / HTTP/1.1\r\n"),
            2 => String::from_utf8_lossy(&input.bytes::<40>()).into_owned(),
            3 => String::from("CONNECT 1\nand more"),
            port => format!("CONNECT {}\n", port % 4),
        };
        drop((&client).write(line.as_bytes()));
        self.clients.push(client);
    }

    fn client_does(&mut self, input: &mut Input<'_>) {
        if self.clients.is_empty() {
            return self.connect(input);
        }
        let index = usize::from(input.u8()) % self.clients.len();
        let mut client = &self.clients[index];
        let mut bytes = [0x5a; 40_000];
        match input.u8() % 8 {
            0 => drop(self.clients.swap_remove(index)),
            1 => drop(client.shutdown(input.one_of(&[Shutdown::Write, Shutdown::Read, Shutdown::Both]))),
            2..=4 => drop(client.write(&bytes[..usize::from(input.u16()) % bytes.len()])),
            _ => drop(client.read(&mut bytes)),
        }
    }
}

fn write(memory: &GuestMemory, place: u64, bytes: &[u8]) {
    memory.write_slice(bytes, GuestAddress(place)).expect("RAM");
}
