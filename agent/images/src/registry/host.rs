//! One host that may be asked for an image: the registry itself or a mirror of it.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use hyper::header::{HeaderName, HeaderValue};

/// Docker Hub's registry does not live under its name.
const DOCKER_HUB: (&str, &str) = ("docker.io", "registry-1.docker.io");
/// How long to try to connect. Same as containerd's.
pub(super) const DIAL_TIMEOUT: Duration = Duration::from_secs(30);

/// Where and how to ask.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Host {
    /// URL up to and with `/v2` (or what the administrator has in its place), without a slash at the end.
    pub(super) base: String,
    /// It can be asked for content by digest.
    pub(super) can_pull: bool,
    /// It can be asked what a tag points to.
    pub(super) can_resolve: bool,
    /// It is the registry itself: it gets the credentials of the pull, and no `ns=`.
    pub(super) is_upstream: bool,
    pub(super) tls: TlsSettings,
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    pub(super) dial_timeout: Duration,
}

/// How to trust a host, and how to show it who we are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct TlsSettings {
    /// PEM files with authorities, besides those of the system.
    pub(super) authorities: Vec<PathBuf>,
    /// PEM files with a certificate and its key; the key may be in the same file.
    pub(super) identities: Vec<(PathBuf, Option<PathBuf>)>,
    /// Believe anybody.
    pub(super) skip_verify: bool,
}

impl Host {
    /// The registry that a reference names, when no settings say otherwise.
    pub(super) fn upstream(registry: &str) -> Host {
        Host {
            base: format!("{}/v2", default_server(registry)),
            can_pull: true,
            can_resolve: true,
            is_upstream: true,
            tls: TlsSettings::default(),
            headers: Vec::new(),
            dial_timeout: DIAL_TIMEOUT,
        }
    }

    /// Scheme and host, for messages.
    pub(super) fn label(&self) -> String {
        let scheme_end = self.base.find("://").map_or(0, |at| at + 3);
        let end = self.base[scheme_end..].find('/').map_or(self.base.len(), |at| scheme_end + at);
        self.base[..end].to_owned()
    }

    /// Host and port.
    pub(super) fn authority(&self) -> String {
        let label = self.label();
        label.split_once("://").map_or(label.as_str(), |(_, host)| host).to_ascii_lowercase()
    }
}

/// Scheme and host of a registry. Loopback means plain http, as in containerd and docker.
pub(super) fn default_server(registry: &str) -> String {
    if registry == DOCKER_HUB.0 {
        return format!("https://{}", DOCKER_HUB.1);
    }
    match is_loopback(registry) || registry.ends_with(":80") {
        true => format!("http://{registry}"),
        false => format!("https://{registry}"),
    }
}

/// Whether a registry is on this machine.
pub(super) fn is_loopback(registry: &str) -> bool {
    let host = match registry.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => host,
        _ => registry,
    };
    let address = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost" || address.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn registries_have_default_urls() {
        for (registry, base) in [
            ("docker.io", "https://registry-1.docker.io/v2"),
            ("quay.io", "https://quay.io/v2"),
            ("reg.example:8443", "https://reg.example:8443/v2"),
            ("reg.example:80", "http://reg.example:80/v2"),
            ("localhost", "http://localhost/v2"),
            ("localhost:5000", "http://localhost:5000/v2"),
            ("127.0.0.2:5000", "http://127.0.0.2:5000/v2"),
            ("[::1]:5000", "http://[::1]:5000/v2"),
            ("[::1]", "http://[::1]/v2"),
            ("[2001:db8::1]:5000", "https://[2001:db8::1]:5000/v2"),
            ("localhost.example", "https://localhost.example/v2"),
        ] {
            assert_eq!(Host::upstream(registry).base, base);
        }
        assert_eq!(Host::upstream("[::1]:5000").label(), "http://[::1]:5000");
        assert_eq!(Host::upstream("Reg.example").authority(), "reg.example");
    }
}
