//! Checks on RunPodSandbox.

use std::net::IpAddr;
use std::path::Path;

use hartpod_container::cgroup::PathError;
use hartpod_proto::cri::v1::{self as cri, NamespaceMode as Mode};

use super::{Checked, annotations, invalid, labels, name, plain_path, sysctl, user_namespace};
use crate::backend::is_guest;

/// Longest host name that the kernel keeps (HOST_NAME_MAX, limits.h).
const HOSTNAME_MAX: usize = 64;

/// Kubernetes' limits on resolv.conf (pkg/apis/core/validation): what a C library reads and the kubelet cuts to.
const DNS_SERVERS_MAX: usize = 3;
const DNS_SEARCHES_MAX: usize = 32;
const DNS_SEARCH_BYTES_MAX: usize = 2048;

/// What a pod is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Namespaces of the node.
    Namespaces,
    /// A guest, which has a kernel of its own and nothing of the node's.
    Guest,
}

impl Kind {
    /// By the runtime handler of the request, which exists.
    pub fn of(handler: &str) -> Self {
        if is_guest(handler) { Self::Guest } else { Self::Namespaces }
    }
}

/// Checks a sandbox's configuration.
pub fn sandbox(config: &cri::PodSandboxConfig, kind: Kind) -> Checked {
    let Some(metadata) = &config.metadata else {
        return Err(invalid("config.metadata", "is missing"));
    };
    name("config.metadata.name", &metadata.name)?;
    name("config.metadata.namespace", &metadata.namespace)?;
    name("config.metadata.uid", &metadata.uid)?;
    hostname(&config.hostname)?;
    if !config.log_directory.is_empty() {
        plain_path("config.log_directory", &config.log_directory)?;
        if !Path::new(&config.log_directory).is_absolute() {
            let problem = format!("{} is not an absolute path", config.log_directory);
            return Err(invalid("config.log_directory", problem));
        }
    }
    labels("config.labels", &config.labels)?;
    annotations("config.annotations", &config.annotations)?;
    config.dns_config.as_ref().map_or(Ok(()), dns)?;
    for (index, mapping) in config.port_mappings.iter().enumerate() {
        port_mapping(index, mapping)?;
        host_port_is_free(index, &config.port_mappings)?;
    }
    config.linux.as_ref().map_or(Ok(()), |config| linux(config, kind))
}

fn hostname(text: &str) -> Checked {
    const FIELD: &str = "config.hostname";
    if text.len() > HOSTNAME_MAX {
        let problem = format!("{text:?} is {} bytes long, at most {HOSTNAME_MAX} are allowed", text.len());
        return Err(invalid(FIELD, problem));
    }
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    let edge = |c: char| c.is_ascii_alphanumeric();
    if !text.chars().all(plain) || !text.starts_with(edge) && !text.is_empty() || text.ends_with(['-', '.']) {
        return Err(invalid(FIELD, format!("{text:?} is not a host name")));
    }
    Ok(())
}

/// What goes into resolv.conf, a word at a time.
fn dns(config: &cri::DnsConfig) -> Checked {
    let at_most = |field: &str, found: usize, most: usize, of: &str| {
        if found <= most {
            return Ok(());
        }
        Err(invalid(
            format!("config.dns_config.{field}"),
            format!("{found} {of}, at most {most} are allowed"),
        ))
    };
    at_most("servers", config.servers.len(), DNS_SERVERS_MAX, "servers")?;
    at_most("searches", config.searches.len(), DNS_SEARCHES_MAX, "domains")?;
    let bytes: usize = config.searches.iter().map(|s| s.len() + 1).sum();
    at_most("searches", bytes, DNS_SEARCH_BYTES_MAX, "bytes")?;
    for server in &config.servers {
        // fe80::1%eth0 names the interface of a link-local address.
        let (address, zone) = server.split_once('%').unwrap_or((server, "eth0"));
        if address.parse::<IpAddr>().is_err() || zone.is_empty() || !is_word(zone) {
            return Err(invalid("config.dns_config.servers", format!("{server:?} is not an IP address")));
        }
    }
    for (field, words) in [("searches", &config.searches), ("options", &config.options)] {
        if let Some(word) = words.iter().find(|w| !is_word(w)) {
            return Err(invalid(format!("config.dns_config.{field}"), format!("{word:?} is not one word")));
        }
    }
    Ok(())
}

fn is_word(text: &str) -> bool {
    !text.is_empty() && !text.chars().any(|c| c.is_whitespace() || c.is_control())
}

/// Ports without a host port are only told, not mapped.
fn port_mapping(index: usize, mapping: &cri::PortMapping) -> Checked {
    let field = |name: &str| format!("config.port_mappings[{index}].{name}");
    if cri::Protocol::try_from(mapping.protocol).is_err() {
        return Err(invalid(field("protocol"), format!("{} is not known", mapping.protocol)));
    }
    for (name, port) in [("container_port", mapping.container_port), ("host_port", mapping.host_port)] {
        if u16::try_from(port).is_err() {
            return Err(invalid(field(name), format!("{port} is not a port")));
        }
    }
    if mapping.host_port != 0 && mapping.container_port == 0 {
        return Err(invalid(field("container_port"), "is missing"));
    }
    if !mapping.host_ip.is_empty() && mapping.host_ip.parse::<IpAddr>().is_err() {
        return Err(invalid(field("host_ip"), format!("{:?} is not an IP address", mapping.host_ip)));
    }
    Ok(())
}

/// Two containers of a pod behind one port of the node: only one of them would ever be reached.
fn host_port_is_free(index: usize, mappings: &[cri::PortMapping]) -> Checked {
    /// What a mapping without an address means.
    const EVERY_ADDRESS: &str = "0.0.0.0";
    let place = |m: &cri::PortMapping| {
        let ip = if m.host_ip.is_empty() { EVERY_ADDRESS } else { &m.host_ip };
        (m.host_port, m.protocol, ip.parse::<IpAddr>().ok())
    };
    let wanted = place(&mappings[index]);
    let taken = mappings[..index].iter().position(|earlier| place(earlier) == wanted);
    match taken {
        Some(earlier) if mappings[index].host_port != 0 => Err(invalid(
            format!("config.port_mappings[{index}].host_port"),
            format!("{} is taken by config.port_mappings[{earlier}]", mappings[index].host_port),
        )),
        _ => Ok(()),
    }
}

fn linux(config: &cri::LinuxPodSandboxConfig, kind: Kind) -> Checked {
    cgroup_parent(&config.cgroup_parent)?;
    let options = crate::spec::pod_namespaces(config);
    const FIELD: &str = "config.linux.security_context.namespace_options";
    let allowed: [(&str, i32, &[Mode]); 3] = [
        ("network", options.network, &[Mode::Pod, Mode::Node]),
        ("pid", options.pid, &[Mode::Pod, Mode::Container, Mode::Node]),
        ("ipc", options.ipc, &[Mode::Pod, Mode::Node]),
    ];
    for (name, value, modes) in allowed {
        if !Mode::try_from(value).is_ok_and(|m| modes.contains(&m)) {
            let names = modes.iter().map(|m| m.as_str_name()).collect::<Vec<_>>().join(" or ");
            return Err(invalid(format!("{FIELD}.{name}"), format!("must be {names}")));
        }
        if kind == Kind::Guest && value == Mode::Node as i32 {
            let problem = "NODE is not possible with runtime handler \"vm\": a guest has a kernel of its own";
            return Err(invalid(format!("{FIELD}.{name}"), problem));
        }
    }
    if user_namespace(FIELD, &options)?.is_some() {
        if kind == Kind::Guest {
            let problem =
                "POD is not possible with runtime handler \"vm\": a guest has a kernel and users of its own";
            return Err(invalid(format!("{FIELD}.userns_options.mode"), problem));
        }
        for (name, value) in [("pid", options.pid), ("ipc", options.ipc)] {
            if value == Mode::Node as i32 {
                let problem =
                    "NODE is not possible for a pod with a user namespace, which does not own the node's";
                return Err(invalid(format!("{FIELD}.{name}"), problem));
            }
        }
    }
    for (key, value) in &config.sysctls {
        sysctl::check(key, value, &options, kind)?;
    }
    Ok(())
}

fn cgroup_parent(text: &str) -> Checked {
    const FIELD: &str = "config.linux.cgroup_parent";
    plain_path(FIELD, text)?;
    match hartpod_container::cgroup::check_parent(text) {
        Err(PathError::Parent { reason, .. }) => Err(invalid(FIELD, reason)),
        Err(PathError::Id { .. }) | Ok(()) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> cri::PodSandboxConfig {
        cri::PodSandboxConfig {
            metadata: Some(cri::PodSandboxMetadata {
                name: "web".into(),
                uid: "5b1e".into(),
                namespace: "shop".into(),
                attempt: 0,
            }),
            hostname: "web-0".into(),
            log_directory: "/var/log/pods/shop_web_5b1e".into(),
            dns_config: Some(cri::DnsConfig {
                servers: vec!["10.96.0.10".into(), "fe80::1%eth0".into()],
                searches: vec!["svc.cluster.local".into()],
                options: vec!["ndots:5".into()],
            }),
            linux: Some(cri::LinuxPodSandboxConfig {
                cgroup_parent: "/kubepods/besteffort/pod5b1e".into(),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    fn refusal(change: impl FnOnce(&mut cri::PodSandboxConfig)) -> String {
        let mut config = good();
        change(&mut config);
        sandbox(&config, Kind::Namespaces).unwrap_err().to_string()
    }

    #[test]
    fn what_the_kubelet_sends_passes() {
        sandbox(&good(), Kind::Namespaces).unwrap();
        let bare = cri::PodSandboxConfig { metadata: good().metadata, ..Default::default() };
        sandbox(&bare, Kind::Namespaces).unwrap();
    }

    #[test]
    fn a_port_of_the_node_leads_to_one_place() {
        let mapping = |host_port, host_ip: &str, protocol: cri::Protocol| cri::PortMapping {
            host_port,
            host_ip: host_ip.into(),
            container_port: 80,
            protocol: protocol.into(),
        };
        use cri::Protocol::{Tcp, Udp};
        let with = |second| {
            let mut config = good();
            config.port_mappings = vec![mapping(0, "", Tcp), mapping(8080, "", Tcp), second];
            sandbox(&config, Kind::Namespaces)
        };
        for taken in ["", "0.0.0.0"] {
            let error = with(mapping(8080, taken, Tcp)).unwrap_err().to_string();
            assert_eq!(error, "config.port_mappings[2].host_port: 8080 is taken by config.port_mappings[1]");
        }
        for free in [
            mapping(8081, "", Tcp),
            mapping(8080, "", Udp),
            mapping(8080, "10.0.0.1", Tcp),
            mapping(0, "", Tcp),
        ] {
            with(free).unwrap();
        }
    }

    #[test]
    fn a_guest_has_nothing_of_the_nodes() {
        sandbox(&good(), Kind::Guest).unwrap();
        for name in ["network", "pid", "ipc"] {
            let mut options = cri::NamespaceOption::default();
            match name {
                "network" => options.network = Mode::Node.into(),
                "pid" => options.pid = Mode::Node.into(),
                _ => options.ipc = Mode::Node.into(),
            }
            let security_context =
                cri::LinuxSandboxSecurityContext { namespace_options: Some(options), ..Default::default() };
            let mut config = good();
            config.linux.as_mut().unwrap().security_context = Some(security_context);
            sandbox(&config, Kind::Namespaces).unwrap();
            let error = sandbox(&config, Kind::Guest).unwrap_err().to_string();
            let expected = "NODE is not possible with runtime handler \"vm\"";
            assert!(error.contains(&format!("namespace_options.{name}: {expected}")), "{error}");
        }
    }

    #[test]
    fn only_a_guest_can_have_any_kernel_parameter() {
        let mut config = good();
        config.linux.as_mut().unwrap().sysctls =
            [("vm.max_map_count".to_owned(), "262144".to_owned())].into();
        assert!(
            sandbox(&config, Kind::Namespaces).unwrap_err().to_string().contains("would change the node")
        );
        sandbox(&config, Kind::Guest).unwrap();
        config.linux.as_mut().unwrap().sysctls = [("vm..x".to_owned(), "1".to_owned())].into();
        assert!(sandbox(&config, Kind::Guest).is_err());
    }

    #[test]
    fn names_are_needed_and_fit_where_they_go() {
        let metadata =
            |change: fn(&mut cri::PodSandboxMetadata)| refusal(|c| change(c.metadata.as_mut().unwrap()));
        assert_eq!(refusal(|c| c.metadata = None), "config.metadata: is missing");
        assert_eq!(metadata(|m| m.name.clear()), "config.metadata.name: is empty");
        assert_eq!(metadata(|m| m.uid.clear()), "config.metadata.uid: is empty");
        assert_eq!(metadata(|m| m.namespace.clear()), "config.metadata.namespace: is empty");
        assert_eq!(metadata(|m| m.uid = "a/../b".into()), "config.metadata.uid: \"a/../b\" cannot be a name");
        assert_eq!(
            metadata(|m| m.name = "a;K8S_POD_UID=1".into()),
            "config.metadata.name: \"a;K8S_POD_UID=1\" cannot be a name"
        );
    }

    #[test]
    fn host_names_are_what_the_kernel_and_dns_take() {
        for bad in ["-a", "a-", "a.", ".a", "a b", "a\n", "ä", &"x".repeat(65)] {
            assert!(refusal(|c| c.hostname = bad.into()).starts_with("config.hostname: "), "{bad}");
        }
        for fine in ["", "a", "Web-0", "ip-10-0-0-1.ec2.internal", &"x".repeat(64)] {
            sandbox(&cri::PodSandboxConfig { hostname: fine.into(), ..good() }, Kind::Namespaces).unwrap();
        }
    }

    #[test]
    fn paths_stay_where_they_are() {
        assert_eq!(
            refusal(|c| c.log_directory = "logs".into()),
            "config.log_directory: logs is not an absolute path"
        );
        assert_eq!(
            refusal(|c| c.log_directory = "/a/../b".into()),
            "config.log_directory: /a/../b contains .."
        );
        let parent = |text: &str| refusal(|c| c.linux.as_mut().unwrap().cgroup_parent = text.into());
        assert_eq!(parent("/kubepods/../x"), "config.linux.cgroup_parent: /kubepods/../x contains ..");
        assert_eq!(parent("/kubepods/./x"), "config.linux.cgroup_parent: has a `.` or `..` in it");
        assert_eq!(parent(&"/x".repeat(3000)), "config.linux.cgroup_parent: is longer than 1024 bytes");
        assert!(parent("kubepods--pod1.slice").contains("a part between dashes is empty"));
    }

    #[test]
    fn resolv_conf_cannot_be_injected_or_overfull() {
        let dns = |change: fn(&mut cri::DnsConfig)| refusal(|c| change(c.dns_config.as_mut().unwrap()));
        assert_eq!(
            dns(|d| d.servers = vec!["1.1.1.1".into(); 4]),
            "config.dns_config.servers: 4 servers, at most 3 are allowed"
        );
        assert_eq!(
            dns(|d| d.searches = vec!["a".into(); 33]),
            "config.dns_config.searches: 33 domains, at most 32 are allowed"
        );
        assert!(dns(|d| d.searches = vec!["a".repeat(300); 8]).ends_with("bytes, at most 2048 are allowed"));
        assert!(dns(|d| d.servers = vec!["dns.example".into()]).ends_with("is not an IP address"));
        assert!(dns(|d| d.servers = vec!["::1%e\nh".into()]).ends_with("is not an IP address"));
        assert!(dns(|d| d.options = vec!["ndots:5\nnameserver 6.6.6.6".into()]).ends_with("is not one word"));
        assert!(dns(|d| d.searches = vec![String::new()]).ends_with("is not one word"));
    }

    #[test]
    fn ports_are_ports() {
        let mapping = |container_port, host_port, host_ip: &str, protocol| cri::PortMapping {
            container_port,
            host_port,
            host_ip: host_ip.into(),
            protocol,
        };
        for (mapping, expected) in [
            (mapping(70_000, 0, "", 0), "config.port_mappings[0].container_port: 70000 is not a port"),
            (mapping(80, -1, "", 0), "config.port_mappings[0].host_port: -1 is not a port"),
            (mapping(0, 80, "", 0), "config.port_mappings[0].container_port: is missing"),
            (mapping(80, 80, "node", 0), "config.port_mappings[0].host_ip: \"node\" is not an IP address"),
            (mapping(80, 80, "", 7), "config.port_mappings[0].protocol: 7 is not known"),
        ] {
            assert_eq!(refusal(|c| c.port_mappings = vec![mapping]), expected);
        }
        let config = cri::PodSandboxConfig { port_mappings: vec![mapping(80, 8080, "::1", 2)], ..good() };
        sandbox(&config, Kind::Namespaces).unwrap();
    }

    fn users() -> cri::UserNamespace {
        let ids = vec![cri::IdMapping { host_id: 65536, container_id: 0, length: 65536 }];
        cri::UserNamespace { mode: Mode::Pod.into(), uids: ids.clone(), gids: ids }
    }

    #[test]
    fn a_guest_has_users_of_its_own() {
        let mut config = good();
        let security = config.linux.as_mut().unwrap().security_context.get_or_insert_default();
        let options = cri::NamespaceOption { userns_options: Some(users()), ..Default::default() };
        security.namespace_options = Some(options);
        sandbox(&config, Kind::Namespaces).unwrap();
        assert_eq!(
            sandbox(&config, Kind::Guest).unwrap_err().to_string(),
            "config.linux.security_context.namespace_options.userns_options.mode: POD is not possible with runtime \
             handler \"vm\": a guest has a kernel and users of its own"
        );
    }

    #[test]
    fn namespaces_that_a_pod_cannot_have_are_refused() {
        let with = |options: cri::NamespaceOption| {
            refusal(|c| {
                let security = c.linux.as_mut().unwrap().security_context.get_or_insert_default();
                security.namespace_options = Some(options);
            })
        };
        let target = Mode::Target.into();
        for (options, expected) in [
            (
                cri::NamespaceOption { network: target, ..Default::default() },
                "config.linux.security_context.namespace_options.network: must be POD or NODE",
            ),
            (
                cri::NamespaceOption { pid: target, ..Default::default() },
                "config.linux.security_context.namespace_options.pid: must be POD or CONTAINER or NODE",
            ),
            (
                cri::NamespaceOption { ipc: 1, ..Default::default() },
                "config.linux.security_context.namespace_options.ipc: must be POD or NODE",
            ),
            (
                cri::NamespaceOption {
                    userns_options: Some(cri::UserNamespace::default()),
                    ..Default::default()
                },
                "config.linux.security_context.namespace_options.userns_options.uids: 0 ranges of ids: a pod has exactly \
                 one",
            ),
            (
                cri::NamespaceOption { ipc: 2, userns_options: Some(users()), ..Default::default() },
                "config.linux.security_context.namespace_options.ipc: NODE is not possible for a pod with a user \
                 namespace, which does not own the node's",
            ),
            (
                cri::NamespaceOption { pid: 2, userns_options: Some(users()), ..Default::default() },
                "config.linux.security_context.namespace_options.pid: NODE is not possible for a pod with a user \
                 namespace, which does not own the node's",
            ),
        ] {
            assert_eq!(with(options), expected);
        }
    }
}
