//! Interfaces.

use crate::attribute::{Attributes, i32_at, u16_at, u32_at};
use crate::message::Request;
use crate::socket::{NetlinkError, Socket};
use rustix::io::Errno;

const NEW: u16 = 16;
const GET: u16 = 18;

/// Attributes (linux/if_link.h).
const ADDRESS: u16 = 1;
const NAME: u16 = 3;
const MTU: u16 = 4;

/// linux/if.h
const UP: u32 = 1;
/// linux/if_arp.h
const ETHERNET: u16 = 1;

/// An interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    /// Its number in the namespace.
    pub index: u32,
    /// Its hardware address, if it is an Ethernet.
    pub mac: Option<[u8; 6]>,
    /// Bytes of the longest packet, without the Ethernet header.
    pub mtu: u32,
    /// Whether it is administratively up.
    pub up: bool,
}

/// What is to be different about an interface; `None` stays.
#[derive(Debug, Clone, Copy, Default)]
pub struct LinkChange<'a> {
    /// Needs it to be down.
    pub name: Option<&'a str>,
    pub mac: Option<[u8; 6]>,
    pub mtu: Option<u32>,
    pub up: Option<bool>,
}

impl Socket {
    /// The interface of this name, if there is one.
    ///
    /// # Errors
    /// The kernel refuses, or cannot be asked.
    pub fn link(&mut self, name: &str) -> Result<Option<Link>, NetlinkError> {
        let mut request = Request::get(GET, &[0; 16]);
        request.put(NAME, &[name.as_bytes(), &[0]].concat());
        let mut found = None;
        match self.exchange(request, |item| found = parse(item)) {
            Ok(_) => found.map(Some).ok_or(NetlinkError::Answer),
            Err(error) if error.refused() == Some(Errno::NODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Changes an interface.
    ///
    /// # Errors
    /// The kernel refuses, or cannot be asked.
    pub fn change_link(&mut self, index: u32, change: &LinkChange<'_>) -> Result<(), NetlinkError> {
        let LinkChange { name, mac, mtu, up } = change;
        // struct ifinfomsg: family, type, index, flags, which of them to change
        let flags = if *up == Some(true) { UP } else { 0 };
        let mask = if up.is_some() { UP } else { 0 };
        let body = [0, index, flags, mask].map(u32::to_ne_bytes).concat();
        let mut request = Request::change(NEW, 0, &body);
        if let Some(mac) = mac {
            request.put(ADDRESS, mac);
        }
        if let Some(mtu) = mtu {
            request.put(MTU, &mtu.to_ne_bytes());
        }
        if let Some(name) = name {
            request.put(NAME, &[name.as_bytes(), &[0]].concat());
        }
        self.request(request)
    }
}

fn parse(item: &[u8]) -> Option<Link> {
    let is_ethernet = u16_at(item, 2)? == ETHERNET;
    let mut link = Link {
        index: u32::try_from(i32_at(item, 4)?).ok()?,
        mac: None,
        mtu: 0,
        up: u32_at(item, 8)? & UP != 0,
    };
    for (kind, value) in Attributes::new(item.get(16..)?) {
        match kind {
            ADDRESS if is_ethernet => link.mac = value.try_into().ok(),
            MTU => link.mtu = u32_at(value, 0)?,
            _ => {}
        }
    }
    Some(link)
}
