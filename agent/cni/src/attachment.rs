//! Which pod joins the network, and what plugins are told about it.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::bandwidth::Bandwidth;

/// Name of an interface in the kernel without its terminating NUL (IFNAMSIZ - 1).
const MAX_IFNAME: usize = 15;

/// Longest container id: it names a cache file.
const MAX_ID: usize = 200;

/// A pod that joins, or leaves, the network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// Id of the sandbox: what plugins know the pod by (`CNI_CONTAINERID`).
    pub container_id: String,
    /// File of the pod's network namespace. Needed to join; on leaving it may be absent or gone.
    pub netns: Option<PathBuf>,
    /// Name of the interface in the pod: `eth0`, as kubelet expects.
    pub ifname: String,
    /// Kubernetes namespace of the pod.
    pub pod_namespace: String,
    /// Kubernetes name of the pod.
    pub pod_name: String,
    /// Kubernetes uid of the pod.
    pub pod_uid: String,
    /// What plugins that declare a capability are told.
    pub capabilities: Capabilities,
}

/// Arguments for plugins, each given only to plugins whose configuration declares the capability.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// `portMappings`.
    pub port_mappings: Vec<PortMapping>,
    /// `bandwidth`.
    pub bandwidth: Option<Bandwidth>,
    /// `dns`.
    pub dns: Option<Dns>,
    /// `aliases`: names for the pod on this network.
    pub aliases: Vec<String>,
    /// `cgroupPath`: the pod's cgroup as kubelet named it.
    pub cgroup_path: Option<String>,
    /// `io.kubernetes.cri.pod-annotations`.
    pub pod_annotations: BTreeMap<String, String>,
}

/// A port of the host that leads into the pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct PortMapping {
    /// Port of the host; a mapping with 0 is not passed on.
    pub host_port: u16,
    /// Port of the pod.
    pub container_port: u16,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Address of the host; empty means every one.
    #[serde(rename = "HostIP")]
    pub host_ip: String,
}

/// Transport protocol of a port mapping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// What the pod's /etc/resolv.conf says.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dns {
    /// Addresses of name servers.
    pub servers: Vec<String>,
    /// Search domains.
    pub searches: Vec<String>,
    /// Resolver options.
    pub options: Vec<String>,
}

/// Why an attachment cannot be put into words for a plugin.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum InvalidAttachment {
    /// The id is empty, too long, or has other characters than letters, digits, `_`, `.` and `-`.
    #[error(
        "container id {0:?} is not 1 to {MAX_ID} letters, digits, `_`, `.` and `-`, beginning with a letter or digit"
    )]
    ContainerId(String),
    /// The kernel would refuse the interface name.
    #[error("interface name {0:?} is not 1 to {MAX_IFNAME} characters without `/`, `:` and white space")]
    Ifname(String),
    /// `CNI_ARGS` is a list of `key=value` joined by `;` and has no way to quote these characters.
    #[error("{key} {value:?} contains `;`, `=` or NUL, which CNI_ARGS cannot carry")]
    Argument {
        /// Key in `CNI_ARGS`.
        key: &'static str,
        /// Its value.
        value: String,
    },
    /// Joining needs a network namespace.
    #[error("no network namespace given")]
    NoNetns,
}

/// Letters, digits, `_`, `.`, `-`, beginning with a letter or digit: the spec's rule for ids and network names.
pub(crate) fn is_cni_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphanumeric())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
}

pub(crate) fn check_id(id: &str) -> Result<(), InvalidAttachment> {
    let valid = is_cni_name(id) && id.len() <= MAX_ID;
    if valid { Ok(()) } else { Err(InvalidAttachment::ContainerId(id.chars().take(MAX_ID).collect())) }
}

impl Attachment {
    /// Refuses what would change its meaning on the way to a plugin.
    pub(crate) fn check(&self) -> Result<(), InvalidAttachment> {
        check_id(&self.container_id)?;
        let name = &self.ifname;
        let refused = |c: char| matches!(c, '/' | ':' | '\0') || c.is_whitespace();
        if name.is_empty() || name.len() > MAX_IFNAME || name == "." || name == ".." || name.contains(refused)
        {
            return Err(InvalidAttachment::Ifname(name.clone()));
        }
        for (key, value) in self.args() {
            if value.contains([';', '=', '\0']) {
                return Err(InvalidAttachment::Argument { key, value: value.to_owned() });
            }
        }
        Ok(())
    }

    /// `CNI_ARGS`, with the keys that containerd passes (internal/cri/server/sandbox_run.go, toCNILabels).
    pub(crate) fn args(&self) -> [(&'static str, &str); 5] {
        [
            ("IgnoreUnknown", "1"),
            ("K8S_POD_NAMESPACE", &self.pod_namespace),
            ("K8S_POD_NAME", &self.pod_name),
            ("K8S_POD_INFRA_CONTAINER_ID", &self.container_id),
            ("K8S_POD_UID", &self.pod_uid),
        ]
    }
}

impl Capabilities {
    /// Every argument by the capability's name, spelled as go-cni spells it: its Go structs have no JSON names, so
    /// keys are in PascalCase and empty lists are null. Go plugins read either case.
    pub(crate) fn to_args(&self) -> Map<String, Value> {
        let mut args = Map::new();
        args.insert(
            "io.kubernetes.cri.pod-annotations".to_owned(),
            null_if_empty(&self.pod_annotations, BTreeMap::is_empty),
        );
        let mapped: Vec<&PortMapping> =
            self.port_mappings.iter().filter(|mapping| mapping.host_port != 0).collect();
        if !mapped.is_empty() {
            args.insert("portMappings".to_owned(), json!(mapped));
        }
        if let Some(bandwidth) = &self.bandwidth {
            args.insert("bandwidth".to_owned(), json!(bandwidth));
        }
        if let Some(dns) = &self.dns {
            let list = |texts: &Vec<String>| null_if_empty(texts, Vec::is_empty);
            let value = json!({
                "Servers": list(&dns.servers),
                "Searches": list(&dns.searches),
                "Options": list(&dns.options),
            });
            args.insert("dns".to_owned(), value);
        }
        if !self.aliases.is_empty() {
            args.insert("aliases".to_owned(), json!(self.aliases));
        }
        if let Some(path) = self.cgroup_path.as_ref().filter(|path| !path.is_empty()) {
            args.insert("cgroupPath".to_owned(), json!(path));
        }
        args
    }
}

fn null_if_empty<T: Serialize>(value: &T, is_empty: impl Fn(&T) -> bool) -> Value {
    if is_empty(value) { Value::Null } else { json!(value) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn attachment() -> Attachment {
        Attachment {
            container_id: "ab12".to_owned(),
            netns: None,
            ifname: "eth0".to_owned(),
            pod_namespace: "default".to_owned(),
            pod_name: "web".to_owned(),
            pod_uid: "u-1".to_owned(),
            capabilities: Capabilities::default(),
        }
    }

    #[test]
    fn what_would_change_meaning_on_the_way_is_refused() {
        assert_eq!(attachment().check(), Ok(()));
        for id in ["", "../x", ".x", "a/b", "a b", "ä", &"x".repeat(201)] {
            let found = Attachment { container_id: id.to_owned(), ..attachment() }.check();
            assert!(matches!(found, Err(InvalidAttachment::ContainerId(_))), "{id:?}: {found:?}");
        }
        for ifname in ["", "..", "a/b", "a:b", "a b", "sixteen-letters-"] {
            let found = Attachment { ifname: ifname.to_owned(), ..attachment() }.check();
            assert!(matches!(found, Err(InvalidAttachment::Ifname(_))), "{ifname:?}: {found:?}");
        }
        let injecting = Attachment { pod_name: "web;K8S_POD_UID=root".to_owned(), ..attachment() };
        assert!(matches!(injecting.check(), Err(InvalidAttachment::Argument { key: "K8S_POD_NAME", .. })));
    }

    #[test]
    fn without_anything_to_say_only_the_annotations_are_passed() {
        assert_eq!(
            Value::Object(Capabilities::default().to_args()),
            json!({"io.kubernetes.cri.pod-annotations": null})
        );
    }

    #[test]
    fn a_mapping_without_a_host_port_is_not_passed_on() {
        let mapping = |host_port| PortMapping {
            host_port,
            container_port: 80,
            protocol: Protocol::Udp,
            host_ip: String::new(),
        };
        let capabilities =
            Capabilities { port_mappings: vec![mapping(0), mapping(8080)], ..Capabilities::default() };
        assert_eq!(
            capabilities.to_args()["portMappings"],
            json!([{"HostPort": 8080, "ContainerPort": 80, "Protocol": "udp", "HostIP": ""}])
        );
    }
}
