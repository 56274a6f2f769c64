//! What a request asks for of a guest alone: its network and its files.

use std::net::IpAddr;

use hartpod_netlink::{Address, Interface, Neighbour, Route};
use hartpod_proto::pod::v1::{self, GuestNeighbour, GuestNetwork, GuestRoute, IpPrefix};

use super::InvalidRequest;
use crate::guest::PodFile;

/// As many as anybody has, and more.
const ADDRESSES_MAX: usize = 64;
const ROUTES_MAX: usize = 1024;
const NEIGHBOURS_MAX: usize = 1024;
const FILES_MAX: usize = 16;
/// resolv.conf, hosts and the like; they take the guest's memory.
const FILE_MAX: usize = 1 << 20;

/// The least that links of IPv4 carry (RFC 791).
const MTU_MIN: u32 = 68;
/// What virtio-net has (VIRTIO 1.2 section 5.1.4.1).
const MTU_MAX: u32 = 65535;

/// Bytes of an interface's name (IFNAMSIZ, less the end).
const NAME_MAX: usize = 15;

/// Longest name of a file.
const FILE_NAME_MAX: usize = 255;
const FILE_MODE: u32 = 0o644;

pub(super) fn interface(network: GuestNetwork) -> Result<Interface, InvalidRequest> {
    let mtu = network.mtu;
    if !(MTU_MIN..=MTU_MAX).contains(&mtu) {
        return Err(InvalidRequest::Mtu(mtu));
    }
    at_most("network.addresses", network.addresses.len(), ADDRESSES_MAX)?;
    at_most("network.routes", network.routes.len(), ROUTES_MAX)?;
    at_most("network.neighbours", network.neighbours.len(), NEIGHBOURS_MAX)?;
    Ok(Interface {
        name: interface_name(network.interface)?,
        mac: mac("network.mac", &network.mac)?,
        mtu,
        addresses: network.addresses.iter().map(address).collect::<Result<_, _>>()?,
        routes: network.routes.iter().map(route).collect::<Result<_, _>>()?,
        neighbours: network.neighbours.iter().map(neighbour).collect::<Result<_, _>>()?,
        no_ipv6: network.no_ipv6,
        router_advertisements: network.router_advertisements,
    })
}

fn address(address: &IpPrefix) -> Result<Address, InvalidRequest> {
    let (ip, prefix) = prefix("network.addresses", Some(address))?;
    Ok(Address { ip, prefix })
}

fn neighbour(neighbour: &GuestNeighbour) -> Result<Neighbour, InvalidRequest> {
    let field = "network.neighbours";
    Ok(Neighbour { ip: ip(field, &neighbour.ip)?, mac: mac(field, &neighbour.mac)? })
}

fn route(route: &GuestRoute) -> Result<Route, InvalidRequest> {
    let field = "network.routes";
    let optional = |bytes: &[u8]| if bytes.is_empty() { Ok(None) } else { ip(field, bytes).map(Some) };
    let scope = u8::try_from(route.scope).map_err(|_| InvalidRequest::Scope(route.scope))?;
    Ok(Route {
        destination: prefix(field, route.destination.as_ref())?,
        gateway: optional(&route.gateway)?,
        source: optional(&route.source)?,
        metric: route.metric,
        mtu: route.mtu,
        scope,
        on_link: route.on_link,
    })
}

pub(super) fn files(files: Vec<v1::PodFile>) -> Result<Vec<PodFile>, InvalidRequest> {
    at_most("files", files.len(), FILES_MAX)?;
    files.into_iter().map(file).collect()
}

fn file(file: v1::PodFile) -> Result<PodFile, InvalidRequest> {
    let v1::PodFile { name, content, mode } = file;
    if name.len() > FILE_NAME_MAX || !super::is_component(&name) {
        return Err(InvalidRequest::FileName(name.chars().take(FILE_NAME_MAX).collect()));
    }
    if content.len() > FILE_MAX {
        return Err(InvalidRequest::FileSize { name, size: content.len() });
    }
    match mode {
        0 => Ok(PodFile { name, content, mode: FILE_MODE }),
        1..=0o777 => Ok(PodFile { name, content, mode }),
        _ => Err(InvalidRequest::FileMode { name, mode }),
    }
}

/// As the kernel has it (dev_valid_name), and without what it reads as a place for a number.
fn interface_name(name: String) -> Result<String, InvalidRequest> {
    let plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'/' | b':' | b'%');
    let is_name = (1..=NAME_MAX).contains(&name.len()) && name.bytes().all(plain);
    match name.as_str() {
        "." | ".." | "lo" | "all" | "default" => Err(InvalidRequest::InterfaceName(name)),
        _ if is_name => Ok(name),
        _ => Err(InvalidRequest::InterfaceName(name.chars().take(NAME_MAX + 1).collect())),
    }
}

/// An address of one card: no group's, not the one of nobody (IEEE 802).
fn mac(field: &'static str, bytes: &[u8]) -> Result<[u8; 6], InvalidRequest> {
    let mac = <[u8; 6]>::try_from(bytes).ok();
    mac.filter(|mac| mac[0] & 1 == 0 && *mac != [0; 6]).ok_or(InvalidRequest::Mac { field })
}

fn ip(field: &'static str, bytes: &[u8]) -> Result<IpAddr, InvalidRequest> {
    let four = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
    let ip = four.or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from));
    ip.map_err(|_| InvalidRequest::Ip { field, length: bytes.len() })
}

fn prefix(field: &'static str, prefix: Option<&IpPrefix>) -> Result<(IpAddr, u8), InvalidRequest> {
    let prefix = prefix.ok_or(InvalidRequest::Ip { field, length: 0 })?;
    let ip = ip(field, &prefix.ip)?;
    let bits = if ip.is_ipv4() { 32 } else { 128 };
    let length = u8::try_from(prefix.length).ok().filter(|length| *length <= bits);
    let length = length.ok_or(InvalidRequest::Prefix { field, ip, length: prefix.length })?;
    Ok((ip, length))
}

fn at_most(field: &'static str, count: usize, most: usize) -> Result<(), InvalidRequest> {
    if count <= most { Ok(()) } else { Err(InvalidRequest::TooMany { field, count, most }) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network() -> GuestNetwork {
        let prefix = |ip: &[u8], length| Some(IpPrefix { ip: ip.to_vec(), length });
        GuestNetwork {
            interface: "eth0".to_owned(),
            mac: vec![2, 0, 0, 0, 0, 7],
            mtu: 1450,
            addresses: vec![IpPrefix { ip: vec![10, 9, 0, 2], length: 24 }],
            routes: vec![GuestRoute {
                destination: prefix(&[0; 4], 0),
                gateway: vec![10, 9, 0, 1],
                ..GuestRoute::default()
            }],
            neighbours: vec![GuestNeighbour { ip: vec![10, 9, 0, 1], mac: vec![2, 0, 0, 0, 0, 1] }],
            no_ipv6: true,
            router_advertisements: false,
        }
    }

    fn refusal(change: impl FnOnce(&mut GuestNetwork)) -> String {
        let mut network = network();
        change(&mut network);
        interface(network).unwrap_err().to_string()
    }

    #[test]
    fn a_network_that_makes_sense() {
        let interface = interface(network()).unwrap();
        assert_eq!((interface.name.as_str(), interface.mtu, interface.no_ipv6), ("eth0", 1450, true));
        assert_eq!(interface.routes[0].gateway, Some(IpAddr::from([10, 9, 0, 1])));
        assert_eq!(interface.routes[0].source, None);
        assert_eq!(interface.neighbours[0].mac, [2, 0, 0, 0, 0, 1]);
    }

    #[test]
    fn networks_that_make_no_sense() {
        for name in ["", "lo", "..", "a/b", "a b", "eth%d", "sixteen-letters-", "e\u{e9}", "all"] {
            assert!(refusal(|n| n.interface = name.to_owned()).contains("name of an interface"), "{name}");
        }
        for mac in [&[][..], &[2; 5], &[0; 6], &[1, 0, 0, 0, 0, 0], &[0xff; 6]] {
            assert_eq!(refusal(|n| n.mac = mac.to_vec()), "network.mac is not the address of a network card");
        }
        for mtu in [0, 67, 65536] {
            assert!(refusal(|n| n.mtu = mtu).contains("68 to 65535"));
        }
        assert_eq!(
            refusal(|n| n.addresses[0].length = 33),
            "network.addresses: 10.9.0.2 has no prefix of 33 bits"
        );
        assert!(refusal(|n| n.addresses[0].ip.push(0)).contains("5 bytes"));
        assert!(
            refusal(|n| n.routes[0].destination = None).contains("network.routes: an address of 0 bytes")
        );
        assert!(refusal(|n| n.routes[0].gateway = vec![1]).contains("an address of 1 bytes"));
        assert!(refusal(|n| n.routes[0].scope = 256).contains("256"));
        assert!(refusal(|n| n.neighbours[0].mac.clear()).contains("network.neighbours"));
        assert_eq!(
            refusal(|n| n.addresses = vec![n.addresses[0].clone(); 65]),
            "network.addresses: 65 are more than 64"
        );
        assert!(refusal(|n| n.routes = vec![n.routes[0].clone(); 1025]).contains("1025 are more than 1024"));
    }

    #[test]
    fn files_have_plain_names_and_bounds() {
        let file = |name: &str, size, mode| {
            let content = vec![b'x'; size];
            files(vec![v1::PodFile { name: name.to_owned(), content, mode }])
        };
        assert_eq!(file("hosts", 1 << 20, 0).unwrap()[0].mode, 0o644);
        assert_eq!(file("..hosts", 0, 0o400).unwrap()[0].mode, 0o400);
        for name in ["", ".", "..", "a/b", "/etc/passwd", "a\0", &"x".repeat(256)] {
            assert!(matches!(file(name, 0, 0), Err(InvalidRequest::FileName(_))), "{name}");
        }
        assert!(matches!(file("hosts", (1 << 20) + 1, 0), Err(InvalidRequest::FileSize { .. })));
        assert!(matches!(file("hosts", 1, 0o4755), Err(InvalidRequest::FileMode { mode: 0o4755, .. })));
        let many = vec![v1::PodFile { name: "a".to_owned(), ..v1::PodFile::default() }; 17];
        assert!(matches!(files(many), Err(InvalidRequest::TooMany { count: 17, .. })));
    }
}
