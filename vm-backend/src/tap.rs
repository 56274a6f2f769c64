//! A guest's network on the host: a tap in the pod's network namespace, joined to the interface that CNI made there.
//!
//! ```text
//! bridge .. veth | eth0 --(tc: ingress redirected)--> tap0 | VMM | the guest's eth0
//!                |      <-(tc: ingress redirected)--       |
//! ```
//!
//! The guest's card takes over the interface's hardware address, MTU, addresses and routes ([`Interface`]). So whoever is out there notices
//! nothing, and what works for the interface (hostPort, policies, CNI CHECK) works for the guest. The interface keeps all that
//! too, but the namespace's kernel never answers in the guest's place: every packet is redirected before it sees it.
//!
//! Everything here blocks for milliseconds: not for a runtime's threads. The namespace is entered by a thread of its own.
//!
//! Limits: one interface per pod; routes of the main table only, and the first of several gateways; what a plugin sets by sysctl stays behind but for
//! IPv6 being off and router advertisements being heeded.

mod device;
mod interface;
mod netns;
mod redirect;
mod sys;
#[cfg(test)]
mod tests;

pub use hartpod_netlink::{Address, Interface, Neighbour, NetlinkError, Route};

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use hartpod_netlink::{LinkChange, Socket};

use crate::boot::NetDevice;
use device::MAX_MTU;

/// What a guest's card is told at boot, before it is known which one it will be. Any address will do until then; the greatest MTU, since a
/// driver never takes more than it was told at boot.
const BOOT_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const BOOT_MTU: u16 = u16::MAX;

/// Why a guest has no network.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// The namespace cannot be entered, or its thread not be started.
    #[error("enter the pod's network namespace")]
    Enter(#[source] io::Error),
    /// The kernel was built without something, or a module is not installed.
    #[error("{what} needs the kernel module {module}")]
    Module {
        /// What was tried.
        what: &'static str,
        /// What the kernel lacks.
        module: &'static str,
        /// In the kernel's words.
        #[source]
        source: io::Error,
    },
    /// CNI made no such interface, or it is gone.
    #[error("the pod's network namespace has no interface {name}")]
    NoInterface {
        /// Its name.
        name: String,
    },
    /// Something that a guest's card cannot stand for, such as a tunnel.
    #[error("interface {name} is no Ethernet")]
    NoEthernet {
        /// Its name.
        name: String,
    },
    /// A request that the kernel refused.
    #[error("{what}")]
    Netlink {
        /// What was tried.
        what: &'static str,
        /// Why not.
        #[source]
        source: NetlinkError,
    },
    /// Any other step.
    #[error("{what}")]
    Step {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

fn step<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> TapError {
    move |error| TapError::Step { what, source: error.into() }
}

fn netlink(what: &'static str) -> impl FnOnce(NetlinkError) -> TapError {
    move |source| TapError::Netlink { what, source }
}

/// A tap, which goes with its last descriptor: this one's and those of the devices made of it.
#[derive(Debug)]
pub struct Tap {
    fd: OwnedFd,
    netns: OwnedFd,
    name: String,
}

impl Tap {
    /// Its name in the pod's network namespace.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A guest's network device on it. The guest's agent gives the card its address and MTU once they are known.
    ///
    /// # Errors
    /// No descriptor is free.
    pub fn device(&self) -> io::Result<NetDevice> {
        Ok(NetDevice { tap: self.fd.try_clone()?, mac: BOOT_MAC, mtu: BOOT_MTU })
    }
}

/// Makes a tap in the network namespace `netns`. It stays down until it is connected: what a guest may send earlier goes nowhere.
///
/// # Errors
/// See [`TapError`]. Nothing is left behind.
pub fn open_blocking(netns: BorrowedFd<'_>) -> Result<Tap, TapError> {
    let kept = netns.try_clone_to_owned().map_err(TapError::Enter)?;
    let (fd, name) = netns::inside(netns, device::open)?;
    Ok(Tap { fd, netns: kept, name })
}

/// Joins a tap to the interface `name` of its namespace, and tells what the guest's card is to have. Once CNI is done with the interface;
/// again changes nothing.
///
/// # Errors
/// See [`TapError`]. Whatever was done by then goes with the tap and the interface.
pub fn connect_blocking(tap: &Tap, name: &str) -> Result<Interface, TapError> {
    netns::inside(tap.netns.as_fd(), || connect(tap, name))
}

/// Tries all of it in a network namespace that goes at once: whether this machine can give guests a network.
///
/// # Errors
/// What it lacks.
pub fn probe_blocking() -> Result<(), TapError> {
    netns::apart(|| {
        let (interface, name) = device::open()?;
        let netns = netns::current()?;
        let (fd, tap_name) = device::open()?;
        let result = connect(&Tap { fd, netns, name: tap_name }, &name).map(drop);
        drop(interface);
        result
    })
}

fn connect(tap: &Tap, name: &str) -> Result<Interface, TapError> {
    let mut socket = Socket::open().map_err(netlink("open a netlink socket"))?;
    let mut find = |name: &str| {
        let found = socket.link(name).map_err(netlink("look for an interface"))?;
        found.ok_or_else(|| TapError::NoInterface { name: name.to_owned() })
    };
    let (outer, inner) = (find(name)?, find(&tap.name)?);
    let interface = interface::read(&mut socket, name, &outer)?;
    interface::silence(&tap.name)?;
    let change = LinkChange { mtu: Some(outer.mtu.min(MAX_MTU)), ..LinkChange::default() };
    socket.change_link(inner.index, &change).map_err(netlink("set the MTU of the tap"))?;
    redirect::ingress(&mut socket, inner.index, outer.index)?;
    redirect::ingress(&mut socket, outer.index, inner.index)?;
    // Only now, so that nothing reaches the namespace's own kernel from the guest.
    let change = LinkChange { up: Some(true), ..LinkChange::default() };
    socket.change_link(inner.index, &change).map_err(netlink("bring the tap up"))?;
    Ok(interface)
}
