//! Who has which address on a link.

use std::net::IpAddr;

use crate::attribute::{Attributes, family, ip, ip_bytes, u16_at, u32_at};
use crate::message::{Request, flag};
use crate::socket::{NetlinkError, Socket};

const NEW: u16 = 28;
const GET: u16 = 30;

/// Attributes, and the state of an entry that somebody made (linux/neighbour.h).
const DESTINATION: u16 = 1;
const MAC: u16 = 2;
const PERMANENT: u16 = 0x80;

/// A neighbour that need not be asked for its address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Neighbour {
    pub ip: IpAddr,
    pub mac: [u8; 6],
}

impl Socket {
    /// The neighbours that somebody has entered at an interface.
    ///
    /// # Errors
    /// The kernel refuses, or cannot be asked.
    pub fn neighbours(&mut self, index: u32) -> Result<Vec<Neighbour>, NetlinkError> {
        self.list(&Request::dump(GET, &[0; 12]), |item| parse(item, index))
    }

    /// Enters a neighbour.
    ///
    /// # Errors
    /// The kernel refuses, or cannot be asked.
    pub fn add_neighbour(&mut self, index: u32, neighbour: &Neighbour) -> Result<(), NetlinkError> {
        // struct ndmsg: family, index, state, flags, type
        let mut body = vec![family(neighbour.ip), 0, 0, 0];
        body.extend(index.to_ne_bytes());
        body.extend(PERMANENT.to_ne_bytes());
        body.extend([0; 2]);
        let mut request = Request::change(NEW, flag::CREATE, &body);
        request.put(DESTINATION, &ip_bytes(neighbour.ip));
        request.put(MAC, &neighbour.mac);
        self.request(request)
    }
}

fn parse(item: &[u8], index: u32) -> Option<Neighbour> {
    let (mut address, mut mac) = (None, None);
    for (kind, value) in Attributes::new(item.get(12..)?) {
        match kind {
            DESTINATION => address = ip(value),
            MAC => mac = value.try_into().ok(),
            _ => {}
        }
    }
    let entered = u32_at(item, 4)? == index && u16_at(item, 8)? & PERMANENT != 0;
    // IPv4's own entries for multicast have no address of anybody's.
    Some(Neighbour { ip: address?, mac: mac? }).filter(|_| entered)
}
