//! Routes of the main table.

use std::net::IpAddr;

use crate::attribute::{Attributes, family, ip, ip_bytes, u16_at, u32_at};
use crate::message::{Request, flag};
use crate::socket::{NetlinkError, Socket};

const NEW: u16 = 24;
const GET: u16 = 26;

/// Attributes (linux/rtnetlink.h).
const DESTINATION: u16 = 1;
const OUT: u16 = 4;
const GATEWAY: u16 = 5;
const METRIC: u16 = 6;
const SOURCE: u16 = 7;
const METRICS: u16 = 8;
const MULTIPATH: u16 = 9;
const TABLE: u16 = 15;
const VIA: u16 = 18;
/// Within METRICS.
const MTU: u16 = 2;

const MAIN: u32 = 254;
const UNICAST: u8 = 1;
/// Who made a route: an ICMP redirect, an administrator at boot, a router advertisement.
const BY_REDIRECT: u8 = 1;
const BY_BOOT: u8 = 3;
const BY_ADVERTISEMENT: u8 = 9;
/// Flags: a gateway need not be in a network that has a route; an entry of a cache.
const ON_LINK: u32 = 4;
const CLONED: u32 = 0x200;

/// A route of the main table to one interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// Everything: an unspecified address and 0.
    pub destination: (IpAddr, u8),
    /// None: the destination is on the link. It may be of the other family than the destination (RFC 5549). Of several gateways by the
    /// interface this is the first.
    pub gateway: Option<IpAddr>,
    /// The address to send from.
    pub source: Option<IpAddr>,
    /// The least one wins; 0 is the kernel's default.
    pub metric: u32,
    /// 0: the interface's.
    pub mtu: u32,
    /// RT_SCOPE_..: 0 is everywhere, 253 the link. Only for IPv4.
    pub scope: u8,
    /// The gateway is on the link though no other route says so.
    pub on_link: bool,
}

impl Socket {
    /// The routes to an interface that somebody made or that came with its addresses, those without a gateway first, so that they can be
    /// added to another interface in this order.
    ///
    /// # Errors
    /// The kernel refuses, or cannot be asked.
    pub fn routes(&mut self, index: u32) -> Result<Vec<Route>, NetlinkError> {
        let mut routes = self.list(&Request::dump(GET, &[0; 12]), |item| parse(item, index))?;
        routes.sort_by_key(|route| route.gateway.is_some());
        Ok(routes)
    }

    /// Adds a route to an interface, which must be up.
    ///
    /// # Errors
    /// The kernel refuses, or cannot be asked.
    pub fn add_route(&mut self, index: u32, route: &Route) -> Result<(), NetlinkError> {
        let (destination, prefix) = route.destination;
        // struct rtmsg: family, prefixes of destination and source, TOS, table, by whom, scope, type; flags
        let scope = if destination.is_ipv4() { route.scope } else { 0 };
        let mut body = vec![family(destination), prefix, 0, 0, 254, BY_BOOT, scope, UNICAST];
        body.extend(if route.on_link { ON_LINK } else { 0 }.to_ne_bytes());
        let mut request = Request::change(NEW, flag::CREATE | flag::EXCL, &body);
        request.put(DESTINATION, &ip_bytes(destination));
        request.put(OUT, &index.to_ne_bytes());
        match route.gateway {
            Some(gateway) if gateway.is_ipv4() == destination.is_ipv4() => {
                request.put(GATEWAY, &ip_bytes(gateway));
            }
            Some(gateway) => {
                let family = u16::from(family(gateway)).to_ne_bytes();
                request.put(VIA, &[&family[..], &ip_bytes(gateway)].concat());
            }
            None => {}
        }
        if let Some(source) = route.source {
            request.put(SOURCE, &ip_bytes(source));
        }
        if route.metric > 0 {
            request.put(METRIC, &route.metric.to_ne_bytes());
        }
        if route.mtu > 0 {
            request.nest(METRICS, |request| request.put(MTU, &route.mtu.to_ne_bytes()));
        }
        self.request(request)
    }
}

fn parse(item: &[u8], index: u32) -> Option<Route> {
    let [af, prefix, _, _, table, by, scope, kind, ..] = *item else { return None };
    let flags = u32_at(item, 8)?;
    let everything = match af {
        2 => IpAddr::from([0; 4]),
        10 => IpAddr::from([0; 16]),
        _ => return None,
    };
    let mut route = Route {
        destination: (everything, prefix),
        gateway: None,
        source: None,
        metric: 0,
        mtu: 0,
        scope,
        on_link: flags & ON_LINK != 0,
    };
    let (mut table, mut out) = (u32::from(table), None);
    for (kind, value) in Attributes::new(item.get(12..)?) {
        match kind {
            DESTINATION => route.destination.0 = ip(value)?,
            OUT => out = u32_at(value, 0),
            GATEWAY => route.gateway = ip(value),
            VIA => route.gateway = ip(value.get(2..)?),
            SOURCE => route.source = ip(value),
            METRIC => route.metric = u32_at(value, 0)?,
            METRICS => route.mtu = mtu(value),
            TABLE => table = u32_at(value, 0)?,
            MULTIPATH => {
                if let Some(gateway) = first_gateway(value, index) {
                    (out, route.gateway) = (Some(index), gateway);
                }
            }
            _ => {}
        }
    }
    let made = kind == UNICAST && flags & CLONED == 0 && ![BY_REDIRECT, BY_ADVERTISEMENT].contains(&by);
    (table == MAIN && out == Some(index) && made && !is_link_local(&route)).then_some(route)
}

/// The gateway of the first next hop by this interface, if there is one (struct rtnexthop: length, flags, weight, interface; attributes).
fn first_gateway(mut hops: &[u8], index: u32) -> Option<Option<IpAddr>> {
    loop {
        let length = usize::from(u16_at(hops, 0)?);
        let attributes = hops.get(8..length)?;
        if u32_at(hops, 4)? == index {
            let gateway = Attributes::new(attributes).find_map(|(kind, value)| match kind {
                GATEWAY => ip(value),
                VIA => ip(value.get(2..)?),
                _ => None,
            });
            return Some(gateway);
        }
        hops = hops.get(length.next_multiple_of(4)..)?;
    }
}

fn mtu(metrics: &[u8]) -> u32 {
    let mtu = Attributes::new(metrics).find(|(kind, _)| *kind == MTU);
    mtu.and_then(|(_, value)| u32_at(value, 0)).unwrap_or(0)
}

/// IPv6's network of a link alone, which each interface has by itself.
fn is_link_local(route: &Route) -> bool {
    match route.destination {
        (IpAddr::V6(network), prefix) => prefix >= 10 && network.is_unicast_link_local(),
        (IpAddr::V4(_), _) => false,
    }
}
