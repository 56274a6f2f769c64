//! The guest's network card as the interface of the pod's network.
//!
//! The guest has one network namespace, the kernel's first: it is the pod's, and every container is born in it.

use std::fs;
use std::io;
use std::path::Path;

use hartpod_netlink::{Interface, LinkChange, NetlinkError, Route, Socket};

/// One per interface; its `device/driver` is a link to its driver.
const INTERFACES: &str = "/sys/class/net";
const DRIVER: &str = "virtio_net";

/// The pod's network could not be set up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetworkError {
    #[error("look for the network card")]
    Look(#[source] io::Error),
    #[error("the guest has no network card")]
    NoCard,
    #[error("set {key} to {value}")]
    Setting { key: &'static str, value: &'static str, source: io::Error },
    #[error("{what}")]
    Netlink { what: String, source: NetlinkError },
}

/// Sets the card up. After an error it is half set up.
pub(crate) fn set_up(interface: &Interface) -> Result<(), NetworkError> {
    let card = card(Path::new(INTERFACES)).map_err(NetworkError::Look)?.ok_or(NetworkError::NoCard)?;
    let mut socket = Socket::open().map_err(failed(|| "open a netlink socket".to_owned()))?;
    apply(&mut socket, &card, interface)
}

fn apply(socket: &mut Socket, card: &str, interface: &Interface) -> Result<(), NetworkError> {
    let Interface { name, mac, mtu, .. } = interface;
    let link = socket.link(card).map_err(failed(|| format!("look for {card}")))?;
    let index = link.ok_or(NetworkError::NoCard)?.index;
    let change = LinkChange { name: Some(name), mac: Some(*mac), mtu: Some(*mtu), up: None };
    socket.change_link(index, &change).map_err(failed(|| format!("make {card} {name} with MTU {mtu}")))?;
    for (key, value) in settings(interface) {
        set(name, key, value)?;
    }
    let up = LinkChange { up: Some(true), ..LinkChange::default() };
    socket.change_link(index, &up).map_err(failed(|| format!("bring {name} up")))?;
    for address in &interface.addresses {
        let what = || format!("add address {}/{}", address.ip, address.prefix);
        socket.add_address(index, address).map_err(failed(what))?;
    }
    for neighbour in &interface.neighbours {
        let what = || format!("add neighbour {}", neighbour.ip);
        socket.add_neighbour(index, neighbour).map_err(failed(what))?;
    }
    for route in &interface.routes {
        socket.add_route(index, route).map_err(failed(|| format!("add route {}", shown(route))))?;
    }
    Ok(())
}

/// Of IPv6, before the interface is up: nobody else has its address, CNI has seen to that.
fn settings(interface: &Interface) -> [(&'static str, &'static str); 3] {
    let flag = |is_on| if is_on { "1" } else { "0" };
    [
        ("disable_ipv6", flag(interface.no_ipv6)),
        ("accept_ra", flag(interface.router_advertisements)),
        ("accept_dad", "0"),
    ]
}

fn set(name: &str, key: &'static str, value: &'static str) -> Result<(), NetworkError> {
    match fs::write(format!("/proc/sys/net/ipv6/conf/{name}/{key}"), value) {
        // A kernel without IPv6, or an MTU too small for it.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        written => written.map_err(|source| NetworkError::Setting { key, value, source }),
    }
}

/// The interface that the driver has made.
fn card(interfaces: &Path) -> io::Result<Option<String>> {
    for interface in fs::read_dir(interfaces)? {
        let interface = interface?;
        let driver = fs::read_link(interface.path().join("device/driver"));
        if driver.is_ok_and(|driver| driver.file_name().is_some_and(|name| name == DRIVER)) {
            return Ok(Some(interface.file_name().to_string_lossy().into_owned()));
        }
    }
    Ok(None)
}

fn shown(route: &Route) -> String {
    let (destination, length) = route.destination;
    match route.gateway {
        Some(gateway) => format!("{destination}/{length} by {gateway}"),
        None => format!("{destination}/{length}"),
    }
}

fn failed(what: impl FnOnce() -> String) -> impl FnOnce(NetlinkError) -> NetworkError {
    move |source| NetworkError::Netlink { what: what(), source }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;
    use std::os::unix::fs::symlink;
    use std::thread;

    use hartpod_netlink::{Address, Neighbour, Request, flag};
    use nix::sched::{CloneFlags, unshare};

    use super::*;
    use crate::status_code::chain;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn route(destination: &str, length: u8, gateway: Option<&str>) -> Route {
        Route {
            destination: (ip(destination), length),
            gateway: gateway.map(ip),
            source: None,
            metric: 0,
            mtu: 0,
            scope: if destination.contains(':') || gateway.is_some() { 0 } else { 253 },
            on_link: false,
        }
    }

    fn interface() -> Interface {
        Interface {
            name: "eth0".to_owned(),
            mac: [2, 0, 0, 0, 3, 4],
            mtu: 1400,
            addresses: vec![
                Address { ip: ip("10.9.0.2"), prefix: 24 },
                Address { ip: ip("fd00:9::2"), prefix: 64 },
            ],
            routes: vec![
                route("10.9.0.0", 24, None),
                route("0.0.0.0", 0, Some("10.9.0.1")),
                Route { metric: 1024, ..route("::", 0, Some("fe80::1")) },
            ],
            neighbours: vec![Neighbour { ip: ip("10.9.0.1"), mac: [2, 0, 0, 0, 0, 1] }],
            no_ipv6: false,
            router_advertisements: false,
        }
    }

    /// Sets up the interface `card` of a new namespace (needs root), and looks.
    fn in_a_namespace<T: Send>(
        interface: &Interface,
        look: impl FnOnce(&mut Socket, Result<(), NetworkError>) -> T + Send,
    ) -> T {
        let run = || {
            unshare(CloneFlags::CLONE_NEWNET).expect("a network namespace: needs root");
            let mut socket = Socket::open().unwrap();
            let mut request = Request::change(16, flag::CREATE | flag::EXCL, &[0; 16]);
            request.put(3, b"card\0");
            request.nest(18, |request| request.put(1, b"bridge"));
            socket.request(request).unwrap();
            let applied = apply(&mut socket, "card", interface);
            look(&mut socket, applied)
        };
        thread::scope(|scope| scope.spawn(run).join()).unwrap()
    }

    #[test]
    fn the_card_becomes_the_interface() {
        let wanted = interface();
        in_a_namespace(&wanted, |socket, applied| {
            applied.unwrap();
            assert_eq!(socket.link("card").unwrap(), None);
            let link = socket.link("eth0").unwrap().unwrap();
            assert_eq!((link.mac, link.mtu, link.up), (Some(wanted.mac), wanted.mtu, true));
            assert_eq!(socket.addresses(link.index).unwrap(), wanted.addresses);
            assert_eq!(socket.routes(link.index).unwrap(), wanted.routes);
            assert_eq!(socket.neighbours(link.index).unwrap(), wanted.neighbours);
            let addresses = fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap();
            // Flags, the last but one: permanent, and without duplicate address detection; nothing tentative.
            assert!(addresses.lines().any(|line| line.starts_with("fd000009") && line.contains(" 82 ")));
        });
    }

    #[test]
    fn settings_of_the_network_come_along() {
        let read = |key: &str| {
            let value = fs::read_to_string(format!("/proc/sys/net/ipv6/conf/eth0/{key}")).unwrap();
            value.trim_end().to_owned()
        };
        let keys = ["disable_ipv6", "accept_ra", "accept_dad"];
        let found = in_a_namespace(&interface(), |_, _| keys.map(read));
        assert_eq!(found, ["0", "0", "0"]);
        let mut other = Interface { router_advertisements: true, no_ipv6: true, ..interface() };
        other.addresses.pop();
        other.routes.pop();
        let found = in_a_namespace(&other, |_, applied| {
            applied.unwrap();
            keys.map(read)
        });
        assert_eq!(found, ["1", "1", "0"]);
    }

    #[test]
    fn what_cannot_be_done_is_named_in_the_kernels_words() {
        let refused = |change: fn(&mut Interface)| {
            let mut interface = interface();
            change(&mut interface);
            in_a_namespace(&interface, |_, applied| chain(&applied.unwrap_err()))
        };
        let error = refused(|interface| interface.routes = vec![route("0.0.0.0", 0, Some("192.0.2.1"))]);
        assert!(error.starts_with("add route 0.0.0.0/0 by 192.0.2.1: Network is unreachable"), "{error}");
        assert!(error.ends_with("Nexthop has invalid gateway"), "{error}");
        let error = refused(|interface| interface.mtu = 1 << 20);
        assert!(error.starts_with("make card eth0 with MTU 1048576: "), "{error}");
        let error = refused(|interface| interface.addresses.push(interface.addresses[0]));
        assert!(error.starts_with("add address 10.9.0.2/24: "), "{error}");
    }

    #[test]
    fn the_card_is_the_one_of_its_driver() {
        let dir = tempfile::tempdir().unwrap();
        for (name, driver) in [("lo", None), ("eth3", Some("virtio_net")), ("dummy0", Some("other"))] {
            let device = dir.path().join(name).join("device");
            fs::create_dir_all(&device).unwrap();
            if let Some(driver) = driver {
                symlink(Path::new("../../bus/virtio/drivers").join(driver), device.join("driver")).unwrap();
            }
        }
        assert_eq!(card(dir.path()).unwrap().as_deref(), Some("eth3"));
        fs::remove_dir_all(dir.path().join("eth3")).unwrap();
        assert_eq!(card(dir.path()).unwrap(), None);
    }
}
