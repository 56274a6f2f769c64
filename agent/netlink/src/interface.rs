//! The interface of a pod.

use crate::{Address, Neighbour, Route};

/// What the interface that CNI made for a pod has, and the one in a guest that stands for it is to have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    pub name: String,
    pub mac: [u8; 6],
    pub mtu: u32,
    pub addresses: Vec<Address>,
    /// In an order in which they can be added.
    pub routes: Vec<Route>,
    /// Those that somebody has entered.
    pub neighbours: Vec<Neighbour>,
    /// It has no IPv6 at all.
    pub no_ipv6: bool,
    /// It heeds router advertisements. CNI plugins that make a pod's network switch that off, as any pod could send some.
    pub router_advertisements: bool,
}
