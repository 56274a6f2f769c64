//! A CDI spec file (github.com/cncf-tags/container-device-interface, SPEC.md), and whether it keeps the rules.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::Deserialize;

use super::name::{is_class, is_device, is_vendor};

/// One file: devices of one kind.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct SpecFile {
    cdi_version: String,
    /// VENDOR/CLASS.
    pub(super) kind: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    #[serde(default)]
    pub(super) devices: Vec<Device>,
    /// With any of the devices.
    #[serde(default)]
    pub(super) container_edits: Edits,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(super) struct Device {
    pub(super) name: String,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
    #[serde(default)]
    pub(super) container_edits: Edits,
}

/// What a container gets.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Edits {
    #[serde(default)]
    pub(crate) env: Vec<String>,
    #[serde(default)]
    pub(crate) device_nodes: Vec<DeviceNode>,
    #[serde(default)]
    pub(crate) mounts: Vec<Mount>,
    #[serde(default)]
    pub(crate) hooks: Vec<Hook>,
    #[serde(default)]
    pub(crate) intel_rdt: Option<serde_json::Value>,
    #[serde(default)]
    pub(crate) additional_gids: Vec<u32>,
    #[serde(default)]
    pub(crate) net_devices: Vec<serde_json::Value>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct DeviceNode {
    /// In the container; on the node, too, without `host_path`.
    pub(crate) path: PathBuf,
    #[serde(default)]
    pub(crate) host_path: Option<PathBuf>,
    /// `b`, `c`, `u` or `p`.
    #[serde(default, rename = "type")]
    pub(crate) typ: Option<String>,
    #[serde(default)]
    pub(crate) major: Option<i64>,
    #[serde(default)]
    pub(crate) minor: Option<i64>,
    #[serde(default)]
    pub(crate) file_mode: Option<u32>,
    #[serde(default)]
    pub(crate) permissions: Option<String>,
    #[serde(default)]
    pub(crate) uid: Option<u32>,
    #[serde(default)]
    pub(crate) gid: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Mount {
    pub(crate) host_path: PathBuf,
    pub(crate) container_path: PathBuf,
    #[serde(default)]
    pub(crate) options: Vec<String>,
    #[serde(default, rename = "type")]
    pub(crate) typ: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Hook {
    /// When it runs, as the OCI runtime specification calls it.
    pub(crate) hook_name: String,
    pub(crate) path: PathBuf,
    #[serde(default)]
    pub(crate) args: Vec<String>,
    #[serde(default)]
    pub(crate) env: Vec<String>,
    /// Seconds.
    #[serde(default)]
    pub(crate) timeout: Option<i64>,
}

/// Versions of the specification, the oldest first.
const VERSIONS: [(&str, (u32, u32)); 8] = [
    ("0.3.0", (0, 3)),
    ("0.4.0", (0, 4)),
    ("0.5.0", (0, 5)),
    ("0.6.0", (0, 6)),
    ("0.7.0", (0, 7)),
    ("0.8.0", (0, 8)),
    ("1.0.0", (1, 0)),
    ("1.1.0", (1, 1)),
];

impl SpecFile {
    /// Reads a file's text; `json` or else YAML.
    pub(super) fn parse(text: &[u8], json: bool) -> Result<Self, String> {
        let file: Self = if json {
            serde_json::from_slice(text).map_err(|e| e.to_string())?
        } else {
            serde_yaml_ng::from_slice(text).map_err(|e| e.to_string())?
        };
        file.check()?;
        Ok(file)
    }

    fn check(&self) -> Result<(), String> {
        let version = self.cdi_version.strip_prefix('v').unwrap_or(&self.cdi_version);
        let known = VERSIONS.iter().find(|(text, _)| *text == version);
        let &(_, version) = known.ok_or_else(|| format!("cdiVersion {version:?} is not known"))?;
        let (vendor, class) =
            self.kind.split_once('/').ok_or_else(|| format!("kind {:?} is not VENDOR/CLASS", self.kind))?;
        if !is_vendor(vendor) || !is_class(class) {
            return Err(format!("kind {:?} is not VENDOR/CLASS", self.kind));
        }
        if self.devices.is_empty() {
            return Err("it has no devices".to_owned());
        }
        for (at, device) in self.devices.iter().enumerate() {
            if !is_device(&device.name) {
                return Err(format!("{:?} is not the name of a device", device.name));
            }
            if self.devices[..at].iter().any(|other| other.name == device.name) {
                return Err(format!("device {:?} is there twice", device.name));
            }
            if device.container_edits == Edits::default() {
                return Err(format!("device {:?} has no containerEdits", device.name));
            }
        }
        match self.needs(class) {
            (needed, _) if needed <= version => Ok(()),
            ((major, minor), what) => Err(format!("{what} needs cdiVersion {major}.{minor}.0")),
        }
    }

    /// The version that what it uses is of, and what that is.
    fn needs(&self, class: &str) -> ((u32, u32), &'static str) {
        let all = || self.devices.iter().map(|device| &device.container_edits).chain([&self.container_edits]);
        let nodes = || all().flat_map(|edits| &edits.device_nodes);
        let digit = |device: &Device| device.name.starts_with(|c: char| c.is_ascii_digit());
        let annotated =
            !self.annotations.is_empty() || self.devices.iter().any(|device| !device.annotations.is_empty());
        let table = [
            (all().any(|edits| !edits.net_devices.is_empty()), (1, 1), "netDevices"),
            (all().any(|edits| edits.intel_rdt.is_some()), (0, 7), "intelRdt"),
            (all().any(|edits| !edits.additional_gids.is_empty()), (0, 7), "additionalGids"),
            (annotated, (0, 6), "annotations"),
            (class.contains('.'), (0, 6), "a class with a dot"),
            (nodes().any(|node| node.host_path.is_some()), (0, 5), "hostPath of a device"),
            (self.devices.iter().any(digit), (0, 5), "a device whose name begins with a digit"),
            (
                all().flat_map(|edits| &edits.mounts).any(|mount| mount.typ.is_some()),
                (0, 4),
                "type of a mount",
            ),
        ];
        let used = table.into_iter().find(|(used, ..)| *used);
        used.map_or(((0, 3), ""), |(_, version, what)| (version, what))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn json(version: &str, kind: &str, rest: &str) -> Result<SpecFile, String> {
        SpecFile::parse(
            format!(r#"{{"cdiVersion": "{version}", "kind": "{kind}", {rest}}}"#).as_bytes(),
            true,
        )
    }

    fn device(name: &str, edits: &str) -> String {
        format!(r#""devices": [{{"name": "{name}", "containerEdits": {{{edits}}}}}]"#)
    }

    #[test]
    fn both_ways_to_write_it_are_the_same() {
        let yaml = "cdiVersion: 0.6.0\nkind: vendor.com/net\ndevices:\n- name: dev0\n  containerEdits:\n    env: [A=b]\n    deviceNodes:\n    - path: /dev/x\n      fileMode: 438\n";
        let yaml = SpecFile::parse(yaml.as_bytes(), false).unwrap();
        let edits = r#""env": ["A=b"], "deviceNodes": [{"path": "/dev/x", "fileMode": 438}]"#;
        let json = json("v0.6.0", "vendor.com/net", &device("dev0", edits)).unwrap();
        assert_eq!(yaml.devices[0].container_edits, json.devices[0].container_edits);
    }

    #[test]
    fn what_is_used_must_be_of_the_files_version() {
        for (version, edits, name) in [
            ("0.4.0", r#""mounts": [{"hostPath": "/a", "containerPath": "/b", "type": "bind"}]"#, "d"),
            ("0.5.0", r#""deviceNodes": [{"path": "/dev/x", "hostPath": "/dev/y"}]"#, "d"),
            ("0.5.0", r#""env": ["A=b"]"#, "0"),
            ("0.7.0", r#""additionalGids": [4]"#, "d"),
            ("0.7.0", r#""intelRdt": {}"#, "d"),
            ("1.1.0", r#""netDevices": [{"hostInterfaceName": "a", "name": "b"}]"#, "d"),
        ] {
            json(version, "vendor.com/net", &device(name, edits)).unwrap();
            let at = VERSIONS.iter().position(|(text, _)| *text == version).unwrap();
            let older = json(VERSIONS[at - 1].0, "vendor.com/net", &device(name, edits)).unwrap_err();
            assert!(older.ends_with(&format!("needs cdiVersion {version}")), "{older}");
        }
    }

    #[test]
    fn files_that_are_none_say_why() {
        let good = device("d", r#""env": ["A=b"]"#);
        let twice = r#""devices": [{"name": "d", "containerEdits": {"env": ["A=b"]}}, {"name": "d", "containerEdits": {"env": ["A=b"]}}]"#;
        for (version, kind, rest, expected) in [
            ("0.2.0", "v.com/c", good.as_str(), "cdiVersion \"0.2.0\" is not known"),
            ("0.6.0", "v.com", &good, "kind \"v.com\" is not VENDOR/CLASS"),
            ("0.6.0", "v.com/", &good, "kind \"v.com/\" is not VENDOR/CLASS"),
            ("0.6.0", "v.com/c", "\"devices\": []", "it has no devices"),
            ("0.6.0", "v.com/c", twice, "device \"d\" is there twice"),
            ("0.6.0", "v.com/c", &device("a b", r#""env": ["A=b"]"#), "\"a b\" is not the name of a device"),
            ("0.6.0", "v.com/c", &device("d", ""), "device \"d\" has no containerEdits"),
            ("0.6.0", "v.com/c", &device("d", r#""other": 1"#), "unknown field `other`"),
        ] {
            let error = json(version, kind, rest).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }
}
