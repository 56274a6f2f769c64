//! Addresses of interfaces.

use std::net::{IpAddr, Ipv4Addr};

use crate::attribute::{Attributes, family, ip, ip_bytes, u32_at};
use crate::message::{Request, flag};
use crate::socket::{NetlinkError, Socket};

const NEW: u16 = 20;
const GET: u16 = 22;

/// Attributes (linux/if_addr.h).
const ADDRESS: u16 = 1;
const LOCAL: u16 = 2;
const BROADCAST: u16 = 4;
const FLAGS: u16 = 8;

/// Flags: no duplicate address detection; it does not expire; no route to its network comes with it.
const NO_DAD: u32 = 0x02;
const PERMANENT: u32 = 0x80;
const NO_PREFIX_ROUTE: u32 = 0x200;

/// linux/rtnetlink.h; `host` is for addresses that never leave the machine.
const SCOPE_LINK: u8 = 253;
const SCOPE_HOST: u8 = 254;

/// An address of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    pub ip: IpAddr,
    /// Length of its network's prefix in bits.
    pub prefix: u8,
}

impl Socket {
    /// The addresses of an interface that others can reach it by and that somebody gave it: not those of IPv6 that the kernel makes
    /// itself (link-local, from router advertisements).
    ///
    /// # Errors
    /// The kernel refuses, or cannot be asked.
    pub fn addresses(&mut self, index: u32) -> Result<Vec<Address>, NetlinkError> {
        self.list(&Request::dump(GET, &[0; 8]), |item| parse(item, index))
    }

    /// Gives an interface an address, at once and without a route to its network.
    ///
    /// # Errors
    /// The kernel refuses, or cannot be asked.
    pub fn add_address(&mut self, index: u32, address: &Address) -> Result<(), NetlinkError> {
        let Address { ip, prefix } = *address;
        // struct ifaddrmsg: family, prefix, flags, scope, index
        let mut body = vec![family(ip), prefix, 0, 0];
        body.extend(index.to_ne_bytes());
        let mut request = Request::change(NEW, flag::CREATE | flag::EXCL, &body);
        request.put(LOCAL, &ip_bytes(ip));
        request.put(ADDRESS, &ip_bytes(ip));
        request.put(FLAGS, &(NO_DAD | NO_PREFIX_ROUTE).to_ne_bytes());
        if let Some(broadcast) = broadcast(address) {
            request.put(BROADCAST, &broadcast.octets());
        }
        self.request(request)
    }
}

fn parse(item: &[u8], index: u32) -> Option<Address> {
    let [_, prefix, _, scope, ..] = *item else { return None };
    let mut flags = 0;
    let (mut local, mut address) = (None, None);
    for (kind, value) in Attributes::new(item.get(8..)?) {
        match kind {
            LOCAL => local = ip(value),
            ADDRESS => address = ip(value),
            FLAGS => flags = u32_at(value, 0)?,
            _ => {}
        }
    }
    // With a peer, `address` is the peer's.
    let ip = local.or(address)?;
    let given = match ip {
        IpAddr::V4(_) => scope < SCOPE_HOST,
        IpAddr::V6(_) => scope < SCOPE_LINK && flags & PERMANENT != 0,
    };
    (u32_at(item, 4)? == index && given).then_some(Address { ip, prefix })
}

/// That of the network, as ip(8) and CNI plugins set it; networks of two have none (RFC 3021).
fn broadcast(address: &Address) -> Option<Ipv4Addr> {
    let IpAddr::V4(ip) = address.ip else { return None };
    let host_bits = u32::MAX.checked_shr(address.prefix.into()).filter(|_| address.prefix < 31)?;
    Some(Ipv4Addr::from_bits(ip.to_bits() | host_bits))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_of_more_than_two_have_a_broadcast_address() {
        let broadcast = |ip: &str, prefix| {
            broadcast(&Address { ip: ip.parse().unwrap(), prefix }).map(|ip| ip.to_string())
        };
        assert_eq!(broadcast("10.88.3.7", 16).as_deref(), Some("10.88.255.255"));
        assert_eq!(broadcast("10.88.3.7", 30).as_deref(), Some("10.88.3.7"));
        assert_eq!(broadcast("1.2.3.4", 0).as_deref(), Some("255.255.255.255"));
        for (ip, prefix) in [("10.88.3.7", 31), ("10.88.3.7", 32), ("10.88.3.7", 255), ("fd00::1", 64)] {
            assert_eq!(broadcast(ip, prefix), None, "{ip}/{prefix}");
        }
    }
}
