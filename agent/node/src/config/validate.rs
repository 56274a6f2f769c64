//! What a configuration must satisfy before anything is made from it.

use std::fmt;
use std::ops::RangeInclusive;
use std::path::{Component, Path};

use hartpod_container::cgroup;
use tonic::codegen::http::Uri;

use super::Config;
use crate::guest;

/// One key and what is wrong with its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    key: &'static str,
    text: String,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.key, self.text)
    }
}

/// Longest path of a unix socket: `sun_path` with its closing NUL (unix(7)). Clients pass the path as it is.
const SOCKET_PATH_MAX: usize = 107;

#[derive(Default)]
struct Findings(Vec<Problem>);

impl Findings {
    fn add(&mut self, key: &'static str, text: impl Into<String>) {
        self.0.push(Problem { key, text: text.into() });
    }

    fn absolute(&mut self, key: &'static str, path: &Path) {
        if !path.is_absolute() {
            self.add(key, format!("{:?} is not an absolute path", path.display().to_string()));
        } else if path.components().any(|c| c == Component::ParentDir) {
            self.add(key, format!("{} contains ..", path.display()));
        } else if path.as_os_str().as_encoded_bytes().contains(&0) {
            self.add(key, "contains a NUL");
        }
    }

    fn range(&mut self, key: &'static str, value: u64, range: RangeInclusive<u64>) {
        if !range.contains(&value) {
            self.add(key, format!("{value} is not in {} to {}", range.start(), range.end()));
        }
    }
}

impl Config {
    /// Every problem, not just the first.
    pub fn validate(&self) -> Vec<Problem> {
        let mut found = Findings::default();
        self.folders(&mut found);
        self.cni(&mut found);
        self.images(&mut found);
        self.streaming(&mut found);
        self.tracing(&mut found);
        if self.cgroup.root != Path::new(cgroup::ROOT) {
            let root = self.cgroup.root.display().to_string();
            found.add(
                "cgroup.root",
                format!("{root:?} is not supported: control groups must be at {}", cgroup::ROOT),
            );
        }
        if !self.pod.agent.as_os_str().is_empty() {
            found.absolute("pod.agent", &self.pod.agent);
        }
        found.absolute("pod.netns_dir", &self.pod.netns_dir);
        for dir in &self.cdi.spec_dirs {
            found.absolute("cdi.spec_dirs", dir);
        }
        self.vm(&mut found);
        found.0
    }

    fn folders(&self, found: &mut Findings) {
        found.absolute("root", &self.root);
        found.absolute("state", &self.state);
        found.absolute("socket", &self.socket);
        if self.root == Path::new("/") {
            found.add("root", "must be a folder of hartpod's own, not /");
        }
        if self.state == Path::new("/") {
            found.add("state", "must be a folder of hartpod's own, not /");
        }
        if self.root == self.state {
            found.add("state", "must not be the same folder as root");
        }
        let length = self.socket.as_os_str().len();
        if length > SOCKET_PATH_MAX {
            found.add(
                "socket",
                format!("{length} bytes long, a unix socket's path has at most {SOCKET_PATH_MAX}"),
            );
        }
    }

    fn cni(&self, found: &mut Findings) {
        found.absolute("cni.conf_dir", &self.cni.conf_dir);
        if self.cni.bin_dirs.is_empty() {
            found.add("cni.bin_dirs", "is empty: no plugin could be found");
        }
        for dir in &self.cni.bin_dirs {
            found.absolute("cni.bin_dirs", dir);
        }
        for dir in &self.cni.foreign_caches {
            found.absolute("cni.foreign_caches", dir);
        }
        if !self.cni.conf_template.as_os_str().is_empty() {
            found.absolute("cni.conf_template", &self.cni.conf_template);
        }
        found.range("cni.plugin_timeout_s", self.cni.plugin_timeout_s, 1..=3600);
    }

    fn streaming(&self, found: &mut Findings) {
        let files = [
            ("streaming.tls_cert", &self.streaming.tls_cert),
            ("streaming.tls_key", &self.streaming.tls_key),
        ];
        let [cert, key] = files.map(|(_, path)| !path.as_os_str().is_empty());
        if cert != key {
            let [missing, other] = if cert { [files[1].0, files[0].0] } else { [files[0].0, files[1].0] };
            found.add(missing, format!("is missing: {other} is set, and TLS needs both"));
        }
        for (name, path) in files {
            if !path.as_os_str().is_empty() {
                found.absolute(name, path);
            }
        }
    }

    fn tracing(&self, found: &mut Findings) {
        let (endpoint, ratio) = (&self.tracing.otlp_endpoint, self.tracing.sample_ratio);
        if !(0.0..=1.0).contains(&ratio) {
            found.add("tracing.sample_ratio", format!("{ratio} is not in 0.0 to 1.0"));
        }
        if endpoint.is_empty() {
            return;
        }
        let what = match endpoint.parse::<Uri>() {
            Ok(uri) if uri.scheme_str() == Some("https") => {
                "asks for TLS: have a collector on this node, over http"
            }
            Ok(uri) if uri.scheme_str() != Some("http") || uri.port_u16().is_none() => {
                "is not of the form http://HOST:PORT"
            }
            Ok(uri) if uri.path_and_query().is_some_and(|path| path != "/") => {
                "has a path: OTLP over gRPC has none"
            }
            Ok(_) => return,
            Err(_) => "is no URL",
        };
        found.add("tracing.otlp_endpoint", format!("{endpoint:?} {what}"));
    }

    fn vm(&self, found: &mut Findings) {
        let vm = &self.vm;
        if !vm.vmm.as_os_str().is_empty() {
            found.absolute("vm.vmm", &vm.vmm);
        }
        found.range("vm.default_memory_mib", vm.default_memory_mib, 64..=guest::MAX_MEMORY_MIB);
        found.range("vm.default_vcpus", vm.default_vcpus, 1..=guest::MAX_VCPUS);
        found.range("vm.guest_base_mib", vm.guest_base_mib, 64..=4096);
        found.range("vm.overhead_mib", vm.overhead_mib, 8..=4096);
        found.range("vm.resize_headroom_percent", vm.resize_headroom_percent, 0..=1000);
        found.range("vm.console_kib", vm.console_kib, 1..=1 << 20);
        let [first, last] = vm.uid_range;
        // Below are the system's own and people's (login.defs(5)); the last two mean nobody and no user at all.
        if first < 65_536 || last >= u32::MAX - 1 || first > last {
            found.add("vm.uid_range", format!("{first} to {last} is not within 65536 to {}", u32::MAX - 2));
        }
        for name in &vm.allowed_annotations {
            if !guest::ANNOTATIONS.contains(&name.as_str()) {
                found.add(
                    "vm.allowed_annotations",
                    format!("{name:?} is none of {}", guest::ANNOTATIONS.join(", ")),
                );
            }
        }
    }

    fn images(&self, found: &mut Findings) {
        found.absolute("images.hosts_dir", &self.images.hosts_dir);
        found.range("images.max_layer_gib", self.images.max_layer_gib, 1..=4096);
        found.range("images.parallel_layers", self.images.parallel_layers, 1..=64);
        found.range("images.progress_timeout_s", self.images.progress_timeout_s, 1..=86_400);
        for pattern in &self.images.pinned {
            let name = pattern.strip_suffix('*').unwrap_or(pattern);
            if pattern.trim().is_empty() {
                found.add("images.pinned", "has an empty entry");
            } else if name.contains('*') {
                found.add("images.pinned", format!("{pattern:?}: * is understood at the end only"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_are_valid() {
        assert_eq!(Config::default().validate(), []);
    }

    #[test]
    fn each_problem_names_its_key() {
        let long = format!("socket = '/{}'", "x".repeat(107));
        let table = [
            ("root = 'var'", "root: \"var\" is not an absolute path"),
            ("root = '/'", "root: must be a folder of hartpod's own, not /"),
            ("root = '/a'\nstate = '/a'", "state: must not be the same folder as root"),
            ("state = '/run/../x'", "state: /run/../x contains .."),
            (&long, "socket: 108 bytes long, a unix socket's path has at most 107"),
            ("[cni]\nbin_dirs = []", "cni.bin_dirs: is empty: no plugin could be found"),
            ("[cni]\nplugin_timeout_s = 0", "cni.plugin_timeout_s: 0 is not in 1 to 3600"),
            ("[cni]\nconf_template = 'net'", "cni.conf_template: \"net\" is not an absolute path"),
            ("[images]\nmax_layer_gib = 0", "images.max_layer_gib: 0 is not in 1 to 4096"),
            ("[images]\npinned = ['a*b']", "images.pinned: \"a*b\": * is understood at the end only"),
            ("[images]\npinned = ['']", "images.pinned: has an empty entry"),
            (
                "[streaming]\ntls_cert = '/c.pem'",
                "streaming.tls_key: is missing: streaming.tls_cert is set, and TLS needs both",
            ),
            (
                "[streaming]\ntls_key = '/k.pem'",
                "streaming.tls_cert: is missing: streaming.tls_key is set, and TLS needs both",
            ),
            (
                "[streaming]\ntls_cert = '/c.pem'\ntls_key = 'k.pem'",
                "streaming.tls_key: \"k.pem\" is not an absolute path",
            ),
            ("[pod]\nagent = 'bin/agent'", "pod.agent: \"bin/agent\" is not an absolute path"),
            (
                "[vm]\nallowed_annotations = ['x']",
                "vm.allowed_annotations: \"x\" is none of io.hartpod.vm.memory-mib, io.hartpod.vm.vcpus, \
                 io.hartpod.vm.kernel-arguments",
            ),
            ("[vm]\nuid_range = [9, 1]", "vm.uid_range: 9 to 1 is not within 65536 to 4294967293"),
            ("[vm]\ndefault_vcpus = 65", "vm.default_vcpus: 65 is not in 1 to 64"),
            (
                "[tracing]\notlp_endpoint = '127.0.0.1:4317'",
                "tracing.otlp_endpoint: \"127.0.0.1:4317\" is not of the form http://HOST:PORT",
            ),
            (
                "[tracing]\notlp_endpoint = 'https://a:4317'",
                "tracing.otlp_endpoint: \"https://a:4317\" asks for TLS: have a collector on this node, over http",
            ),
            (
                "[tracing]\notlp_endpoint = 'http://a:4318/v1/traces'",
                "tracing.otlp_endpoint: \"http://a:4318/v1/traces\" has a path: OTLP over gRPC has none",
            ),
            ("[tracing]\notlp_endpoint = 'a b'", "tracing.otlp_endpoint: \"a b\" is no URL"),
            ("[tracing]\nsample_ratio = 1.5", "tracing.sample_ratio: 1.5 is not in 0.0 to 1.0"),
            ("[tracing]\nsample_ratio = nan", "tracing.sample_ratio: NaN is not in 0.0 to 1.0"),
            (
                "[cgroup]\nroot = '/cgroup'",
                "cgroup.root: \"/cgroup\" is not supported: control groups must be at /sys/fs/cgroup",
            ),
        ];
        for (text, expected) in table {
            let found: Vec<String> =
                toml::from_str::<Config>(text).unwrap().validate().iter().map(ToString::to_string).collect();
            assert_eq!(found, [expected], "{text}");
        }
    }
}
