//! A guest's kernel as far as vsock is concerned: real queues in real guest RAM, sockets that obey credit, and a test that says what they
//! do.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering, fence};
use std::time::{Duration, Instant};

use super::super::limits::Limits;
use super::super::packet::{HEADER_LEN, HOST_CID, Header, Operation, STREAM};
use crate::virtio::queue::VERSION_1;
use crate::virtio::test_driver::{Driver, DriverQueue, Piece, RAM_START, Wire, ram};
use crate::virtio::vsock::{Dialer, Vsock};

pub(super) const CID: u64 = 3;
const RX: usize = 0;
const TX: usize = 1;
const EVENTS: usize = 2;
/// Bytes that a socket takes, unless a test says otherwise.
const ROOM: u32 = 256 << 10;

/// As Linux sizes them.
pub(super) const RX_BUFFER: u32 = 4096;
const QUEUE: u16 = 128;
/// Room for one packet of the guest.
const TX_BUFFER: u64 = 68 << 10;
const TX_BUFFERS: u64 = 32;
const RAM: usize = 16 << 20;

/// Long enough for a busy machine, short enough for a failed test.
pub(super) const DEADLINE: Duration = Duration::from_secs(20);

pub(super) struct Guest {
    pub(super) driver: Driver,
    socket: PathBuf,
    _folder: tempfile::TempDir,
    pub(super) ready: Arc<AtomicUsize>,
    pub(super) dialer: Dialer,
    /// Where the receive buffers begin, by descriptor.
    rx_area: u64,
    /// Receive buffers that were given to the device so far.
    rx_offered: u64,
    tx_area: u64,
    tx_sent: u64,
    /// Descriptors of packets that the device has not given back.
    tx_under_way: VecDeque<u16>,
    /// Buffers are given back to the device as soon as they are read.
    pub(super) refill: bool,
    kept: usize,
}

/// A packet that the guest received.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Packet {
    pub(super) header: Header,
    pub(super) payload: Vec<u8>,
}

impl Packet {
    pub(super) fn operation(&self) -> Operation {
        self.header.operation().expect("the device sends operations that there are")
    }
}

impl Guest {
    pub(super) fn new() -> Self {
        Self::with_limits(Limits::default())
    }

    pub(super) fn with_limits(limits: Limits) -> Self {
        let mut guest = Self::unstarted(limits);
        guest.start();
        guest
    }

    /// A guest whose driver has yet to be loaded.
    pub(super) fn unstarted(limits: Limits) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("vsock");
        let listener = UnixListener::bind(&socket).unwrap();
        let ready = Arc::new(AtomicUsize::new(0));
        let raised = Arc::clone(&ready);
        let signal = Box::new(move || {
            raised.fetch_add(1, Ordering::SeqCst);
        });
        let device = Vsock::new(listener.into(), CID, signal).unwrap().with_limits(limits);
        let dialer = device.dialer();
        let mut driver = Driver::new(ram(RAM));
        driver.slot.fill(Box::new(device)).unwrap();
        Self {
            driver,
            socket,
            _folder: folder,
            ready,
            dialer,
            rx_area: 0,
            rx_offered: 0,
            tx_area: 0,
            tx_sent: 0,
            tx_under_way: VecDeque::new(),
            refill: true,
            kept: 0,
        }
    }

    /// Loads the driver, or loads it again after a reset of the device.
    pub(super) fn start(&mut self) {
        // Rings begin empty.
        self.driver.poke(RAM_START, &[0; 3 * DriverQueue::BYTES as usize]);
        self.driver.start(VERSION_1 | 1, QUEUE);
        self.rx_area = self.driver.free;
        self.tx_area = self.rx_area + u64::from(QUEUE) * u64::from(RX_BUFFER);
        self.tx_sent = 0;
        self.tx_under_way.clear();
        self.rx_offered = 0;
        self.kept = usize::from(QUEUE);
        if self.refill {
            self.offer_buffers(usize::from(QUEUE));
        }
    }

    pub(super) fn wire(&self) -> Wire {
        self.driver.wire.clone()
    }

    /// Gives the device this many of the buffers that it does not have.
    pub(super) fn offer_buffers(&mut self, count: usize) {
        assert!(count <= self.kept);
        self.kept -= count;
        for _ in 0..count {
            // Chains of one descriptor each, which are handed out in a circle.
            let place = self.rx_area + self.rx_offered % u64::from(QUEUE) * u64::from(RX_BUFFER);
            self.rx_offered += 1;
            let head = self.driver.queues[RX].add(&[], &[(place, RX_BUFFER)]);
            assert_eq!(self.rx_area + u64::from(head) * u64::from(RX_BUFFER), place);
        }
        self.kick(RX);
    }

    /// Tells the device of a queue unless it asked to be spared, as a driver does (VIRTIO 1.2 section 2.7.13.4).
    fn kick(&mut self, queue: usize) {
        fence(Ordering::SeqCst);
        let flags = self.driver.peek(self.driver.queues[queue].used, 2);
        if flags[0] & 1 == 0 {
            self.driver.kick(queue as u32);
        }
    }

    /// A packet, if one has come.
    pub(super) fn try_receive(&mut self) -> Option<Packet> {
        let (head, written) = self.driver.queues[RX].take_used()?;
        let bytes = self.driver.peek(self.rx_area + u64::from(head) * u64::from(RX_BUFFER), written as usize);
        let header = Header::from_bytes(bytes[..HEADER_LEN].try_into().unwrap());
        assert_eq!(bytes.len(), HEADER_LEN + header.len as usize, "the header tells the length");
        assert_eq!((header.src_cid, header.dst_cid), (HOST_CID, CID));
        self.kept += 1;
        if self.refill {
            self.offer_buffers(1);
        }
        Some(Packet { header, payload: bytes[HEADER_LEN..].to_vec() })
    }

    /// The next packet, waited for.
    pub(super) fn receive(&mut self) -> Packet {
        let wire = self.wire();
        wire.until(|| self.try_receive())
    }

    /// The next packet, which must be this.
    pub(super) fn expect(&mut self, operation: Operation) -> Packet {
        let packet = self.receive();
        assert_eq!(packet.operation(), operation, "{packet:?}");
        packet
    }

    /// A packet that comes within this time.
    pub(super) fn receive_within(&mut self, time: Duration) -> Option<Packet> {
        let end = Instant::now() + time;
        let wire = self.wire();
        wire.until(|| {
            let packet = self.try_receive();
            (packet.is_some() || Instant::now() > end).then_some(packet)
        })
    }

    /// Nothing comes for a while: where nothing can be waited for, this is what is left.
    pub(super) fn expect_silence(&mut self) {
        assert_eq!(self.receive_within(Duration::from_millis(50)), None);
    }

    fn reap_sent(&mut self) {
        while let Some((_, written)) = self.driver.queues[TX].take_used() {
            assert_eq!(written, 0, "the device writes nothing into what it was sent");
            self.tx_under_way.pop_front();
        }
    }

    /// A packet can be sent now or within a moment.
    pub(super) fn can_send(&mut self) -> bool {
        for _ in 0..50 {
            self.reap_sent();
            if (self.tx_under_way.len() as u64) < TX_BUFFERS {
                return true;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        false
    }

    /// Buffers that the device does not have.
    pub(super) fn kept(&self) -> usize {
        self.kept
    }

    fn wait_for_room(&mut self, descriptors: u16) {
        let wire = self.wire();
        wire.until(|| {
            self.reap_sent();
            let taken: u16 = self.tx_under_way.iter().sum();
            let free = (self.tx_under_way.len() as u64) < TX_BUFFERS && taken + descriptors <= QUEUE;
            free.then_some(())
        });
    }

    /// All packets that were sent are with the device, and worked on.
    pub(super) fn wait_sent(&mut self) {
        let wire = self.wire();
        wire.until(|| {
            self.reap_sent();
            self.tx_under_way.is_empty().then_some(())
        });
    }

    /// Sends bytes as one packet, cut into descriptors of these lengths; the rest is the last one.
    pub(super) fn send_bytes(&mut self, bytes: &[u8], cuts: &[usize]) {
        self.wait_for_room(cuts.len() as u16 + 1);
        let base = self.tx_area + (self.tx_sent % TX_BUFFERS) * TX_BUFFER;
        self.tx_sent += 1;
        self.driver.poke(base, bytes);
        let mut pieces: Vec<Piece> = Vec::new();
        let mut at = 0;
        for cut in cuts.iter().copied().chain([usize::MAX]) {
            let len = cut.min(bytes.len() - at);
            if len > 0 {
                pieces.push((base + at as u64, len as u32));
            }
            at += len;
        }
        self.driver.queues[TX].add(&pieces, &[]);
        self.tx_under_way.push_back(pieces.len() as u16);
        self.kick(TX);
    }

    /// Sends a packet, with its header in a descriptor of its own as Linux does.
    pub(super) fn send(&mut self, header: Header, payload: &[u8]) {
        let mut bytes = Header { len: payload.len() as u32, ..header }.to_bytes().to_vec();
        bytes.extend_from_slice(payload);
        self.send_bytes(&bytes, &[HEADER_LEN]);
    }

    /// Gives the device a buffer for an event and returns where it is.
    pub(super) fn offer_event_buffer(&mut self) -> u64 {
        let place = self.tx_area + TX_BUFFERS * TX_BUFFER;
        self.driver.queues[EVENTS].add(&[], &[(place, 4)]);
        self.kick(EVENTS);
        place
    }

    /// How much the device wrote into an event buffer, if it has used one.
    pub(super) fn take_event(&mut self) -> Option<u32> {
        self.driver.queues[EVENTS].take_used().map(|(_, written)| written)
    }

    pub(super) fn receive_event(&mut self) -> u32 {
        self.driver.wait_used(EVENTS).1
    }

    /// A client that has connected and said nothing.
    pub(super) fn client(&self) -> UnixStream {
        let client = UnixStream::connect(&self.socket).unwrap();
        client.set_read_timeout(Some(DEADLINE)).unwrap();
        client.set_write_timeout(Some(DEADLINE)).unwrap();
        client
    }

    /// A client that wants this port.
    pub(super) fn client_for(&self, port: u32) -> UnixStream {
        let mut client = self.client();
        // It fails where the device has refused already; what the client reads tells.
        let _ = writeln!(client, "CONNECT {port}");
        client
    }

    /// An established connection.
    pub(super) fn connect(&mut self, port: u32) -> (UnixStream, Socket) {
        self.connect_with_room(port, ROOM)
    }

    /// The same of a socket that takes `room` bytes and no more.
    pub(super) fn connect_with_room(&mut self, port: u32, room: u32) -> (UnixStream, Socket) {
        let client = self.client_for(port);
        let socket = self.accept_with_room(port, room);
        assert_eq!(read_line(&client), format!("OK {port}\n"));
        (client, socket)
    }

    /// Answers the REQUEST that must be next.
    pub(super) fn accept(&mut self, port: u32) -> Socket {
        self.accept_with_room(port, ROOM)
    }

    fn accept_with_room(&mut self, port: u32, room: u32) -> Socket {
        let request = self.expect(Operation::Request);
        assert_eq!(request.header.dst_port, port);
        let socket = Socket { room, ..Socket::new(&request.header) };
        socket.send(self, Operation::Response, &[]);
        socket
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // So that a failed test does not wait for a thread of a device that waits for a guest.
        self.driver.write32(0x070, 0);
    }
}

/// What the guest's kernel knows of one of its sockets.
#[derive(Debug, Clone)]
pub(super) struct Socket {
    pub(super) guest_port: u32,
    pub(super) host_port: u32,
    /// Room for what it receives.
    pub(super) room: u32,
    pub(super) received: u32,
    /// Read by whoever has the socket.
    pub(super) consumed: u32,
    /// `consumed` as the host knows it.
    told: u32,
    pub(super) sent: u32,
    pub(super) peer_room: u32,
    pub(super) peer_consumed: u32,
}

impl Socket {
    pub(super) fn new(request: &Header) -> Self {
        Self {
            guest_port: request.dst_port,
            host_port: request.src_port,
            room: ROOM,
            received: 0,
            consumed: 0,
            told: 0,
            sent: 0,
            peer_room: request.buf_alloc,
            peer_consumed: request.fwd_cnt,
        }
    }

    pub(super) fn header(&self, operation: Operation) -> Header {
        Header {
            src_cid: CID,
            dst_cid: HOST_CID,
            src_port: self.guest_port,
            dst_port: self.host_port,
            kind: STREAM,
            op: operation as u16,
            buf_alloc: self.room,
            fwd_cnt: self.consumed,
            ..Header::default()
        }
    }

    pub(super) fn send(&self, guest: &mut Guest, operation: Operation, payload: &[u8]) {
        guest.send(self.header(operation), payload);
    }

    pub(super) fn shutdown(&self, guest: &mut Guest, flags: u32) {
        guest.send(Header { flags, ..self.header(Operation::Shutdown) }, &[]);
    }

    /// What it may send.
    pub(super) fn credit(&self) -> u32 {
        self.peer_room - self.sent.wrapping_sub(self.peer_consumed)
    }

    /// Sends data within its credit.
    pub(super) fn write(&mut self, guest: &mut Guest, payload: &[u8]) {
        assert!(payload.len() as u32 <= self.credit());
        self.sent = self.sent.wrapping_add(payload.len() as u32);
        self.send(guest, Operation::Data, payload);
        self.told = self.consumed;
    }

    /// Takes in a packet of its connection; the host must stay within the credit that it has.
    pub(super) fn take(&mut self, packet: &Packet) {
        assert_eq!((packet.header.src_port, packet.header.dst_port), (self.host_port, self.guest_port));
        self.peer_room = packet.header.buf_alloc;
        self.peer_consumed = packet.header.fwd_cnt;
        assert!(
            self.sent.wrapping_sub(self.peer_consumed) <= self.peer_room,
            "the host acknowledges too much"
        );
        if packet.operation() == Operation::Data {
            assert!(!packet.payload.is_empty());
            self.received = self.received.wrapping_add(packet.payload.len() as u32);
            assert!(
                self.received.wrapping_sub(self.consumed) <= self.room,
                "the host sends beyond its credit"
            );
        }
    }

    /// Someone in the guest has read everything that has come; tells the host when it matters.
    pub(super) fn consume(&mut self, guest: &mut Guest) {
        self.consumed = self.received;
        if self.consumed.wrapping_sub(self.told) > self.room / 2 {
            self.told = self.consumed;
            self.send(guest, Operation::CreditUpdate, &[]);
        }
    }
}

/// What comes for a socket up to a SHUTDOWN that ends at least these directions of the host.
pub(super) fn until_shutdown(guest: &mut Guest, socket: &mut Socket, flags: u32) -> Vec<u8> {
    let mut all = Vec::new();
    loop {
        let packet = guest.receive();
        socket.take(&packet);
        match packet.operation() {
            Operation::Data => all.extend(packet.payload),
            Operation::Shutdown if packet.header.flags & flags == flags => return all,
            Operation::Shutdown | Operation::CreditRequest | Operation::CreditUpdate => {}
            other => panic!("{other:?}"),
        }
        socket.consume(guest);
    }
}

/// A line of a client, and no byte more.
pub(super) fn read_line(client: &UnixStream) -> String {
    let mut line = String::new();
    BufReader::with_capacity(1, client).read_line(&mut line).unwrap();
    line
}

/// Ends the client's direction.
pub(super) fn end(client: &UnixStream) {
    client.shutdown(Shutdown::Write).unwrap();
}
