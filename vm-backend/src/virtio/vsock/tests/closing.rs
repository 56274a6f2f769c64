//! How connections end.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::super::limits::Limits;
use super::super::packet::Operation;
use super::guest::{Guest, Socket, end, until_shutdown};

/// Flags of SHUTDOWN.
const RECEIVE: u32 = 1;
const SEND: u32 = 2;

fn read_all(mut client: &UnixStream) -> Vec<u8> {
    let mut all = Vec::new();
    client.read_to_end(&mut all).unwrap();
    all
}

/// Has the guest send more than the client's socket takes at once; says how many bytes.
fn overfill(guest: &mut Guest, socket: &mut Socket) -> usize {
    let mut sent = 0;
    while socket.credit() > 0 && sent < 400_000 {
        let len = socket.credit().min(60_000) as usize;
        socket.write(guest, &vec![5; len]);
        sent += len;
        guest.wait_sent();
        while let Some(packet) = guest.try_receive() {
            socket.take(&packet);
        }
    }
    sent
}

#[test]
fn a_client_ends_its_direction_and_still_hears_the_answer() {
    let mut guest = Guest::new();
    let (mut client, mut socket) = guest.connect(1);
    client.write_all(b"question").unwrap();
    end(&client);
    assert_eq!(until_shutdown(&mut guest, &mut socket, SEND), b"question");
    socket.write(&mut guest, b"answer");
    socket.shutdown(&mut guest, RECEIVE | SEND);
    assert_eq!(read_all(&client), b"answer");
    guest.expect(Operation::Reset);
}

#[test]
fn a_guest_ends_its_direction_and_still_hears_the_client() {
    let mut guest = Guest::new();
    let (mut client, mut socket) = guest.connect(1);
    socket.write(&mut guest, b"last words");
    socket.shutdown(&mut guest, SEND);
    assert_eq!(read_all(&client), b"last words");
    client.write_all(b"heard").unwrap();
    drop(client);
    // Both directions are over now, so the guest is told so and ends it.
    assert_eq!(until_shutdown(&mut guest, &mut socket, RECEIVE | SEND), b"heard");
    socket.send(&mut guest, Operation::Reset, &[]);
    guest.expect_silence();
}

#[test]
fn a_client_that_closes_is_passed_on_with_its_last_bytes() {
    let mut guest = Guest::new();
    let (mut client, mut socket) = guest.connect(1);
    client.write_all(&[7; 100_000]).unwrap();
    drop(client);
    let bytes = until_shutdown(&mut guest, &mut socket, RECEIVE | SEND).len();
    assert_eq!(bytes, 100_000);
    socket.send(&mut guest, Operation::Reset, &[]);
    guest.expect_silence();
}

#[test]
fn a_guest_that_reads_no_more_makes_the_clients_writes_fail() {
    let mut guest = Guest::new();
    let (mut client, mut socket) = guest.connect(1);
    socket.shutdown(&mut guest, RECEIVE);
    guest.wait_sent();
    let error = client.write_all(b"x").unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::BrokenPipe);
    socket.write(&mut guest, b"but it speaks");
    socket.shutdown(&mut guest, RECEIVE | SEND);
    assert_eq!(read_all(&client), b"but it speaks");
    guest.expect(Operation::Reset);
}

#[test]
fn a_client_that_reads_no_more_is_passed_on_when_the_guest_writes() {
    let mut guest = Guest::new();
    let (client, mut socket) = guest.connect(1);
    client.shutdown(Shutdown::Read).unwrap();
    socket.write(&mut guest, b"to nobody");
    let shutdown = guest.expect(Operation::Shutdown);
    assert_eq!(shutdown.header.flags, RECEIVE);
    // Bytes that are on the way all the same are thrown away, and are no offence.
    socket.take(&shutdown);
    socket.write(&mut guest, b"still to nobody");
    end(&client);
    until_shutdown(&mut guest, &mut socket, RECEIVE | SEND);
    socket.send(&mut guest, Operation::Reset, &[]);
    guest.expect_silence();
}

#[test]
fn a_reset_in_the_middle_leaves_the_client_what_had_come() {
    let mut guest = Guest::new();
    let (client, mut socket) = guest.connect(1);
    let sent = overfill(&mut guest, &mut socket);
    socket.send(&mut guest, Operation::Reset, &[]);
    guest.wait_sent();
    assert_eq!(read_all(&client).len(), sent);
    guest.expect_silence();
}

#[test]
fn a_guest_that_closes_with_bytes_under_way_is_let_go_at_once_and_the_client_served() {
    let mut guest = Guest::new();
    let (client, mut socket) = guest.connect(1);
    let sent = overfill(&mut guest, &mut socket);
    socket.shutdown(&mut guest, RECEIVE | SEND);
    guest.expect(Operation::Reset);
    // The guest knows it no more, and what it says of it is answered as such.
    socket.send(&mut guest, Operation::CreditUpdate, &[]);
    guest.expect(Operation::Reset);
    assert_eq!(read_all(&client).len(), sent);
}

#[test]
fn a_guest_that_never_takes_leave_is_reset_after_a_while() {
    let limits = Limits { farewell: Duration::from_millis(100), ..Limits::default() };
    let mut guest = Guest::with_limits(limits);
    let (client, mut socket) = guest.connect(1);
    drop(client);
    until_shutdown(&mut guest, &mut socket, RECEIVE | SEND);
    guest.expect(Operation::Reset);
}

/// Else a guest could keep every client that ever came, with what is in its socket.
#[test]
fn what_a_client_leaves_is_not_kept_for_a_guest_that_never_takes_it() {
    let limits = Limits { connections: 1, legacy: Duration::from_millis(100), ..Limits::default() };
    let mut guest = Guest::with_limits(limits);
    let (mut client, _socket) = guest.connect_with_room(1, 10);
    client.write_all(b"0123456789 and more").unwrap();
    drop(client);
    let mut taken = Vec::new();
    loop {
        let packet = guest.receive();
        match packet.operation() {
            Operation::Data => taken.extend(packet.payload),
            Operation::Shutdown | Operation::CreditRequest => {}
            Operation::Reset => break,
            other => panic!("{other:?}"),
        }
    }
    assert_eq!(taken, b"0123456789");
    guest.connect(2);
}

#[test]
fn what_a_client_leaves_is_taken_as_slowly_as_a_guest_likes() {
    let legacy = Duration::from_secs(3);
    let mut guest = Guest::with_limits(Limits { legacy, ..Limits::default() });
    let (mut client, mut socket) = guest.connect_with_room(1, 1);
    client.write_all(b"1234").unwrap();
    drop(client);
    let mut taken = Vec::new();
    while taken.len() < 4 {
        let packet = guest.receive();
        if packet.operation() == Operation::Data {
            taken.extend(packet.payload);
            // Each time well within the limit, in all beyond it.
            std::thread::sleep(legacy / 3);
            socket.received += 1;
            socket.consumed += 1;
            socket.send(&mut guest, Operation::CreditUpdate, &[]);
        }
    }
    assert_eq!(taken, b"1234");
    until_shutdown(&mut guest, &mut socket, RECEIVE | SEND);
}

#[test]
fn both_closing_at_once_is_an_end() {
    let mut guest = Guest::new();
    let (client, mut socket) = guest.connect(1);
    drop(client);
    until_shutdown(&mut guest, &mut socket, RECEIVE | SEND);
    socket.shutdown(&mut guest, RECEIVE | SEND);
    guest.expect(Operation::Reset);
    guest.expect_silence();
}

#[test]
fn a_reset_of_the_device_closes_all_clients_and_the_guest_is_told() {
    let mut guest = Guest::new();
    let clients: Vec<_> = (1..=10).map(|port| guest.connect(port).0).collect();
    let unanswered = guest.client_for(11);
    guest.expect(Operation::Request);
    guest.driver.write32(0x070, 0);
    for client in clients.iter().chain([&unanswered]) {
        assert_eq!(read_all(client), b"");
    }
    guest.start();
    let event = guest.offer_event_buffer();
    assert_eq!(guest.receive_event(), 4);
    assert_eq!(guest.driver.peek(event, 4), [0; 4], "TRANSPORT_RESET");
    // It works as before.
    let (mut client, mut socket) = guest.connect(1);
    client.write_all(b"again").unwrap();
    let data = guest.expect(Operation::Data);
    socket.take(&data);
    assert_eq!(data.payload, b"again");
}

#[test]
fn a_reset_without_connections_is_no_event() {
    let mut guest = Guest::new();
    let (client, socket) = guest.connect(1);
    socket.send(&mut guest, Operation::Reset, &[]);
    assert_eq!(read_all(&client), b"");
    guest.driver.write32(0x070, 0);
    guest.start();
    guest.offer_event_buffer();
    guest.connect(1);
    assert_eq!(guest.take_event(), None);
}
