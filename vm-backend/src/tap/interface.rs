//! What CNI gave the pod's interface.

use std::fs;
use std::io;

use hartpod_netlink::{Interface, Link, Socket};

use super::{TapError, netlink, step};

/// Reads what there is to know of it.
pub(super) fn read(socket: &mut Socket, name: &str, link: &Link) -> Result<Interface, TapError> {
    let Some(mac) = link.mac else { return Err(TapError::NoEthernet { name: name.to_owned() }) };
    let no_ipv6 = setting(name, "disable_ipv6")?.is_none_or(|value| value != "0");
    let router_advertisements = setting(name, "accept_ra")?.is_some_and(|value| value != "0");
    Ok(Interface {
        name: name.to_owned(),
        mac,
        mtu: link.mtu,
        addresses: socket.addresses(link.index).map_err(netlink("list the addresses"))?,
        routes: socket.routes(link.index).map_err(netlink("list the routes"))?,
        neighbours: socket.neighbours(link.index).map_err(netlink("list the neighbours"))?,
        no_ipv6,
        router_advertisements,
    })
}

/// Takes IPv6 from the tap: the namespace's kernel would greet the guest as a neighbour.
pub(super) fn silence(tap: &str) -> Result<(), TapError> {
    match fs::write(path(tap, "disable_ipv6"), "1") {
        // A kernel without IPv6.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        written => written.map_err(step("take IPv6 from the tap")),
    }
}

/// A setting of IPv6 in this thread's network namespace; none where the kernel has no IPv6.
fn setting(interface: &str, key: &str) -> Result<Option<String>, TapError> {
    match fs::read_to_string(path(interface, key)) {
        Ok(value) => Ok(Some(value.trim_end().to_owned())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(step("read a setting of the pod's interface")(error)),
    }
}

fn path(interface: &str, key: &str) -> String {
    format!("/proc/sys/net/ipv6/conf/{interface}/{key}")
}
