//! What the network's plugins are told about a pod.

use std::net::IpAddr;
use std::path::PathBuf;

use hartpod_cni::{Attachment, Bandwidth, Capabilities, Dns, InvalidBandwidth, PortMapping, Protocol};
use hartpod_proto::cri::v1 as cri;
use hartpod_proto::pod::v1 as pod;
use hartpod_vm::tap::{Interface, Neighbour, Route};

use super::PodInfo;

/// Name of the pod's interface, as the kubelet and all plugins expect.
pub(crate) const INTERFACE: &str = "eth0";

/// A network configuration that makes no sense.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InvalidNetwork {
    #[error("port mapping {index}: {what} {port} is not a port")]
    Port { index: usize, what: &'static str, port: i32 },
    #[error("port mapping {index}: unknown protocol {protocol}")]
    Protocol { index: usize, protocol: i32 },
    #[error(transparent)]
    Bandwidth(#[from] InvalidBandwidth),
}

/// How the pod joins its network; none with the host's.
pub(crate) fn attachment(info: &PodInfo) -> Result<Option<Attachment>, InvalidNetwork> {
    let Some(netns) = info.netns.clone() else { return Ok(None) };
    let config = &info.config;
    let mappings = config.port_mappings.iter().enumerate();
    let capabilities = Capabilities {
        port_mappings: mappings.map(|(index, m)| port_mapping(index, m)).collect::<Result<_, _>>()?,
        bandwidth: Bandwidth::from_annotations(&config.annotations)?,
        dns: config.dns_config.as_ref().map(|dns| Dns {
            servers: dns.servers.clone(),
            searches: dns.searches.clone(),
            options: dns.options.clone(),
        }),
        aliases: Vec::new(),
        cgroup_path: Some(info.cgroup_parent().to_owned()).filter(|p| !p.is_empty()),
        pod_annotations: config.annotations.clone(),
    };
    Ok(Some(Attachment {
        container_id: info.id.to_string(),
        netns: Some(netns),
        ifname: INTERFACE.to_owned(),
        pod_namespace: info.name.namespace.clone(),
        pod_name: info.name.name.clone(),
        pod_uid: info.name.uid.clone(),
        capabilities,
    }))
}

/// For a pod of which only the id is known: enough to leave a network, whether or not the record of its joining is whole.
pub(crate) fn bare_attachment(id: &str, netns: PathBuf) -> Attachment {
    Attachment {
        container_id: id.to_owned(),
        netns: Some(netns),
        ifname: INTERFACE.to_owned(),
        pod_namespace: String::new(),
        pod_name: String::new(),
        pod_uid: String::new(),
        capabilities: Capabilities::default(),
    }
}

/// What the agent of a guest sets its network card to: what the plugins made of the pod's interface.
pub(super) fn of_guest(interface: &Interface) -> pod::GuestNetwork {
    let prefix = |ip: IpAddr, length: u8| pod::IpPrefix { ip: octets(ip), length: length.into() };
    let route = |route: &Route| pod::GuestRoute {
        destination: Some(prefix(route.destination.0, route.destination.1)),
        gateway: route.gateway.map(octets).unwrap_or_default(),
        source: route.source.map(octets).unwrap_or_default(),
        metric: route.metric,
        mtu: route.mtu,
        scope: route.scope.into(),
        on_link: route.on_link,
    };
    let neighbour = |n: &Neighbour| pod::GuestNeighbour { ip: octets(n.ip), mac: n.mac.to_vec() };
    pod::GuestNetwork {
        interface: interface.name.clone(),
        mac: interface.mac.to_vec(),
        mtu: interface.mtu,
        addresses: interface.addresses.iter().map(|a| prefix(a.ip, a.prefix)).collect(),
        routes: interface.routes.iter().map(route).collect(),
        neighbours: interface.neighbours.iter().map(neighbour).collect(),
        no_ipv6: interface.no_ipv6,
        router_advertisements: interface.router_advertisements,
    }
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn port_mapping(index: usize, mapping: &cri::PortMapping) -> Result<PortMapping, InvalidNetwork> {
    let port = |what, port: i32| u16::try_from(port).map_err(|_| InvalidNetwork::Port { index, what, port });
    let protocol = match cri::Protocol::try_from(mapping.protocol) {
        Ok(cri::Protocol::Tcp) => Protocol::Tcp,
        Ok(cri::Protocol::Udp) => Protocol::Udp,
        Ok(cri::Protocol::Sctp) => Protocol::Sctp,
        Err(_) => return Err(InvalidNetwork::Protocol { index, protocol: mapping.protocol }),
    };
    Ok(PortMapping {
        host_port: port("host port", mapping.host_port)?,
        container_port: port("container port", mapping.container_port)?,
        protocol,
        host_ip: mapping.host_ip.clone(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_is_none_is_refused() {
        let mapping = |host_port| cri::PortMapping { host_port, container_port: 80, ..Default::default() };
        assert!(port_mapping(0, &mapping(8080)).is_ok());
        for bad in [-1, 65536] {
            let error = port_mapping(2, &mapping(bad)).unwrap_err().to_string();
            assert_eq!(error, format!("port mapping 2: host port {bad} is not a port"));
        }
        let unknown = cri::PortMapping { protocol: 9, ..Default::default() };
        assert!(port_mapping(0, &unknown).is_err());
    }
}
