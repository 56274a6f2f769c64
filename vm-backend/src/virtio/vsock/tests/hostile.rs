//! Guests that lie.

use std::io::{Read, Write};
use std::sync::atomic::Ordering;

use super::super::packet::{HEADER_LEN, HOST_CID, Header, MAX_PAYLOAD, Operation, STREAM};
use super::guest::{CID, Guest, Socket};

fn stray(op: u16) -> Header {
    Header {
        src_cid: CID,
        dst_cid: HOST_CID,
        src_port: 5000,
        dst_port: 1 << 30,
        kind: STREAM,
        op,
        buf_alloc: 1 << 18,
        ..Header::default()
    }
}

/// The connection works both ways.
fn assert_alive(guest: &mut Guest, client: &mut std::os::unix::net::UnixStream, socket: &mut Socket) {
    client.write_all(b"ping").unwrap();
    let data = guest.expect(Operation::Data);
    socket.take(&data);
    assert_eq!(data.payload, b"ping");
    socket.write(guest, b"pong");
    let mut answer = [0; 4];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"pong");
}

#[test]
fn packets_of_no_connection_are_reset_but_resets_are_not() {
    let mut guest = Guest::new();
    for op in [0, 1, 2, 4, 5, 6, 7, 8, 0xffff] {
        guest.send(stray(op), b"x");
        let reset = guest.expect(Operation::Reset).header;
        assert_eq!((reset.src_port, reset.dst_port), (1 << 30, 5000), "op {op}");
    }
    guest.send(stray(Operation::Reset as u16), &[]);
    guest.expect_silence();
}

#[test]
fn packets_of_another_type_are_reset_in_it_and_harm_no_stream() {
    let mut guest = Guest::new();
    let (mut client, mut socket) = guest.connect(1);
    for kind in [0, 2, 0xffff] {
        guest.send(Header { kind, ..socket.header(Operation::Data) }, b"x");
        assert_eq!(guest.expect(Operation::Reset).header.kind, kind);
    }
    assert_alive(&mut guest, &mut client, &mut socket);
}

#[test]
fn packets_from_or_to_someone_else_are_ignored() {
    let mut guest = Guest::new();
    let (mut client, mut socket) = guest.connect(1);
    let data = socket.header(Operation::Data);
    guest.send(Header { src_cid: 4, ..data }, b"forged");
    guest.send(Header { src_cid: HOST_CID, ..data }, b"forged");
    guest.send(Header { dst_cid: CID, ..data }, b"forged");
    guest.send(Header { src_cid: 4, dst_port: 1024, ..stray(Operation::Request as u16) }, &[]);
    guest.wait_sent();
    assert_eq!(guest.ready.load(Ordering::SeqCst), 0);
    assert_alive(&mut guest, &mut client, &mut socket);
}

#[test]
fn another_ports_packets_do_not_reach_a_connection() {
    let mut guest = Guest::new();
    let (mut client, mut socket) = guest.connect(1);
    guest.send(Header { src_port: 2, ..socket.header(Operation::Reset) }, &[]);
    guest.send(Header { src_port: 2, ..socket.header(Operation::Data) }, b"forged");
    guest.expect(Operation::Reset);
    assert_alive(&mut guest, &mut client, &mut socket);
}

/// What ends a connection with RST, and the client's with it.
#[test]
fn lies_cost_the_connection_and_no_other() {
    type Lie = fn(&mut Guest, &Socket);
    let lies: [(&str, Lie); 8] = [
        ("more bytes than it has credit for", |guest, socket| {
            for _ in 0..10 {
                let chunk = vec![0; MAX_PAYLOAD as usize];
                socket.send(guest, Operation::Data, &chunk);
            }
        }),
        ("a length beyond its bytes", |guest, socket| {
            let header = Header { len: 100, ..socket.header(Operation::Data) };
            let mut bytes = header.to_bytes().to_vec();
            bytes.extend_from_slice(&[0; 99]);
            guest.send_bytes(&bytes, &[HEADER_LEN]);
        }),
        ("a length of everything", |guest, socket| {
            let header = Header { len: u32::MAX, ..socket.header(Operation::Data) };
            guest.send_bytes(&header.to_bytes(), &[]);
        }),
        ("bytes acknowledged that it was never sent", |guest, socket| {
            guest.send(Header { fwd_cnt: 1, ..socket.header(Operation::CreditUpdate) }, &[]);
        }),
        ("bytes acknowledged backwards", |guest, socket| {
            guest.send(Header { fwd_cnt: u32::MAX / 2 + 9, ..socket.header(Operation::CreditUpdate) }, &[]);
        }),
        ("a second answer", |guest, socket| socket.send(guest, Operation::Response, &[])),
        ("bytes after their end", |guest, socket| {
            socket.shutdown(guest, 2);
            socket.send(guest, Operation::Data, b"x");
        }),
        ("more than a packet may hold", |guest, socket| {
            let header = Header { len: MAX_PAYLOAD + 1, ..socket.header(Operation::Data) };
            let mut bytes = header.to_bytes().to_vec();
            bytes.resize(HEADER_LEN + MAX_PAYLOAD as usize + 1, 0);
            guest.send_bytes(&bytes, &[HEADER_LEN]);
        }),
    ];
    let mut guest = Guest::new();
    let (mut client, mut socket) = guest.connect(1);
    for (name, lie) in lies {
        println!("{name}");
        let (mut victim, lying) = guest.connect(2);
        lie(&mut guest, &lying);
        loop {
            let packet = guest.receive();
            if packet.operation() == Operation::Reset {
                assert_eq!(packet.header.src_port, lying.host_port);
                break;
            }
            assert_eq!(packet.operation(), Operation::CreditUpdate);
        }
        let mut rest = Vec::new();
        victim.read_to_end(&mut rest).unwrap();
        guest.wait_sent();
        while guest.try_receive().is_some() {}
        assert_alive(&mut guest, &mut client, &mut socket);
    }
}

#[test]
fn a_packet_may_come_in_any_number_of_pieces() {
    let mut guest = Guest::new();
    let (mut client, mut socket) = guest.connect(1);
    for cuts in [vec![], vec![1; 60], vec![20, 20, 20, 20], vec![43, 2], vec![HEADER_LEN, 1, 1, 1]] {
        let payload: Vec<u8> = (0..100).collect();
        let header = Header { len: 100, ..socket.header(Operation::Data) };
        let mut bytes = header.to_bytes().to_vec();
        bytes.extend_from_slice(&payload);
        guest.send_bytes(&bytes, &cuts);
        socket.sent += 100;
        let mut answer = [0; 100];
        client.read_exact(&mut answer).unwrap();
        assert_eq!(answer[..], payload[..], "{cuts:?}");
    }
    // Bytes behind the packet's length belong to nobody.
    let mut bytes = Header { len: 1, ..socket.header(Operation::Data) }.to_bytes().to_vec();
    bytes.extend_from_slice(b"abc");
    guest.send_bytes(&bytes, &[]);
    socket.sent += 1;
    let mut answer = [0; 1];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"a");
    assert_alive(&mut guest, &mut client, &mut socket);
}

#[test]
fn a_chain_too_short_for_a_header_is_given_back() {
    let mut guest = Guest::new();
    guest.send_bytes(&[0xff; HEADER_LEN - 1], &[]);
    guest.wait_sent();
    guest.expect_silence();
    guest.connect(1);
}

#[test]
fn a_guest_that_provokes_resets_and_takes_none_is_not_read_any_more() {
    let mut guest = Guest::new();
    let (mut client, mut socket) = guest.connect(1);
    guest.refill = false;
    // All buffers fill up with resets, then 64 more wait, then packets stay where they are.
    let mut sent = 0;
    while guest.can_send() {
        guest.send(stray(Operation::Data as u16), &[]);
        sent += 1;
        assert!(sent < 1000, "something bounds it");
    }
    assert!(sent > 128 + 64);
    let mut resets = 0;
    guest.refill = true;
    while resets < sent {
        match guest.receive().operation() {
            Operation::Reset => resets += 1,
            other => panic!("{other:?}"),
        }
        guest.offer_buffers(1.min(guest.kept()));
    }
    guest.wait_sent();
    assert_alive(&mut guest, &mut client, &mut socket);
}

#[test]
fn a_broken_ring_stops_the_device_until_it_is_reset() {
    let mut guest = Guest::new();
    let (mut client, _socket) = guest.connect(1);
    guest.driver.queues[1].set_available_index(10_000);
    guest.driver.kick(1);
    guest.driver.wait_needs_reset();
    assert_eq!(client.read(&mut [0; 1]).unwrap(), 0, "its clients are closed");
    guest.driver.write32(0x070, 0);
    guest.start();
    guest.connect(1);
}
