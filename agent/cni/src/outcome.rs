//! Results of plugins: what ADD printed.

use std::net::IpAddr;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::version::SpecVersion;

/// What joining the network gave the pod.
#[derive(Debug, Clone, PartialEq)]
pub struct Attached {
    /// Addresses of the pod's interface, in the result's order; at least one.
    pub ips: Vec<IpAddr>,
    /// Hardware address of the pod's interface, if a plugin told it.
    pub mac: Option<String>,
    /// The last plugin's result, in the version of the network's configuration.
    pub raw: Value,
}

/// Why a result cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum InvalidOutcome {
    /// It is not an object of the expected shape.
    #[error("not a CNI result")]
    Shape(#[source] serde_json::Error),
    /// It is some other JSON value.
    #[error("not a JSON object")]
    NotAnObject,
    /// It is of a version with another shape.
    #[error("a result of version {0:?} (0.3.0 to 1.1.0 are understood)")]
    Version(String),
    /// An address cannot be read.
    #[error("{0:?} is not an address with a prefix length")]
    Address(String),
    /// An address belongs to an interface that is not listed.
    #[error("address {address} belongs to interface {index} of {interfaces}")]
    Interface {
        /// The address.
        address: String,
        /// Index that it gives.
        index: i64,
        /// How many interfaces are listed.
        interfaces: usize,
    },
    /// The pod's interface got no address.
    #[error("no address for {ifname}")]
    NoAddress {
        /// The pod's interface.
        ifname: String,
    },
}

#[derive(Deserialize)]
struct Shape {
    interfaces: Option<Vec<Interface>>,
    ips: Option<Vec<Address>>,
}

#[derive(Deserialize)]
struct Interface {
    #[serde(default)]
    name: String,
    #[serde(default)]
    mac: String,
    #[serde(default)]
    sandbox: String,
}

#[derive(Deserialize)]
struct Address {
    address: String,
    interface: Option<i64>,
}

/// Brings a plugin's result to the version of the network's configuration, as the next plugin must see it. A result
/// without a version is of that version (containernetworking/cni issue 895).
pub(crate) fn to_version(result: Value, wanted: SpecVersion) -> Result<Value, InvalidOutcome> {
    let Value::Object(mut result) = result else {
        return Err(InvalidOutcome::NotAnObject);
    };
    let found = match result.get("cniVersion") {
        None => wanted,
        Some(Value::String(text)) if text.is_empty() => wanted,
        Some(Value::String(text)) => {
            SpecVersion::parse(text).ok_or_else(|| InvalidOutcome::Version(short(text)))?
        }
        Some(other) => return Err(InvalidOutcome::Version(short(&other.to_string()))),
    };
    result.insert("cniVersion".to_owned(), json!(wanted.as_str()));
    if found.addresses_say_version() != wanted.addresses_say_version() {
        let addresses = result.get_mut("ips").and_then(Value::as_array_mut);
        for address in addresses.into_iter().flatten().filter_map(Value::as_object_mut) {
            restate_version(address, wanted);
        }
    }
    Ok(Value::Object(result))
}

fn restate_version(address: &mut Map<String, Value>, wanted: SpecVersion) {
    if !wanted.addresses_say_version() {
        address.remove("version");
        return;
    }
    let is_v6 = address.get("address").and_then(Value::as_str).is_some_and(|text| text.contains(':'));
    address.insert("version".to_owned(), json!(if is_v6 { "6" } else { "4" }));
}

/// The addresses of the pod's interface. An address that names no interface is the pod's (go-cni's rule).
pub(crate) fn attached(raw: Value, ifname: &str) -> Result<Attached, InvalidOutcome> {
    let shape = Shape::deserialize(&raw).map_err(InvalidOutcome::Shape)?;
    let interfaces = shape.interfaces.unwrap_or_default();
    let mut ips = Vec::new();
    for Address { address, interface } in shape.ips.unwrap_or_default() {
        let ip = parse_address(&address)?;
        let owner = match interface {
            None => ifname,
            Some(index) => match usize::try_from(index).ok().and_then(|index| interfaces.get(index)) {
                Some(interface) => &interface.name,
                None => {
                    return Err(InvalidOutcome::Interface { address, index, interfaces: interfaces.len() });
                }
            },
        };
        if owner == ifname {
            ips.push(ip);
        }
    }
    if ips.is_empty() {
        return Err(InvalidOutcome::NoAddress { ifname: ifname.to_owned() });
    }
    // The host's end of a pair may have the same name: the pod's is the one with a sandbox.
    let mut named: Vec<&Interface> = interfaces.iter().filter(|interface| interface.name == ifname).collect();
    named.sort_by_key(|interface| interface.sandbox.is_empty());
    let mac = named.first().map(|interface| interface.mac.clone()).filter(|mac| !mac.is_empty());
    Ok(Attached { ips, mac, raw })
}

fn parse_address(text: &str) -> Result<IpAddr, InvalidOutcome> {
    let parse = || {
        let (ip, prefix) = text.split_once('/')?;
        let ip: IpAddr = ip.parse().ok()?;
        let most = if ip.is_ipv4() { 32 } else { 128 };
        prefix.parse::<u8>().ok().filter(|prefix| *prefix <= most).map(|_| ip)
    };
    parse().ok_or_else(|| InvalidOutcome::Address(short(text)))
}

fn short(text: &str) -> String {
    text.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bridge(version: &str) -> Value {
        json!({
            "cniVersion": version,
            "interfaces": [
                {"name": "cni0", "mac": "aa:aa"},
                {"name": "veth1", "mac": "bb:bb"},
                {"name": "eth0", "mac": "cc:cc", "sandbox": "/run/netns/x"},
            ],
            "ips": [
                {"version": "4", "interface": 2, "address": "10.1.0.7/16", "gateway": "10.1.0.1"},
                {"version": "6", "interface": 2, "address": "fd00::7/64"},
                {"version": "4", "interface": 0, "address": "10.1.0.1/16"},
            ],
            "dns": {},
        })
    }

    #[test]
    fn only_the_addresses_of_the_pods_interface_count() {
        let attached = attached(bridge("0.4.0"), "eth0").unwrap();
        assert_eq!(attached.ips, ["10.1.0.7".parse::<IpAddr>().unwrap(), "fd00::7".parse().unwrap()]);
        assert_eq!(attached.mac.as_deref(), Some("cc:cc"));
    }

    #[test]
    fn an_address_without_an_interface_is_the_pods() {
        let found =
            attached(json!({"ips": [{"address": "10.0.0.2/24"}], "interfaces": null}), "eth0").unwrap();
        assert_eq!((found.ips.len(), found.mac), (1, None));
    }

    #[test]
    fn a_result_becomes_what_the_configurations_version_has() {
        let newer = to_version(bridge("0.4.0"), SpecVersion::V1_1_0).unwrap();
        assert_eq!(newer["cniVersion"], "1.1.0");
        assert_eq!(newer["ips"][0], json!({"interface": 2, "address": "10.1.0.7/16", "gateway": "10.1.0.1"}));
        let older = to_version(newer, SpecVersion::V0_3_1).unwrap();
        assert_eq!(older["cniVersion"], "0.3.1");
        assert_eq!(older["ips"], bridge("")["ips"]);
        let unnamed = to_version(json!({"ips": []}), SpecVersion::V1_0_0).unwrap();
        assert_eq!(unnamed["cniVersion"], "1.0.0");
    }

    #[test]
    fn hostile_results_are_refused() {
        for (value, wanted) in [
            (json!({"ips": [{"address": "10.0.0.2"}]}), r#""10.0.0.2" is not an address"#),
            (json!({"ips": [{"address": "10.0.0.2/33"}]}), "is not an address"),
            (json!({"ips": [{"address": "x/8"}]}), "is not an address"),
            (
                json!({"ips": [{"address": "10.0.0.2/8", "interface": 1}], "interfaces": [{"name": "eth0"}]}),
                "interface 1 of 1",
            ),
            (json!({"ips": [{"address": "10.0.0.2/8", "interface": -1}]}), "interface -1 of 0"),
            (
                json!({"ips": [{"address": "10.0.0.2/8", "interface": 0}], "interfaces": [{"name": "lo"}]}),
                "no address for eth0",
            ),
            (json!({}), "no address for eth0"),
            (json!({"ips": "10.0.0.2/8"}), "not a CNI result"),
        ] {
            let error = attached(value.clone(), "eth0").unwrap_err().to_string();
            assert!(error.contains(wanted), "{value}: {error}");
        }
        assert!(matches!(to_version(json!(null), SpecVersion::V1_0_0), Err(InvalidOutcome::NotAnObject)));
        let old = json!({"cniVersion": "0.2.0", "ip4": {"ip": "10.0.0.2/8"}});
        assert!(matches!(to_version(old, SpecVersion::V1_0_0), Err(InvalidOutcome::Version(_))));
    }
}
