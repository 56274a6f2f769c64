//! Per-registry settings in containerd's `certs.d` format (containerd docs/hosts.md).
//!
//! For the registry `reg.example:5000` the first of these folders that exists counts: `reg.example_5000_`,
//! `reg.example:5000`, `_default`. In it, `hosts.toml`; without one, docker's older layout (`*.crt`, `*.cert` with `*.key`). Keys that
//! are not known are passed over: the file belongs to containerd.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

use hyper::Uri;
use hyper::header::{HeaderName, HeaderValue};
use serde::Deserialize;
use toml::Spanned;

use super::go_duration;
use super::host::{DIAL_TIMEOUT, Host, TlsSettings, default_server};

const FILE: &str = "hosts.toml";
const DEFAULT: &str = "_default";

/// Why the settings of a registry cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    /// The file or folder cannot be read.
    #[error("read {}", path.display())]
    Read {
        /// Which one.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is not TOML, or a value has the wrong type.
    #[error("parse {}", path.display())]
    Parse {
        /// Which file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: Box<toml::de::Error>,
    },
    /// A value makes no sense.
    #[error("{}: {key}: {problem}", path.display())]
    Value {
        /// Which file.
        path: PathBuf,
        /// Which key.
        key: String,
        /// What is wrong with it.
        problem: String,
    },
    /// A certificate or key cannot be used.
    #[error("certificate {}: {problem}", path.display())]
    Certificate {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
}

#[derive(Deserialize)]
struct HostsFile {
    server: Option<String>,
    #[serde(default)]
    host: BTreeMap<String, Spanned<HostTable>>,
}

#[derive(Default, Deserialize)]
struct HostTable {
    capabilities: Option<Vec<String>>,
    ca: Option<OneOrMany>,
    client: Option<Clients>,
    #[serde(default)]
    skip_verify: bool,
    #[serde(default)]
    header: BTreeMap<String, OneOrMany>,
    #[serde(default)]
    override_path: bool,
    dial_timeout: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    fn as_slice(&self) -> &[String] {
        match self {
            OneOrMany::One(one) => std::slice::from_ref(one),
            OneOrMany::Many(many) => many,
        }
    }
}

/// One file, several files, or pairs of certificate and key.
#[derive(Deserialize)]
#[serde(untagged)]
enum Clients {
    One(String),
    Many(Vec<OneOrMany>),
}

/// The hosts to ask for images of `registry`, in order; the registry itself is the last.
///
/// Blocks on a few small files.
pub(super) fn hosts_blocking(hosts_dir: &Path, registry: &str) -> Result<Vec<Host>, SettingsError> {
    let Some(folder) = folder_of(hosts_dir, registry) else { return Ok(vec![Host::upstream(registry)]) };
    let path = folder.join(FILE);
    match std::fs::read_to_string(&path) {
        Ok(text) => Reader { folder: &folder, path: &path, registry }.hosts(&text),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Ok(vec![Host { tls: docker_certificates(&folder)?, ..Host::upstream(registry) }])
        }
        Err(source) => Err(SettingsError::Read { path, source }),
    }
}

fn folder_of(hosts_dir: &Path, registry: &str) -> Option<PathBuf> {
    let underscored = match registry.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => Some(format!("{host}_{port}_")),
        _ => None,
    };
    let names = underscored.iter().map(String::as_str).chain([registry, DEFAULT]);
    names.map(|name| hosts_dir.join(name)).find(|folder| folder.is_dir())
}

struct Reader<'a> {
    folder: &'a Path,
    path: &'a Path,
    registry: &'a str,
}

impl Reader<'_> {
    fn hosts(&self, text: &str) -> Result<Vec<Host>, SettingsError> {
        let parse_error =
            |source| SettingsError::Parse { path: self.path.to_owned(), source: Box::new(source) };
        let file: HostsFile = toml::from_str(text).map_err(parse_error)?;
        // The keys of [host] tables may stand at the top too, and are then those of the server.
        let top: HostTable = toml::from_str(text).map_err(parse_error)?;
        let server = file.server.unwrap_or_else(|| default_server(self.registry));
        let upstream = self.host("server", &server, &top, true)?;

        let mut tables: Vec<_> = file.host.iter().collect();
        tables.sort_by_key(|(_, table)| table.span().start);
        let mut hosts = Vec::new();
        for (url, table) in tables {
            let key = format!("host.{url:?}");
            // A table for the registry itself says how to ask it, and it is still the registry.
            let is_upstream = self.base(&key, url, table.get_ref().override_path)? == upstream.base;
            hosts.push(self.host(&key, url, table.get_ref(), is_upstream)?);
        }
        if !hosts.iter().any(|host| host.base == upstream.base && host.can_pull && host.can_resolve) {
            hosts.push(upstream);
        }
        Ok(hosts)
    }

    fn host(
        &self,
        key: &str,
        url: &str,
        table: &HostTable,
        is_upstream: bool,
    ) -> Result<Host, SettingsError> {
        let can = |what: &str| {
            table.capabilities.as_ref().is_none_or(|all| all.iter().any(|one| one.eq_ignore_ascii_case(what)))
        };
        let dial_timeout = match &table.dial_timeout {
            None => DIAL_TIMEOUT,
            Some(text) => go_duration::parse(text).ok_or_else(|| {
                self.value(format!("{key}.dial_timeout"), format!("{text:?} is no duration such as 5s"))
            })?,
        };
        Ok(Host {
            base: self.base(key, url, table.override_path)?,
            can_pull: can("pull"),
            can_resolve: can("resolve"),
            is_upstream,
            tls: self.tls(key, table)?,
            headers: self.headers(key, table)?,
            dial_timeout,
        })
    }

    fn base(&self, key: &str, url: &str, override_path: bool) -> Result<String, SettingsError> {
        let with_scheme = match url.contains("://") {
            true => url.to_owned(),
            false => format!("https://{url}"),
        };
        let uri: Uri = with_scheme.parse().map_err(|_| self.value(key, format!("{url:?} is no URL")))?;
        let scheme = uri.scheme_str().unwrap_or_default();
        let (true, Some(authority)) = (matches!(scheme, "http" | "https"), uri.authority()) else {
            return Err(self.value(key, format!("{url:?} is no http or https URL")));
        };
        if authority.as_str().contains('@') {
            return Err(self.value(key, "a URL with credentials in it: put them under header".to_owned()));
        }
        let path = uri.path().trim_end_matches('/');
        let path = match override_path || path.ends_with("/v2") {
            true => path.to_owned(),
            false => format!("{path}/v2"),
        };
        Ok(format!("{scheme}://{authority}{path}"))
    }

    fn tls(&self, key: &str, table: &HostTable) -> Result<TlsSettings, SettingsError> {
        let authorities = table.ca.iter().flat_map(OneOrMany::as_slice);
        let authorities = authorities.map(|file| self.folder.join(file)).collect();
        let identities = match &table.client {
            None => Vec::new(),
            Some(Clients::One(file)) => vec![(self.folder.join(file), None)],
            Some(Clients::Many(many)) => many
                .iter()
                .map(|one| match one.as_slice() {
                    [both] => Ok((self.folder.join(both), None)),
                    [certificate, private] if private.is_empty() => Ok((self.folder.join(certificate), None)),
                    [certificate, private] => {
                        Ok((self.folder.join(certificate), Some(self.folder.join(private))))
                    }
                    _ => Err(self.value(format!("{key}.client"), "neither a file nor a pair".to_owned())),
                })
                .collect::<Result<_, _>>()?,
        };
        Ok(TlsSettings { authorities, identities, skip_verify: table.skip_verify })
    }

    fn headers(&self, key: &str, table: &HostTable) -> Result<Vec<(HeaderName, HeaderValue)>, SettingsError> {
        let mut headers = Vec::new();
        for (name, values) in &table.header {
            let bad = || self.value(format!("{key}.header"), format!("{name:?} cannot be sent"));
            let parsed: HeaderName = name.parse().map_err(|_| bad())?;
            for value in values.as_slice() {
                let mut value: HeaderValue = value.parse().map_err(|_| bad())?;
                value.set_sensitive(true);
                headers.push((parsed.clone(), value));
            }
        }
        Ok(headers)
    }

    fn value(&self, key: impl Into<String>, problem: String) -> SettingsError {
        SettingsError::Value { path: self.path.to_owned(), key: key.into(), problem }
    }
}

/// docker's layout: every `*.crt` is an authority, `x.cert` and `x.key` are an identity.
fn docker_certificates(folder: &Path) -> Result<TlsSettings, SettingsError> {
    let read_error = |source| SettingsError::Read { path: folder.to_owned(), source };
    let mut tls = TlsSettings::default();
    for entry in std::fs::read_dir(folder).map_err(read_error)? {
        let path = entry.map_err(read_error)?.path();
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("crt") => tls.authorities.push(path),
            Some("cert") => {
                let private = path.with_extension("key");
                tls.identities.push((path, Some(private)));
            }
            _ => {}
        }
    }
    tls.authorities.sort();
    tls.identities.sort();
    Ok(tls)
}

#[cfg(test)]
mod tests;
