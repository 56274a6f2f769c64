//! With network namespaces, a veth pair and real taps (needs root). The guest is a namespace, too: a tap in it stands for its card, and a thread
//! carries packets between the two taps with their virtio headers, as the VMM does.

mod world;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd as _;
use std::thread;
use std::time::Duration;

use super::*;
use world::{Guest, HOST, HOST_V6, MAC, POD, POD_V6, World, poke};

/// Enough for several segments of 64 KiB each.
const BULK: usize = 3 << 20;

fn bulk() -> Vec<u8> {
    (0..BULK).map(|at| (at * 7 + (at >> 9)).to_le_bytes()[0]).collect()
}

/// Sends `bulk` from one namespace to the other over TCP and compares.
fn transfer(from: &world::Space, to: &world::Space, address: SocketAddr) {
    let listener = to.inside(|| TcpListener::bind(address).unwrap());
    let sender = from.inside(|| TcpStream::connect_timeout(&address, Duration::from_secs(10)).unwrap());
    let (mut receiver, _) = listener.accept().unwrap();
    receiver.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    thread::scope(|scope| {
        scope.spawn(move || (&sender).write_all(&bulk()).unwrap());
        let mut received = Vec::new();
        receiver.read_to_end(&mut received).unwrap();
        assert!(received == bulk(), "{} bytes", received.len());
    });
}

fn exchange_datagrams(from: &world::Space, to: &world::Space, address: SocketAddr) {
    let receiver = to.inside(|| UdpSocket::bind(address).unwrap());
    let any: SocketAddr = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse().unwrap();
    let sender = from.inside(|| UdpSocket::bind(any).unwrap());
    for socket in [&receiver, &sender] {
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    }
    sender.send_to(b"there", address).unwrap();
    let mut text = [0; 16];
    let (length, back) = receiver.recv_from(&mut text).unwrap();
    assert_eq!(&text[..length], b"there");
    receiver.send_to(b"and back", back).unwrap();
    let (length, _) = sender.recv_from(&mut text).unwrap();
    assert_eq!(&text[..length], b"and back");
}

#[test]
fn the_guest_is_reached_at_the_address_of_the_interface_and_reaches_others() {
    let world = World::new();
    let tap = open_blocking(world.pod.netns()).unwrap();
    let interface = connect_blocking(&tap, "eth0").unwrap();
    let guest = Guest::start(&tap, &interface);
    for (port, (pod, host)) in [(100, (POD, HOST)), (200, (POD_V6, HOST_V6))] {
        let (pod, host) = (pod.parse().unwrap(), host.parse().unwrap());
        exchange_datagrams(&world.host, &guest.space, SocketAddr::new(pod, port));
        exchange_datagrams(&guest.space, &world.host, SocketAddr::new(host, port + 1));
        transfer(&world.host, &guest.space, SocketAddr::new(pod, port + 2));
        transfer(&guest.space, &world.host, SocketAddr::new(host, port + 3));
    }
    // Segments were cut by nobody, and checksums computed by nobody, on their way.
    let [to_guest, from_guest] = guest.longest();
    assert!(
        to_guest > 3000 && from_guest > 3000,
        "the longest packets had {to_guest} and {from_guest} bytes"
    );
    // Once more, under way.
    assert_eq!(connect_blocking(&tap, "eth0").unwrap(), interface);
    transfer(&world.host, &guest.space, SocketAddr::new(POD.parse().unwrap(), 300));
}

#[test]
fn a_guest_whose_card_can_do_nothing_gets_whole_packets() {
    let world = World::new();
    let tap = open_blocking(world.pod.netns()).unwrap();
    let interface = connect_blocking(&tap, "eth0").unwrap();
    let guest = Guest::start_plain(&tap, &interface);
    transfer(&world.host, &guest.space, SocketAddr::new(POD.parse().unwrap(), 100));
    transfer(&guest.space, &world.host, SocketAddr::new(HOST.parse().unwrap(), 101));
    exchange_datagrams(&world.host, &guest.space, SocketAddr::new(POD.parse().unwrap(), 102));
    let longest = guest.longest();
    assert_eq!(longest, [1400 + 14; 2], "a packet and its Ethernet header");
}

#[test]
fn nobody_answers_in_the_guests_place() {
    let world = World::new();
    let tap = open_blocking(world.pod.netns()).unwrap();
    connect_blocking(&tap, "eth0").unwrap();
    let address = SocketAddr::new(POD.parse().unwrap(), 100);
    let datagram = world.host.inside(|| UdpSocket::bind("0.0.0.0:0").unwrap());
    // So that it hears of a refusal.
    datagram.connect(address).unwrap();
    datagram.send(b"").unwrap();
    let request = world::next_packet(&tap, |packet| packet[12..14] == [8, 6]);
    assert_eq!(request[..6], [0xff; 6], "who has its address?");
    // The sender knows by now only if the namespace's own kernel has told it.
    world.host.knows(POD, MAC);
    datagram.send(b"anybody?").unwrap();
    world::next_packet(&tap, |packet| packet.ends_with(b"anybody?"));
    datagram.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let error = datagram.recv(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock, "nobody says that the port is closed");
}

#[test]
fn an_interface_is_told_with_all_that_the_guest_needs() {
    let world = World::new();
    let tap = open_blocking(world.pod.netns()).unwrap();
    assert_eq!(tap.name(), "tap0");
    let interface = connect_blocking(&tap, "eth0").unwrap();
    assert_eq!((interface.name.as_str(), interface.mac, interface.mtu), ("eth0", MAC, 1400));
    let ip = |text: &str| text.parse::<std::net::IpAddr>().unwrap();
    let addresses: Vec<_> = interface.addresses.iter().map(|address| (address.ip, address.prefix)).collect();
    assert_eq!(addresses, [(ip(POD), 24), (ip(POD_V6), 64)]);
    let default = |to: &str| interface.routes.iter().find(|route| route.destination == (ip(to), 0)).unwrap();
    assert_eq!(default("0.0.0.0").gateway, Some(ip(HOST)));
    assert_eq!(default("::").gateway, Some(ip(HOST_V6)));
    assert_eq!(interface.routes.len(), 4, "and one to each network: {:#?}", interface.routes);
    assert!(!interface.no_ipv6 && interface.router_advertisements);
    let inner = world.pod.inside(|| Socket::open().unwrap().link("tap0").unwrap().unwrap());
    assert_eq!((inner.mtu, inner.up), (1400, true));

    world.pod.inside(|| poke("eth0", "accept_ra", "0"));
    world.pod.inside(|| poke("eth0", "disable_ipv6", "1"));
    let interface = connect_blocking(&tap, "eth0").unwrap();
    assert!(interface.no_ipv6 && !interface.router_advertisements);
    assert_eq!(interface.addresses.len(), 1);
}

#[test]
fn a_tap_is_down_until_it_is_connected_and_gone_with_its_device() {
    let world = World::new();
    let look = || world.pod.inside(|| Socket::open().unwrap().link("tap0").unwrap());
    let tap = open_blocking(world.pod.netns()).unwrap();
    assert!(!look().unwrap().up);
    let device = tap.device().unwrap();
    drop(tap);
    assert!(look().is_some());
    drop(device);
    assert!(look().is_none());
    let [first, second] = [(); 2].map(|()| open_blocking(world.pod.netns()).unwrap());
    assert_eq!((first.name(), second.name()), ("tap0", "tap1"));
}

#[test]
fn a_tap_that_is_gone_makes_room_for_another() {
    let world = World::new();
    let first = open_blocking(world.pod.netns()).unwrap();
    connect_blocking(&first, "eth0").unwrap();
    drop(first);
    let tap = open_blocking(world.pod.netns()).unwrap();
    let interface = connect_blocking(&tap, "eth0").unwrap();
    let guest = Guest::start(&tap, &interface);
    exchange_datagrams(&world.host, &guest.space, SocketAddr::new(POD.parse().unwrap(), 100));
}

#[test]
fn what_cannot_be_connected_is_named() {
    let world = World::new();
    let tap = open_blocking(world.pod.netns()).unwrap();
    let error = connect_blocking(&tap, "eth7").unwrap_err();
    assert_eq!(error.to_string(), "the pod's network namespace has no interface eth7");
    let error = connect_blocking(&tap, "lo").unwrap_err();
    assert_eq!(error.to_string(), "interface lo is no Ethernet");
    let error = connect_blocking(&tap, "a name that is longer than one can be").unwrap_err();
    assert!(matches!(error, TapError::NoInterface { .. } | TapError::Netlink { .. }), "{error}");
    let gone = Tap { name: "tap9".to_owned(), ..tap };
    assert!(matches!(connect_blocking(&gone, "eth0"), Err(TapError::NoInterface { name }) if name == "tap9"));
    let none = std::fs::File::open("/dev/null").unwrap();
    assert!(matches!(open_blocking(none.as_fd()), Err(TapError::Enter(_))));
}

#[test]
fn this_machine_can_give_guests_a_network() {
    probe_blocking().unwrap();
}
