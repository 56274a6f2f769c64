//! Network configurations: what an administrator, or a network's installer, wrote.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use crate::attachment::is_cni_name;
use crate::error::InvalidConf;
use crate::version::SpecVersion;

/// A network: its plugins in the order of ADD.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Network {
    pub(crate) name: String,
    /// The highest version that the configuration offers and this crate speaks.
    pub(crate) version: SpecVersion,
    pub(crate) disable_check: bool,
    pub(crate) disable_gc: bool,
    pub(crate) plugins: Vec<Plugin>,
}

/// One plugin of a network.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Plugin {
    /// Name of the executable (`type`).
    pub(crate) executable: String,
    /// Capabilities whose arguments it wants.
    pub(crate) capabilities: BTreeSet<String>,
    /// Everything it says, which the plugin gets on stdin.
    pub(crate) conf: Map<String, Value>,
}

/// A network as its file has it: plugins may follow from files of their own.
#[derive(Debug)]
pub(crate) struct ListFile {
    pub(crate) network: Network,
    /// `loadOnlyInlinedPlugins` is not set: plugins in the folder named after the network belong to it too.
    pub(crate) more_plugins: bool,
}

type Object = Map<String, Value>;

impl Network {
    /// Reads a `.conflist` file.
    pub(crate) fn parse_list(text: &[u8]) -> Result<ListFile, InvalidConf> {
        let object = object(text)?;
        let name = name(&object)?;
        let version = version(&object)?;
        let inlined_only = flag(&object, "loadOnlyInlinedPlugins")?;
        let disable_gc = flag(&object, "disableGC")?;
        let plugins = match object.get("plugins") {
            None if inlined_only => return Err(InvalidConf::NoPlugins),
            None => Vec::new(),
            Some(Value::Array(plugins)) if plugins.is_empty() => return Err(InvalidConf::NoPlugins),
            Some(Value::Array(plugins)) => plugins
                .iter()
                .enumerate()
                .map(|(index, conf)| Plugin::from_value(conf, index))
                .collect::<Result<_, _>>()?,
            Some(_) => return Err(InvalidConf::Field { key: "plugins", wanted: "a list" }),
        };
        let disable_check = flag(&object, "disableCheck")?;
        let network = Self { name, version, disable_check, disable_gc, plugins };
        Ok(ListFile { network, more_plugins: !inlined_only })
    }

    /// Reads a `.conf` or `.json` file: a single plugin, which becomes a network of one.
    pub(crate) fn parse_single(text: &[u8]) -> Result<Self, InvalidConf> {
        let object = object(text)?;
        if !object.contains_key("type") && object.contains_key("plugins") {
            return Err(InvalidConf::ListInSingleFile);
        }
        let (name, version) = (name(&object)?, version(&object)?);
        let plugins = vec![Plugin::from_object(object)?];
        Ok(Self { name, version, disable_check: false, disable_gc: false, plugins })
    }

    /// The network as a conflist, for the cache: `parse_list` reads it back.
    pub(crate) fn to_value(&self) -> Value {
        json!({
            "name": self.name,
            "cniVersion": self.version.as_str(),
            "disableCheck": self.disable_check,
            "disableGC": self.disable_gc,
            "loadOnlyInlinedPlugins": true,
            "plugins": self.plugins.iter().map(|plugin| &plugin.conf).collect::<Vec<_>>(),
        })
    }

    /// The network that `to_value` wrote.
    pub(crate) fn from_value(value: &Value) -> Result<Self, InvalidConf> {
        Ok(Self::parse_list(value.to_string().as_bytes())?.network)
    }
}

impl Plugin {
    /// Reads a file of the folder named after a network.
    pub(crate) fn parse(text: &[u8]) -> Result<Self, InvalidConf> {
        Self::from_object(object(text)?)
    }

    fn from_value(value: &Value, index: usize) -> Result<Self, InvalidConf> {
        let Value::Object(object) = value else {
            return Err(InvalidConf::Plugin { index, problem: Box::new(InvalidConf::NotAnObject) });
        };
        Self::from_object(object.clone())
            .map_err(|problem| InvalidConf::Plugin { index, problem: Box::new(problem) })
    }

    fn from_object(conf: Object) -> Result<Self, InvalidConf> {
        let executable = match conf.get("type") {
            None => return Err(InvalidConf::NoType),
            Some(Value::String(text)) if is_file_name(text) => text.clone(),
            Some(_) => return Err(InvalidConf::Field { key: "type", wanted: "the file name of a plugin" }),
        };
        const WANTED: InvalidConf =
            InvalidConf::Field { key: "capabilities", wanted: "an object of booleans" };
        let capabilities = match conf.get("capabilities") {
            None | Some(Value::Null) => BTreeSet::new(),
            Some(Value::Object(capabilities)) => {
                let mut wanted = BTreeSet::new();
                for (capability, value) in capabilities {
                    if value.as_bool().ok_or(WANTED)? {
                        wanted.insert(capability.clone());
                    }
                }
                wanted
            }
            Some(_) => return Err(WANTED),
        };
        Ok(Self { executable, capabilities, conf })
    }
}

fn is_file_name(text: &str) -> bool {
    !matches!(text, "" | "." | "..") && !text.contains(['/', '\0'])
}

fn object(text: &[u8]) -> Result<Object, InvalidConf> {
    match serde_json::from_slice(text) {
        Ok(Value::Object(object)) => Ok(object),
        Ok(_) => Err(InvalidConf::NotAnObject),
        Err(problem) => Err(InvalidConf::NotJson { problem: problem.to_string() }),
    }
}

fn name(object: &Object) -> Result<String, InvalidConf> {
    match object.get("name") {
        None => Err(InvalidConf::NoName),
        Some(Value::String(name)) if is_cni_name(name) => Ok(name.clone()),
        Some(_) => Err(InvalidConf::Field {
            key: "name",
            wanted: "letters, digits, `_`, `.` and `-`, beginning with a letter or digit",
        }),
    }
}

/// The highest version offered by `cniVersion` and `cniVersions` (spec 1.1.0) that this crate speaks.
fn version(object: &Object) -> Result<SpecVersion, InvalidConf> {
    const ONE: InvalidConf = InvalidConf::Field { key: "cniVersion", wanted: "a string" };
    const MANY: InvalidConf = InvalidConf::Field { key: "cniVersions", wanted: "a list of strings" };
    let mut offered = Vec::new();
    if let Some(value) = object.get("cniVersion") {
        offered.push(value.as_str().ok_or(ONE)?);
    }
    if let Some(values) = object.get("cniVersions") {
        for value in values.as_array().ok_or(MANY)? {
            offered.push(value.as_str().ok_or(MANY)?);
        }
    }
    let highest = offered.iter().filter_map(|text| SpecVersion::parse(text)).max();
    highest.ok_or_else(|| InvalidConf::Version {
        offered: offered.iter().map(|text| text.chars().take(32).collect()).collect(),
    })
}

/// A boolean, which libcni also takes as a string.
fn flag(object: &Object, key: &'static str) -> Result<bool, InvalidConf> {
    match object.get(key) {
        None => Ok(false),
        Some(Value::Bool(value)) => Ok(*value),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("true") => Ok(true),
        Some(Value::String(text)) if text.eq_ignore_ascii_case("false") => Ok(false),
        Some(_) => Err(InvalidConf::Field { key, wanted: "true or false" }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(text: &str) -> Result<ListFile, InvalidConf> {
        Network::parse_list(text.as_bytes())
    }

    #[test]
    fn a_list_names_its_plugins_and_what_they_can() {
        let file = list(
            r#"{"cniVersion": "1.0.0", "name": "pods", "disableCheck": "TRUE", "plugins": [
                {"type": "bridge", "isGateway": true},
                {"type": "portmap", "capabilities": {"portMappings": true, "bandwidth": false}}]}"#,
        )
        .unwrap();
        assert_eq!((file.network.name.as_str(), file.network.version), ("pods", SpecVersion::V1_0_0));
        assert!(file.network.disable_check && file.more_plugins);
        assert_eq!(file.network.plugins[0].conf["isGateway"], json!(true));
        assert_eq!(file.network.plugins[1].capabilities, BTreeSet::from(["portMappings".to_owned()]));
        assert_eq!(Network::from_value(&file.network.to_value()).unwrap(), file.network);
    }

    #[test]
    fn the_highest_version_that_both_sides_speak_is_taken() {
        for (versions, wanted) in [
            (r#""cniVersion": "0.3.1""#, Some("0.3.1")),
            (r#""cniVersions": ["1.1.0", "0.4.0", "2.0.0"]"#, Some("1.1.0")),
            (r#""cniVersion": "1.0.0", "cniVersions": ["0.4.0"]"#, Some("1.0.0")),
            (r#""cniVersion": "1.2.0""#, None),
            (r#""cniVersion": "0.2.0""#, None),
            (r#""cniVersions": []"#, None),
        ] {
            let found = list(&format!(r#"{{{versions}, "name": "n", "plugins": [{{"type": "x"}}]}}"#));
            assert_eq!(found.ok().map(|f| f.network.version.as_str()), wanted, "{versions}");
        }
        let none = list(r#"{"name": "n", "plugins": [{"type": "x"}]}"#).unwrap_err();
        assert_eq!(none.to_string(), "no `cniVersion` (0.3.0 to 1.1.0 are understood)");
    }

    #[test]
    fn every_fault_is_told_for_what_it_is() {
        for (text, wanted) in [
            ("", "not JSON: EOF while parsing a value"),
            (r#"{"cniVersion": "1.0.0", "name": "n", "plu"#, "not JSON: EOF while parsing a string"),
            ("[]", "not a JSON object"),
            (r#"{"cniVersion": "1.0.0"}"#, "no `name`"),
            (r#"{"cniVersion": "1.0.0", "name": "../../etc"}"#, "`name` is not letters"),
            (r#"{"cniVersion": 1, "name": "n"}"#, "`cniVersion` is not a string"),
            (r#"{"cniVersion": "1.0.0", "name": "n", "plugins": []}"#, "no plugins"),
            (r#"{"cniVersion": "1.0.0", "name": "n", "plugins": {}}"#, "`plugins` is not a list"),
            (
                r#"{"cniVersion": "1.0.0", "name": "n", "plugins": [{"type": "a"}, 1]}"#,
                "plugin 1: not a JSON object",
            ),
            (r#"{"cniVersion": "1.0.0", "name": "n", "plugins": [{}]}"#, "plugin 0: no `type`"),
            (
                r#"{"cniVersion": "1.0.0", "name": "n", "plugins": [{"type": "../sh"}]}"#,
                "plugin 0: `type` is not the",
            ),
            (
                r#"{"cniVersion": "1.0.0", "name": "n", "plugins": [{"type": "a", "capabilities": {"dns": 1}}]}"#,
                "plugin 0: `capabilities` is not an object of booleans",
            ),
            (
                r#"{"cniVersion": "1.0.0", "name": "n", "disableGC": 1, "plugins": []}"#,
                "`disableGC` is not true or false",
            ),
        ] {
            let error = list(text).unwrap_err().to_string();
            assert!(error.starts_with(wanted), "{text}: {error}");
        }
        assert!(list(&"[".repeat(100_000)).is_err(), "deep nesting");
    }

    #[test]
    fn a_single_plugin_becomes_a_network_of_one() {
        let network =
            Network::parse_single(br#"{"cniVersion": "0.3.1", "name": "n", "type": "ptp"}"#).unwrap();
        assert_eq!((network.name.as_str(), network.plugins.len()), ("n", 1));
        let list =
            Network::parse_single(br#"{"cniVersion": "0.3.1", "name": "n", "plugins": [{"type": "x"}]}"#);
        assert!(matches!(list, Err(InvalidConf::ListInSingleFile)));
    }
}
