//! Clients of the VMM itself.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::super::limits::Limits;
use super::super::packet::Operation;
use super::guest::{DEADLINE, Guest, Socket, read_line};

/// A stream of the VMM's own to port 7, that says `hi`.
fn dial(guest: &Guest) -> UnixStream {
    let stream = UnixStream::from(guest.dialer.dial(7, b"hi").unwrap());
    stream.set_read_timeout(Some(DEADLINE)).unwrap();
    stream
}

/// The guest accepts it.
fn accept(guest: &mut Guest, stream: &UnixStream) -> Socket {
    let mut socket = guest.accept(7);
    assert_eq!(read_line(stream), "OK 7\n");
    let hi = guest.expect(Operation::Data);
    assert_eq!(hi.payload, b"hi");
    socket.take(&hi);
    socket
}

fn rest(mut stream: &UnixStream) -> Vec<u8> {
    let mut all = Vec::new();
    stream.read_to_end(&mut all).unwrap();
    all
}

#[test]
fn a_stream_of_the_vmm_is_one_like_any_other() {
    let mut guest = Guest::new();
    let mut stream = dial(&guest);
    let mut socket = accept(&mut guest, &stream);
    socket.write(&mut guest, b"from the guest");
    stream.write_all(b" and to it").unwrap();
    assert_eq!(guest.expect(Operation::Data).payload, b" and to it");
    socket.shutdown(&mut guest, 3);
    guest.expect(Operation::Reset);
    assert_eq!(rest(&stream), b"from the guest");
}

#[test]
fn one_that_the_guest_refuses_ends_without_a_byte() {
    let mut guest = Guest::new();
    let mut stream = dial(&guest);
    let request = guest.expect(Operation::Request);
    Socket::new(&request.header).send(&mut guest, Operation::Reset, &[]);
    // What it has said already is lost, which is an error for a unix socket.
    assert!(matches!(stream.read(&mut [0]), Ok(0) | Err(_)));
}

#[test]
fn what_is_dialled_before_the_driver_is_there_waits_for_it() {
    let mut guest = Guest::unstarted(Limits::default());
    let stream = dial(&guest);
    guest.start();
    accept(&mut guest, &stream);
}

#[test]
fn streams_of_the_vmm_and_of_others_do_not_take_each_others_places() {
    let mut guest = Guest::with_limits(Limits { connections: 2, ..Limits::default() });
    let own: Vec<UnixStream> = std::iter::repeat_with(|| {
        let stream = dial(&guest);
        accept(&mut guest, &stream);
        stream
    })
    .take(4)
    .collect();
    let _two = [guest.connect(1), guest.connect(2)];
    let refused = guest.client_for(3);
    assert!(read_line(&refused).starts_with("ERROR there are 2 connections"));
    // A place of the VMM's own that is free again is nobody else's.
    drop(own);
    let refused = guest.client_for(3);
    assert!(read_line(&refused).starts_with("ERROR there are 2 connections"));
}

#[test]
fn a_slow_reader_in_the_vmm_stops_its_own_stream() {
    let mut guest = Guest::new();
    let stream = dial(&guest);
    let mut socket = accept(&mut guest, &stream);
    let mut sent = 0;
    while socket.credit() > 0 {
        let len = socket.credit().min(60_000) as usize;
        socket.write(&mut guest, &vec![5; len]);
        sent += len;
        guest.wait_sent();
        while let Some(packet) = guest.try_receive() {
            socket.take(&packet);
        }
        assert!(sent < 2 << 20, "nothing stops it");
    }
    let (mut other, mut its) = guest.connect(9);
    its.write(&mut guest, b"goes on");
    let mut read = [0; 7];
    other.read_exact(&mut read).unwrap();
    assert_eq!(&read, b"goes on");
    // Nothing is lost, at the end of the guest neither.
    guest.dialer.hang_up();
    assert_eq!(rest(&stream).len(), sent);
    assert_eq!(rest(&other), b"");
    assert_eq!(guest.dialer.dial(7, b"").unwrap_err().kind(), io::ErrorKind::NotConnected);
}

#[test]
fn the_end_of_the_guest_takes_what_is_in_its_queue_along() {
    let mut guest = Guest::new();
    let stream = dial(&guest);
    let mut socket = accept(&mut guest, &stream);
    for _ in 0..20 {
        socket.write(&mut guest, b"last words ");
    }
    guest.dialer.hang_up();
    assert_eq!(rest(&stream), b"last words ".repeat(20));
}

/// As a device that is taken away while somebody does not read.
#[test]
fn the_end_waits_for_nobody_who_does_not_read() {
    let mut guest = Guest::new();
    let stream = dial(&guest);
    let mut socket = accept(&mut guest, &stream);
    while socket.credit() > 0 {
        let len = socket.credit().min(60_000) as usize;
        socket.write(&mut guest, &vec![5; len]);
        guest.wait_sent();
        while let Some(packet) = guest.try_receive() {
            socket.take(&packet);
        }
    }
    guest.dialer.hang_up();
    std::thread::sleep(Duration::from_millis(20));
    // Joins the device's thread.
    drop(guest);
    assert!(!rest(&stream).is_empty());
}
