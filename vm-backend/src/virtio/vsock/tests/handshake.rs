//! How connections begin, or do not.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::super::limits::Limits;
use super::super::packet::{HOST_CID, Header, Operation, STREAM};
use super::guest::{CID, Guest, Socket, read_line, until_shutdown};

/// Everything that a client reads until its end, which comes.
fn read_all(mut client: &UnixStream) -> String {
    let mut all = Vec::new();
    match client.read_to_end(&mut all) {
        Ok(_) => {}
        // It was closed with bytes of the client unread.
        Err(e) => assert_eq!(e.kind(), std::io::ErrorKind::ConnectionReset),
    }
    String::from_utf8(all).unwrap()
}

fn patient_only_for(wait: Duration) -> Limits {
    Limits { greeting: wait, answer: wait, farewell: wait, ..Limits::default() }
}

#[test]
fn a_client_reaches_the_port_that_it_asked_for() {
    let mut guest = Guest::new();
    let client = guest.client_for(1025);
    let request = guest.expect(Operation::Request);
    assert_eq!(request.header.kind, STREAM);
    assert_eq!((request.header.dst_port, request.header.len), (1025, 0));
    assert!(request.header.src_port >= 1 << 30, "host ports look like no service's");
    assert_eq!(request.header.buf_alloc, 256 << 10);
    Socket::new(&request.header).send(&mut guest, Operation::Response, &[]);
    assert_eq!(read_line(&client), "OK 1025\n");
}

#[test]
fn bytes_flow_both_ways_and_those_sent_with_the_request_are_the_first() {
    let mut guest = Guest::new();
    let mut client = guest.client();
    client.write_all(b"CONNECT 7\nhello").unwrap();
    let mut socket = guest.accept(7);
    let data = guest.expect(Operation::Data);
    assert_eq!(data.payload, b"hello");
    socket.take(&data);
    socket.write(&mut guest, b"world");
    assert_eq!(read_line(&client), "OK 7\n");
    let mut answer = [0; 5];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"world");
}

#[test]
fn a_client_that_came_before_the_driver_is_served_once_there_is_one() {
    let mut guest = Guest::unstarted(Limits::default());
    let client = guest.client_for(9);
    guest.start();
    guest.accept(9);
    assert_eq!(read_line(&client), "OK 9\n");
}

#[test]
fn a_request_waits_for_a_buffer_of_the_guest() {
    let mut guest = Guest::unstarted(Limits::default());
    guest.refill = false;
    guest.start();
    let client = guest.client_for(9);
    guest.expect_silence();
    guest.refill = true;
    guest.offer_buffers(1);
    guest.accept(9);
    assert_eq!(read_line(&client), "OK 9\n");
}

#[test]
fn a_port_that_nobody_listens_on_closes_the_client() {
    let mut guest = Guest::new();
    let client = guest.client_for(4000);
    let request = guest.expect(Operation::Request);
    Socket::new(&request.header).send(&mut guest, Operation::Reset, &[]);
    assert_eq!(read_all(&client), "");
}

#[test]
fn a_guest_that_does_not_answer_is_given_up() {
    let mut guest = Guest::with_limits(patient_only_for(Duration::from_millis(200)));
    let client = guest.client_for(4000);
    let request = guest.expect(Operation::Request);
    let begin = Instant::now();
    assert_eq!(read_all(&client), "");
    assert!(begin.elapsed() < Duration::from_secs(5));
    let reset = guest.expect(Operation::Reset);
    assert_eq!(reset.header.src_port, request.header.src_port);
    // It answers after all: it is too late.
    Socket::new(&request.header).send(&mut guest, Operation::Response, &[]);
    guest.expect(Operation::Reset);
}

#[test]
fn a_client_that_leaves_before_the_guest_answers_is_taken_back() {
    let mut guest = Guest::new();
    let client = guest.client_for(4000);
    guest.expect(Operation::Request);
    drop(client);
    guest.expect(Operation::Reset);
}

#[test]
fn what_is_no_request_is_refused_with_a_reason() {
    let guest = Guest::new();
    for line in ["CONNECT\n", "CONNECT 99999999999\n", "GET / HTTP/1.1\r\n", "\n"] {
        let mut client = guest.client();
        client.write_all(line.as_bytes()).unwrap();
        assert_eq!(read_all(&client), "ERROR the first line must be CONNECT <port>\n", "{line:?}");
    }
    let mut client = guest.client();
    // It may be closed before all of it is written.
    let _ = client.write_all(&[b'x'; 1 << 20]);
    assert_eq!(read_all(&client), "ERROR the first line must be CONNECT <port>\n");
}

#[test]
fn a_client_that_says_nothing_is_closed_after_a_while() {
    let guest = Guest::with_limits(patient_only_for(Duration::from_millis(100)));
    let mut client = guest.client();
    client.write_all(b"CONNECT 1").unwrap();
    assert_eq!(read_all(&client), "ERROR no CONNECT <port> came\n");
}

#[test]
fn one_connection_too_many_is_refused_and_an_end_makes_room() {
    let mut guest = Guest::with_limits(Limits { connections: 2, ..Limits::default() });
    let (first, socket) = guest.connect(1);
    let _second = guest.connect(2);
    let third = guest.client_for(3);
    assert_eq!(read_all(&third), "ERROR there are 2 connections, and no more can be had\n");
    socket.send(&mut guest, Operation::Reset, &[]);
    assert_eq!(read_all(&first), "");
    guest.connect(3);
}

#[test]
fn rooms_shrink_once_the_memory_for_large_ones_is_promised() {
    let mut guest = Guest::with_limits(Limits { memory: 512 << 10, ..Limits::default() });
    let rooms: Vec<_> = (1..=3).map(|port| guest.connect(port)).collect();
    let sizes: Vec<_> = rooms.iter().map(|(_, socket)| socket.peer_room).collect();
    assert_eq!(sizes, [256 << 10, 256 << 10, 16 << 10]);
    rooms[0].1.send(&mut guest, Operation::Reset, &[]);
    assert_eq!(read_all(&rooms[0].0), "");
    assert_eq!(guest.connect(4).1.peer_room, 256 << 10);
}

#[test]
fn host_ports_differ_as_long_as_they_are_in_use() {
    let mut guest = Guest::new();
    let connections: Vec<_> = (0..50).map(|_| guest.connect(1)).collect();
    let mut ports: Vec<_> = connections.iter().map(|(_, socket)| socket.host_port).collect();
    ports.sort_unstable();
    ports.dedup();
    assert_eq!(ports.len(), 50);
}

#[test]
fn a_guest_cannot_connect_but_its_first_try_at_the_ready_port_is_heard() {
    let mut guest = Guest::new();
    for (port, heard) in [(80, 0), (1024, 1), (1024, 1)] {
        let request = Header {
            src_cid: CID,
            dst_cid: HOST_CID,
            src_port: 5000,
            dst_port: port,
            kind: STREAM,
            op: Operation::Request as u16,
            buf_alloc: 1 << 18,
            ..Header::default()
        };
        guest.send(request, &[]);
        let reset = guest.expect(Operation::Reset).header;
        assert_eq!((reset.src_port, reset.dst_port), (port, 5000));
        assert_eq!(guest.ready.load(Ordering::SeqCst), heard, "port {port}");
    }
}

#[test]
fn a_thousand_connections_one_after_another_leave_nothing() {
    let mut guest = Guest::with_limits(Limits { connections: 4, ..Limits::default() });
    let mut seen = std::collections::HashSet::new();
    for round in 0..1000 {
        let (client, mut socket) = guest.connect(1025);
        assert!(seen.insert(socket.host_port), "a port is not given out again at once");
        if round % 2 == 0 {
            drop(client);
            until_shutdown(&mut guest, &mut socket, 3);
            socket.send(&mut guest, Operation::Reset, &[]);
        } else {
            socket.shutdown(&mut guest, 3);
            guest.expect(Operation::Reset);
            assert_eq!(read_all(&client), "");
        }
    }
    guest.wait_sent();
    // At most four fit, so all of the thousand are gone.
    let connections: Vec<_> = (0..4).map(|_| guest.connect(1)).collect();
    assert_eq!(read_all(&guest.client_for(1)), "ERROR there are 4 connections, and no more can be had\n");
    drop(connections);
}
