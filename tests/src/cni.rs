//! CNI configurations for a test's node: the distribution's plugins, or a fake one that writes down how it was called.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::skip::CNI_BIN_DIR;

/// Bridge of the node's pods; its own network namespace keeps one test's apart from another's.
pub const BRIDGE: &str = "hp0";
/// IPv4 addresses that host-local gives to pods.
pub const SUBNET: &str = "10.244.7.0/24";
/// IPv6 addresses of a dual-stack network.
pub const SUBNET6: &str = "fd00:7::/64";

/// The CNI folders of one node.
#[derive(Debug, Clone)]
pub struct CniDir {
    pub conf_dir: PathBuf,
    /// First the test's own plugins, then the distribution's.
    pub bin_dirs: Vec<PathBuf>,
    /// Where host-local keeps its reservations: a file per address.
    pub reservations: PathBuf,
}

impl CniDir {
    pub fn create(dir: &Path) -> Result<Self> {
        let this = Self {
            conf_dir: dir.join("net.d"),
            bin_dirs: vec![dir.join("bin"), CNI_BIN_DIR.into()],
            reservations: dir.join("reservations"),
        };
        for folder in [&this.conf_dir, &this.bin_dirs[0], &this.reservations] {
            fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
        }
        Ok(this)
    }

    /// Writes a conflist `name`.conflist, replacing what was there.
    pub fn write(&self, name: &str, conflist: &Value) -> Result<()> {
        let path = self.conf_dir.join(format!("{name}.conflist"));
        let text = serde_json::to_string_pretty(conflist)?;
        fs::write(&path, text).with_context(|| format!("write {}", path.display()))
    }

    /// Removes every configuration: the node has no network.
    pub fn clear(&self) -> Result<()> {
        for entry in
            fs::read_dir(&self.conf_dir).with_context(|| format!("list {}", self.conf_dir.display()))?
        {
            let path = entry?.path();
            fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
        }
        Ok(())
    }

    /// bridge with host-local addresses and masquerading, then portmap: what a node with Debian's plugins has.
    pub fn bridge(&self, ranges: &[&str]) -> Value {
        let mut routes: Vec<&str> =
            ranges.iter().map(|subnet| if subnet.contains(':') { "::/0" } else { "0.0.0.0/0" }).collect();
        routes.dedup();
        let routes: Vec<Value> = routes.into_iter().map(|dst| json!({ "dst": dst })).collect();
        let ranges: Vec<Value> = ranges.iter().map(|subnet| json!([{ "subnet": subnet }])).collect();
        json!({
            "cniVersion": "1.0.0",
            "name": "pods",
            "plugins": [
                {
                    "type": "bridge", "bridge": BRIDGE, "isGateway": true, "ipMasq": true, "hairpinMode": true,
                    "ipam": {
                        "type": "host-local", "dataDir": self.reservations, "ranges": ranges,
                        "routes": routes,
                    },
                },
                { "type": "portmap", "capabilities": { "portMappings": true }, "snat": true },
            ],
        })
    }

    /// Addresses that are reserved now.
    pub fn reserved(&self) -> Result<Vec<String>> {
        let dir = self.reservations.join("pods");
        let mut found = Vec::new();
        let Ok(entries) = fs::read_dir(&dir) else { return Ok(found) };
        for entry in entries {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name.parse::<std::net::IpAddr>().is_ok() {
                found.push(name);
            }
        }
        found.sort();
        Ok(found)
    }

    /// Installs a plugin made of a shell script.
    pub fn install_plugin(&self, name: &str, script: &str) -> Result<PathBuf> {
        let path = self.bin_dirs[0].join(name);
        fs::write(&path, script).with_context(|| format!("write {}", path.display()))?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))
            .context("make the plugin executable")?;
        Ok(path)
    }

    /// A plugin that writes each call's environment and input to `record` and gives `result` to ADD.
    pub fn install_recorder(&self, name: &str, record: &Path, result: &Value) -> Result<()> {
        fs::create_dir_all(record).with_context(|| format!("create {}", record.display()))?;
        // A counter by mkdir: calls may come at the same time.
        let script = format!(
            "#!/bin/sh\nn=1; while ! mkdir '{dir}/'$n 2>/dev/null; do n=$((n+1)); done\n\
             cat >'{dir}/'$n/stdin; env >'{dir}/'$n/env\n\
             case $CNI_COMMAND in ADD) cat <<'END'\n{result}\nEND\n;; esac\n",
            dir = record.display()
        );
        self.install_plugin(name, &script)?;
        Ok(())
    }
}

/// One call that the recording plugin has seen.
#[derive(Debug, Clone)]
pub struct PluginCall {
    pub command: String,
    /// The `CNI_*` variables.
    pub environment: Vec<(String, String)>,
    pub stdin: Value,
}

impl PluginCall {
    pub fn variable(&self, name: &str) -> &str {
        self.environment.iter().find(|(key, _)| key == name).map_or("", |(_, value)| value)
    }
}

/// What the recorder wrote, in the order of the calls.
pub fn calls(record: &Path) -> Result<Vec<PluginCall>> {
    let mut found = Vec::new();
    for number in 1.. {
        let dir = record.join(number.to_string());
        let Ok(environment) = fs::read_to_string(dir.join("env")) else { break };
        let stdin = fs::read(dir.join("stdin")).with_context(|| format!("read {}/stdin", dir.display()))?;
        let variables = environment.lines().filter_map(|line| line.split_once('='));
        let environment: Vec<(String, String)> = variables
            .filter(|(key, _)| key.starts_with("CNI_"))
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .collect();
        let command =
            environment.iter().find(|(key, _)| key == "CNI_COMMAND").map(|(_, value)| value.clone());
        found.push(PluginCall {
            command: command.unwrap_or_default(),
            environment,
            stdin: serde_json::from_slice(&stdin).context("the plugin's input is not JSON")?,
        });
    }
    Ok(found)
}
