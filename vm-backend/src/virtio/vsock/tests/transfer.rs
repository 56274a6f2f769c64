//! Bytes, many of them, and who may hold up whom.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::OnceLock;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::super::packet::{MAX_PAYLOAD, Operation};
use super::guest::{Guest, Packet, Socket, end};

/// Bytes that look different at every place, from a start that is different for each stream: a byte lost, doubled or of another stream
/// is noticed.
#[derive(Clone)]
struct Pattern {
    at: usize,
}

impl Pattern {
    /// A prime, so that packets do not line up with it.
    const PERIOD: usize = 1_000_003;

    fn of_stream(number: usize) -> Self {
        Self { at: number * 7919 % Self::PERIOD }
    }

    /// Two periods, so that any piece up to one is contiguous.
    fn bytes() -> &'static [u8] {
        static BYTES: OnceLock<Vec<u8>> = OnceLock::new();
        BYTES.get_or_init(|| {
            let mut state = 0x2545_f491_4f6c_dd1d_u64;
            let mut bytes: Vec<u8> = std::iter::repeat_with(|| {
                state ^= state << 13;
                state ^= state >> 7;
                state ^= state << 17;
                (state >> 32) as u8
            })
            .take(Self::PERIOD)
            .collect();
            bytes.extend_from_within(..);
            bytes
        })
    }

    fn next(&mut self, len: usize) -> &'static [u8] {
        let bytes = &Self::bytes()[self.at..self.at + len];
        self.at = (self.at + len) % Self::PERIOD;
        bytes
    }

    fn check(&mut self, bytes: &[u8]) {
        assert!(self.next(bytes.len()) == bytes, "bytes arrive as they were sent");
    }
}

/// A connection that is written to and read from at once.
struct Flow {
    socket: Socket,
    /// From the guest to the client.
    output: Pattern,
    unsent: usize,
    /// From the client to the guest.
    input: Pattern,
    unreceived: usize,
    /// Flags of the last SHUTDOWN that came.
    ended: u32,
}

impl Flow {
    fn take(&mut self, guest: &mut Guest, packet: &Packet) {
        self.socket.take(packet);
        match packet.operation() {
            Operation::Data => {
                self.input.check(&packet.payload);
                self.unreceived -= packet.payload.len();
                self.socket.consume(guest);
            }
            Operation::Shutdown => {
                assert!(packet.header.flags & 2 == 0 || self.unreceived == 0, "the end comes last");
                self.ended = packet.header.flags;
            }
            Operation::CreditRequest => self.socket.send(guest, Operation::CreditUpdate, &[]),
            Operation::CreditUpdate => {}
            other => panic!("{other:?}"),
        }
    }

    /// Sends a packet if there is one to send and credit for it.
    fn give(&mut self, guest: &mut Guest) {
        let len = self.unsent.min(self.socket.credit() as usize).min(MAX_PAYLOAD as usize);
        if len > 0 {
            self.socket.write(guest, self.output.next(len));
            self.unsent -= len;
            if self.unsent == 0 {
                self.socket.shutdown(guest, 2);
            }
        }
    }
}

/// The client's side of a flow: writes all, reads all, and checks what it reads.
fn client_threads(client: UnixStream, number: usize, bytes: usize) -> [JoinHandle<()>; 2] {
    let mut writer = client.try_clone().unwrap();
    let mut reader = client;
    let write = move || {
        let mut pattern = Pattern::of_stream(2 * number);
        let mut left = bytes;
        while left > 0 {
            let len = left.min(200_000);
            writer.write_all(pattern.next(len)).unwrap();
            left -= len;
        }
        end(&writer);
    };
    let read = move || {
        let mut pattern = Pattern::of_stream(2 * number + 1);
        let mut buffer = vec![0; 150_000];
        let mut left = bytes;
        loop {
            let count = reader.read(&mut buffer).unwrap();
            if count == 0 {
                break;
            }
            pattern.check(&buffer[..count]);
            left -= count;
        }
        assert_eq!(left, 0);
    };
    [thread::spawn(write), thread::spawn(read)]
}

/// Exchanges `bytes` in each direction of each of `streams` connections at once.
fn exchange(streams: usize, bytes: usize) {
    let mut guest = Guest::new();
    let begin = Instant::now();
    let connections: Vec<_> = (0..streams).map(|number| guest.connect(number as u32)).collect();
    let mut flows = Vec::new();
    let mut clients = Vec::new();
    for (number, (client, socket)) in connections.into_iter().enumerate() {
        clients.extend(client_threads(client, number, bytes));
        let (input, output) = (Pattern::of_stream(2 * number), Pattern::of_stream(2 * number + 1));
        flows.push(Flow { socket, output, unsent: bytes, input, unreceived: bytes, ended: 0 });
    }
    let wire = guest.wire();
    // To the end of both directions of each.
    while flows.iter().any(|flow| flow.ended != 3) {
        flows.iter_mut().for_each(|flow| flow.give(&mut guest));
        let can_send = flows.iter().any(|flow| flow.unsent > 0 && flow.socket.credit() > 0);
        let mut next = if can_send { guest.try_receive() } else { Some(wire.until(|| guest.try_receive())) };
        while let Some(packet) = next {
            flows[packet.header.dst_port as usize].take(&mut guest, &packet);
            next = guest.try_receive();
        }
    }
    clients.into_iter().for_each(|client| client.join().unwrap());
    let rate = (2 * streams * bytes) as f64 / begin.elapsed().as_secs_f64() / f64::from(1 << 20);
    println!("{streams} streams, {} MiB each way in all: {rate:.0} MiB/s", (streams * bytes) >> 20);
}

#[test]
fn one_stream_carries_64_mib_each_way_at_once() {
    exchange(1, 64 << 20);
}

#[test]
fn sixteen_streams_carry_64_mib_each_way_at_once() {
    exchange(16, 4 << 20);
}

/// A client that writes until nobody takes it any more.
fn flood(mut client: UnixStream) -> JoinHandle<()> {
    thread::spawn(move || while client.write_all(&[1; 10_000]).is_ok() {})
}

#[test]
fn a_guest_that_does_not_read_one_stream_stops_that_one_and_no_other() {
    let mut guest = Guest::new();
    let (stuck_client, mut stuck) = guest.connect(1);
    let closer = stuck_client.try_clone().unwrap();
    let flooder = flood(stuck_client);
    while stuck.received < stuck.room {
        let packet = guest.receive();
        match packet.operation() {
            Operation::Data => stuck.take(&packet),
            other => panic!("{other:?}"),
        }
    }
    // The host may ask once, and is told that nothing has changed.
    let question = guest.expect(Operation::CreditRequest);
    stuck.take(&question);
    stuck.send(&mut guest, Operation::CreditUpdate, &[]);
    let (mut client, mut socket) = guest.connect(2);
    let writer = thread::spawn(move || client.write_all(&vec![3; 8 << 20]).map(|()| client).unwrap());
    while socket.received < 8 << 20 {
        let packet = guest.receive();
        socket.take(&packet);
        socket.consume(&mut guest);
    }
    let _client = writer.join().unwrap();
    assert_eq!(stuck.received, stuck.room, "not a byte of the other came meanwhile");
    // It reads on, and the stream goes on.
    stuck.consume(&mut guest);
    let data = guest.expect(Operation::Data);
    stuck.take(&data);
    closer.shutdown(std::net::Shutdown::Both).unwrap();
    flooder.join().unwrap();
}

#[test]
fn a_client_that_does_not_read_stops_its_own_stream_by_credit_and_loses_nothing() {
    let mut guest = Guest::new();
    let (client, mut stuck) = guest.connect(1);
    let mut sent = Pattern::of_stream(1);
    let mut total = 0;
    loop {
        while let Some(packet) = guest.try_receive() {
            stuck.take(&packet);
        }
        let len = (stuck.credit() as usize).min(MAX_PAYLOAD as usize);
        if len == 0 {
            guest.wait_sent();
            match guest.receive_within(Duration::from_millis(100)) {
                Some(packet) => stuck.take(&packet),
                None => break,
            }
            continue;
        }
        stuck.write(&mut guest, sent.next(len));
        total += len;
    }
    assert!(total >= stuck.peer_room as usize);
    let (mut other, mut socket) = guest.connect(2);
    for _ in 0..100 {
        socket.write(&mut guest, &[9; 1000]);
        let mut answer = [0; 1000];
        other.read_exact(&mut answer).unwrap();
        assert_eq!(answer, [9; 1000]);
    }
    let mut seen = Pattern::of_stream(1);
    let mut buffer = vec![0; total];
    (&client).read_exact(&mut buffer).unwrap();
    buffer.chunks(100_000).for_each(|piece| seen.check(piece));
    let update = guest.expect(Operation::CreditUpdate);
    stuck.take(&update);
    assert!(stuck.credit() > 0);
}

#[test]
fn busy_streams_share_the_guests_buffers() {
    let mut guest = Guest::new();
    let mut streams: Vec<_> = (0..4).map(|port| guest.connect(port)).collect();
    let closers: Vec<_> = streams.iter().map(|(client, _)| client.try_clone().unwrap()).collect();
    let flooders: Vec<_> = streams.iter().map(|(client, _)| flood(client.try_clone().unwrap())).collect();
    let mut bytes = [0; 4];
    while bytes.iter().sum::<usize>() < 16 << 20 {
        let packet = guest.receive();
        let stream = packet.header.dst_port as usize;
        bytes[stream] += packet.payload.len();
        streams[stream].1.take(&packet);
        streams[stream].1.consume(&mut guest);
    }
    closers.iter().for_each(|client| client.shutdown(std::net::Shutdown::Both).unwrap());
    flooders.into_iter().for_each(|flooder| flooder.join().unwrap());
    let least = *bytes.iter().min().unwrap();
    assert!(least > 1 << 20, "one stream starved: {bytes:?}");
}
