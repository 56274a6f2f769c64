//! The daemon's configuration: one struct per section, unknown keys are errors, defaults are the documentation.
//!
//! `deploy/config.toml` is rendered from these structs (see [`sample`]); a test compares the two.

mod load;
mod sample;
mod section;
mod validate;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hartpod_cni::{ConfTemplate, TemplateError};
pub use load::{LoadError, Overrides};
pub use sample::render as sample;
use section::sections;
use serde::{Deserialize, Serialize};
pub use validate::Problem;

/// Where the daemon looks when it is not told.
pub const DEFAULT_FILE: &str = "/etc/hartpod/config.toml";

/// Name of the socket below [`Config::state`] when `socket` is not set.
const SOCKET_NAME: &str = "hartpod.sock";

/// Looked at when the agent is not beside the daemon's own executable.
const AGENT_FALLBACK: &str = "/usr/libexec/hartpod/hartpod-pod";

/// Looked at when the VMM is not beside the daemon's own executable.
const VMM_FALLBACK: &str = "/usr/libexec/hartpod/hartpod-vmm";

sections! {
    /// Everything that `hartpod serve` can be told.
    Config {
        /// What outlives a reboot: images, records of pods, writable layers.
        root: PathBuf = "/var/lib/hartpod".into(),
        /// What a reboot clears: sockets of pod agents, files of running pods.
        state: PathBuf = "/run/hartpod".into(),
        /// The CRI socket, made as root:root 0660. When unset: hartpod.sock in the state folder.
        socket: PathBuf = "/run/hartpod/hartpod.sock".into(),
        cni: Cni = Cni::default(),
        images: Images = Images::default(),
        streaming: Streaming = Streaming::default(),
        metrics: Metrics = Metrics::default(),
        tracing: Tracing = Tracing::default(),
        cgroup: Cgroup = Cgroup::default(),
        pod: Pod = Pod::default(),
        vm: Vm = Vm::default(),
        cdi: Cdi = Cdi::default(),
    }

    /// Devices that vendors describe in files (container device interface).
    Cdi {
        /// Where the files are, JSON or YAML. They are read when a container asks for a device; what is in a later folder counts more.
        spec_dirs: Vec<PathBuf> = vec!["/etc/cdi".into(), "/var/run/cdi".into()],
    }

    /// The network of pods.
    Cni {
        /// Network configuration; the first file by name that is one counts. Re-read when it changes.
        conf_dir: PathBuf = "/etc/cni/net.d".into(),
        /// Where plugins are looked for, in this order.
        bin_dirs: Vec<PathBuf> = vec!["/opt/cni/bin".into(), "/usr/lib/cni".into()],
        /// A plugin that runs longer than this many seconds is killed and has failed.
        plugin_timeout_s: u64 = 60,
        /// For nodes whose network is no more than the address ranges that the kubelet tells: a template, in containerd's format, of
        /// 10-hartpod-net.conflist in conf_dir. It is filled in when the kubelet tells the ranges, unless another valid configuration
        /// is there. Filled in are .PodCIDR, .PodCIDRRanges and .Routes. When empty: none is made. Read at the start.
        conf_template: PathBuf = PathBuf::new(),
        /// Whether plugins are told now and then which pods there are, so that they give back what is of no other: CNI's GC, of networks of
        /// version 1.1.0. They take the pods of other runtimes for garbage, so it is refused while one has pods in the network.
        gc: bool = false,
        /// Where other runtimes keep what they remember of their pods in the network: the caches of libcni.
        foreign_caches: Vec<PathBuf> = vec!["/var/lib/cni/results".into(), "/var/lib/cni/cache".into()],
    }

    /// Pulling and keeping images.
    Images {
        /// A folder per registry with a hosts.toml, in containerd's format. Re-read at every pull.
        hosts_dir: PathBuf = "/etc/containerd/certs.d".into(),
        /// Images that are reported as pinned, so that the kubelet does not collect them. A trailing * matches any rest.
        pinned: Vec<String> = vec![],
        /// Largest size of one layer once unpacked, in GiB; a larger one fails the pull.
        max_layer_gib: u64 = 8,
        /// Layers of one image that are fetched and unpacked at the same time.
        parallel_layers: u64 = 3,
        /// A pull that receives nothing for this many seconds has failed.
        progress_timeout_s: u64 = 60,
    }

    /// What `kubectl exec`, `attach` and `port-forward` connect to, by way of the kubelet.
    Streaming {
        /// Where the streaming server listens; port 0 takes a free one. Whoever reaches it needs a token that CRI gave out, but without TLS
        /// nothing encrypts what it carries: leave it on loopback unless the kubelet is on another machine.
        listen: SocketAddr = SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
        /// For https: a PEM file with the server's certificate, and behind it those that vouch for it. When empty: http. Read at the start.
        tls_cert: PathBuf = PathBuf::new(),
        /// A PEM file with the private key of that certificate.
        tls_key: PathBuf = PathBuf::new(),
    }

    /// What Prometheus reads.
    Metrics {
        /// Whether there is a `/metrics` at all.
        enabled: bool = true,
        /// Where it is served, over plain HTTP; port 0 takes a free one. It tells names of pods and what they use: leave it on loopback unless whoever scrapes it is
        /// elsewhere.
        listen: SocketAddr = SocketAddr::from((Ipv4Addr::LOCALHOST, 9810)),
    }

    /// What calls are spent on, for OpenTelemetry.
    Tracing {
        /// A collector that takes OTLP over gRPC without TLS, such as http://127.0.0.1:4317. Each call of CRI is told to it with its parts, down to the agents
        /// of pods: whoever reads it learns names of pods and messages of errors. When empty: nothing is recorded.
        otlp_endpoint: String = String::new(),
        /// The share of calls that are told, 0.0 to 1.0, of clients that do not trace. One that does, as the kubelet can, decides for its calls.
        sample_ratio: f64 = 1.0,
    }

    /// Control groups.
    Cgroup {
        /// Who makes cgroups, which must be what the kubelet's cgroupDriver says: "cgroupfs" (paths), "systemd" (slices and scopes; cgroup v2
        /// only), or "auto": systemd where it runs and cgroups are v2. A kubelet can ask hartpod (KubeletCgroupDriverFromCRI).
        driver: CgroupDriver = CgroupDriver::Auto,
        /// Where the control group file systems are mounted. There is no other place: pod agents and containers know it too.
        root: PathBuf = hartpod_container::cgroup::ROOT.into(),
    }

    /// Pods and their agents.
    Pod {
        /// The program that runs a pod. When empty: hartpod-pod beside the daemon's own executable, then
        /// /usr/libexec/hartpod/hartpod-pod.
        agent: PathBuf = PathBuf::new(),
        /// Where the network namespace of each pod gets a name, hartpod-<id>.
        netns_dir: PathBuf = "/var/run/netns".into(),
        /// Privileged containers get only the devices that they ask for, and may use no others. In guests they have the guest's own in any case.
        privileged_without_host_devices: bool = false,
    }

    /// Pods in guests: runtime handler "vm".
    Vm {
        /// The program that runs a guest. When empty: hartpod-vmm beside the daemon's own executable, then
        /// /usr/libexec/hartpod/hartpod-vmm.
        vmm: PathBuf = PathBuf::new(),
        /// Memory of a guest whose pod has a container without a memory limit, in MiB. It is a ceiling: pages are taken when the
        /// guest first touches them.
        default_memory_mib: u64 = 2048,
        /// vCPUs of a guest whose pod has a container without a CPU limit. A limit is rounded up to whole ones.
        default_vcpus: u64 = 2,
        /// What a guest's kernel and agent need before any container, in MiB: added to the limits of the pod's containers.
        guest_base_mib: u64 = 128,
        /// What the VMM itself may take besides the guest's memory, in MiB.
        overhead_mib: u64 = 32,
        /// How much larger than its pod's limits a guest may become while it runs, in percent: memory and vCPUs that it boots with besides, which
        /// the pod gets when its resources are changed. Of each GiB of it the guest's kernel takes 16 MiB at boot.
        resize_headroom_percent: u64 = 0,
        /// First and last of the users that VMMs run as, a user each. Nothing else on the node may have them.
        uid_range: [u32; 2] = [2_000_000_000, 2_000_065_535],
        /// Annotations of pods that may change their guest: any of "io.hartpod.vm.memory-mib", "io.hartpod.vm.vcpus" and
        /// "io.hartpod.vm.kernel-arguments". A pod with one that is not listed is refused.
        allowed_annotations: Vec<String> = vec![],
        /// What a guest may print on its console, in KiB; the rest is dropped.
        console_kib: u64 = 256,
    }
}

/// Who makes the parents of cgroup leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CgroupDriver {
    /// What fits the machine.
    Auto,
    /// Plain folders below the kubelet's parent.
    Cgroupfs,
    /// Units of systemd.
    Systemd,
}

impl Cni {
    /// See `plugin_timeout_s`.
    pub fn plugin_timeout(&self) -> Duration {
        Duration::from_secs(self.plugin_timeout_s)
    }

    /// Reads the template of `conf_template`, where there is one.
    pub fn template_blocking(&self) -> Result<Option<ConfTemplate>, TemplateError> {
        if self.conf_template.as_os_str().is_empty() {
            return Ok(None);
        }
        ConfTemplate::read_blocking(&self.conf_template, &self.conf_dir).map(Some)
    }
}

impl Images {
    /// See `progress_timeout_s`.
    pub fn progress_timeout(&self) -> Duration {
        Duration::from_secs(self.progress_timeout_s)
    }

    /// See `max_layer_gib`.
    pub fn max_layer_bytes(&self) -> u64 {
        self.max_layer_gib.saturating_mul(1 << 30)
    }

    /// See `parallel_layers`.
    pub fn parallel_layers(&self) -> usize {
        usize::try_from(self.parallel_layers).unwrap_or(usize::MAX)
    }
}

/// No pod agent was found.
#[derive(Debug, thiserror::Error)]
#[error("no pod agent at {}: set pod.agent to the path of hartpod-pod", list(.tried))]
pub struct NoAgent {
    tried: Vec<PathBuf>,
}

/// No VMM was found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no hartpod-vmm at {}: set vm.vmm to its path", list(.tried))]
pub struct NoVmm {
    tried: Vec<PathBuf>,
}

fn list(paths: &[PathBuf]) -> String {
    paths.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(" or ")
}

impl Pod {
    /// The agent's path: the configured one as it is, or the first default place that has it.
    pub fn agent_path(&self) -> Result<PathBuf, NoAgent> {
        find(&self.agent, beside("hartpod-pod"), AGENT_FALLBACK).map_err(|tried| NoAgent { tried })
    }
}

impl Vm {
    /// The VMM's path: the configured one as it is, or the first default place that has it.
    pub fn vmm_path(&self) -> Result<PathBuf, NoVmm> {
        find(&self.vmm, beside("hartpod-vmm"), VMM_FALLBACK).map_err(|tried| NoVmm { tried })
    }
}

/// Where a program of this name would be if it came with the daemon's own.
fn beside(name: &str) -> Option<PathBuf> {
    std::env::current_exe().ok().and_then(|own| Some(own.parent()?.join(name)))
}

/// The configured program, or the first default place that has one; else where it was looked for.
fn find(configured: &Path, beside: Option<PathBuf>, fallback: &str) -> Result<PathBuf, Vec<PathBuf>> {
    let tried: Vec<PathBuf> = if configured.as_os_str().is_empty() {
        beside.into_iter().chain([PathBuf::from(fallback)]).collect()
    } else {
        vec![configured.to_owned()]
    };
    tried.iter().find(|p| p.is_file()).cloned().ok_or(tried)
}

/// The socket that belongs to a state folder when none is named.
fn default_socket(state: &Path) -> PathBuf {
    state.join(SOCKET_NAME)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_named_agent_is_the_only_one_tried() {
        let pod = Pod { agent: "/nonexistent/agent".into(), ..Pod::default() };
        let tried = find(&pod.agent, Some("/bin/sh".into()), AGENT_FALLBACK).unwrap_err();
        assert_eq!(tried, [PathBuf::from("/nonexistent/agent")]);
        let error = pod.agent_path().unwrap_err();
        assert!(error.to_string().starts_with("no pod agent at /nonexistent/agent: "), "{error}");
    }

    #[test]
    fn the_agent_beside_the_daemon_comes_first() {
        let dir = tempfile::tempdir().unwrap();
        let beside = dir.path().join("hartpod-pod");
        std::fs::write(&beside, "").unwrap();
        assert_eq!(find(Path::new(""), Some(beside.clone()), AGENT_FALLBACK).unwrap(), beside);
    }

    #[test]
    fn the_default_socket_is_the_one_of_the_default_state_folder() {
        let config = Config::default();
        assert_eq!(config.socket, default_socket(&config.state));
    }
}
