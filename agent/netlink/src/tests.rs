//! With interfaces in a network namespace of the test's own (needs root).

use std::net::IpAddr;
use std::thread;

use nix::sched::{CloneFlags, unshare};
use rustix::io::Errno;

use super::*;

/// Runs `test` in a new namespace, with an interface `name` of a kind that the kernel makes out of nothing.
fn with_link(name: &str, kind: &str, test: impl FnOnce(&mut Socket, u32) + Send) {
    let run = || {
        unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace: needs root");
        let mut socket = Socket::open().unwrap();
        let mut request = Request::change(16, flag::CREATE | flag::EXCL, &[0; 16]);
        request.put(3, &[name.as_bytes(), &[0]].concat());
        request.nest(18, |request| request.put(1, kind.as_bytes()));
        socket.request(request).unwrap();
        let index = socket.link(name).unwrap().unwrap().index;
        test(&mut socket, index);
    };
    thread::scope(|scope| scope.spawn(run).join()).unwrap();
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn address(text: &str, prefix: u8) -> Address {
    Address { ip: ip(text), prefix }
}

fn route(destination: &str, prefix: u8) -> Route {
    Route {
        destination: (ip(destination), prefix),
        gateway: None,
        source: None,
        metric: 0,
        mtu: 0,
        scope: 0,
        on_link: false,
    }
}

#[test]
fn an_interface_takes_name_address_and_mtu_at_once() {
    with_link("first", "bridge", |socket, index| {
        let mac = [2, 1, 2, 3, 4, 5];
        let change = LinkChange { name: Some("second"), mac: Some(mac), mtu: Some(1400), up: Some(true) };
        socket.change_link(index, &change).unwrap();
        assert_eq!(socket.link("first").unwrap(), None);
        let link = socket.link("second").unwrap().unwrap();
        assert_eq!(link, Link { index, mac: Some(mac), mtu: 1400, up: true });
        socket.change_link(index, &LinkChange { up: Some(false), ..LinkChange::default() }).unwrap();
        assert!(!socket.link("second").unwrap().unwrap().up);
    });
}

#[test]
fn what_is_no_ethernet_has_no_address_of_one() {
    with_link("b", "bridge", |socket, _| assert_eq!(socket.link("lo").unwrap().unwrap().mac, None));
}

#[test]
fn a_refusal_says_why() {
    with_link("b", "bridge", |socket, index| {
        let change = LinkChange { mtu: Some(1), ..LinkChange::default() };
        let error = socket.change_link(index, &change).unwrap_err();
        assert_eq!(error.refused(), Some(Errno::INVAL));
        assert!(error.to_string().contains("mtu"), "{error}");
        let change = LinkChange { up: Some(true), ..LinkChange::default() };
        let error = socket.change_link(index + 100, &change).unwrap_err();
        assert_eq!(error.refused(), Some(Errno::NODEV));
    });
}

#[test]
fn addresses_are_listed_as_given() {
    with_link("b", "bridge", |socket, index| {
        let given = [address("10.9.0.2", 16), address("192.0.2.1", 32), address("fd00::2", 64)];
        for address in &given {
            socket.add_address(index, address).unwrap();
        }
        let error = socket.add_address(index, &given[0]).unwrap_err();
        assert_eq!(error.refused(), Some(Errno::EXIST));
        socket.change_link(index, &LinkChange { up: Some(true), ..LinkChange::default() }).unwrap();
        assert_eq!(socket.addresses(index).unwrap(), given, "and not the link-local one");
        assert_eq!(socket.addresses(1).unwrap(), []);
        assert_eq!(socket.routes(index).unwrap(), [], "no route comes along");
    });
}

#[test]
fn routes_are_listed_in_an_order_that_they_can_be_added_in() {
    with_link("b", "bridge", |socket, index| {
        socket.change_link(index, &LinkChange { up: Some(true), ..LinkChange::default() }).unwrap();
        for address in [address("10.9.0.2", 24), address("fd00::2", 64)] {
            socket.add_address(index, &address).unwrap();
        }
        let link = Route { scope: 253, source: Some(ip("10.9.0.2")), ..route("10.9.0.0", 24) };
        let link_v6 = Route { metric: 256, ..route("fd00::", 64) };
        let far = Route { gateway: Some(ip("10.9.0.1")), mtu: 1300, metric: 7, ..route("0.0.0.0", 0) };
        let far_v6 = Route { gateway: Some(ip("fd00::1")), metric: 1024, ..route("::", 0) };
        let odd = Route { gateway: Some(ip("169.254.1.1")), on_link: true, ..route("198.51.100.0", 24) };
        let mixed = Route { gateway: Some(ip("fd00::1")), ..route("203.0.113.0", 24) };
        for route in [link, link_v6, far, far_v6, odd, mixed] {
            socket.add_route(index, &route).unwrap();
        }
        let listed = socket.routes(index).unwrap();
        assert_eq!(listed.len(), 6, "{listed:#?}");
        for route in [link, link_v6, far, far_v6, odd, mixed] {
            assert!(listed.contains(&route), "{route:?} is not in {listed:#?}");
        }
        assert!(listed.is_sorted_by_key(|route| route.gateway.is_some()), "{listed:#?}");
        assert_eq!(socket.routes(1).unwrap(), []);
    });
}

#[test]
fn of_several_gateways_the_first_is_listed() {
    with_link("b", "bridge", |socket, index| {
        socket.change_link(index, &LinkChange { up: Some(true), ..LinkChange::default() }).unwrap();
        socket.add_address(index, &address("10.9.0.2", 24)).unwrap();
        socket.add_route(index, &Route { scope: 253, ..route("10.9.0.0", 24) }).unwrap();
        let mut request =
            Request::change(24, flag::CREATE | flag::EXCL, &[2, 0, 0, 0, 254, 3, 0, 1, 0, 0, 0, 0]);
        let hop = |last: u8| {
            let head = [[16, 0, 0, 0], index.to_ne_bytes()].concat();
            [head, vec![8, 0, 5, 0, 10, 9, 0, last]].concat()
        };
        request.put(9, &[hop(7), hop(8)].concat());
        socket.request(request).unwrap();
        let listed = socket.routes(index).unwrap();
        assert_eq!(listed[1], Route { gateway: Some(ip("10.9.0.7")), ..route("0.0.0.0", 0) }, "{listed:?}");
        assert_eq!(socket.routes(1).unwrap(), []);
    });
}

#[test]
fn neighbours_are_those_that_somebody_entered() {
    with_link("b", "bridge", |socket, index| {
        socket.change_link(index, &LinkChange { up: Some(true), ..LinkChange::default() }).unwrap();
        let given = [
            Neighbour { ip: ip("169.254.1.1"), mac: [2, 0, 0, 0, 0, 1] },
            Neighbour { ip: ip("fe80::1"), mac: [2, 0, 0, 0, 0, 2] },
        ];
        for neighbour in &given {
            socket.add_neighbour(index, neighbour).unwrap();
            socket.add_neighbour(index, neighbour).unwrap();
        }
        assert_eq!(socket.neighbours(index).unwrap(), given);
    });
}
