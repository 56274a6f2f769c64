//! What a test needs of the machine. A missing need makes the test a counted skip with its reason, never a silent pass.
//!
//! Needs are looked at when tests are listed: nextest, which runs every test in a process of its own, counts as skipped what the
//! list marks as ignored; a test that gave up at run time would count as passed.

use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

/// Something that a test cannot do without.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// Namespaces, cgroups and mounts: every end-to-end test needs it.
    Root,
    /// Debian's `docker-registry`; in the lab it is imitated.
    Registry,
    /// Debian's `busybox-static`, of which every test image is made.
    Busybox,
    /// Debian's `containernetworking-plugins`: bridge, host-local, portmap.
    CniPlugins,
    /// `iptables` that works in a network namespace of its own.
    Iptables,
    /// A kernel with IPv6.
    Ipv6,
    /// A memory controller, v1 or v2.
    MemoryController,
    /// Pure cgroup v2.
    CgroupV2,
    /// A systemd of the tests' own (`tests/systemd/run`).
    Systemd,
    /// One, and these controllers in the v2 tree that it has.
    SystemdWith(&'static [&'static str]),
    /// cgroup v1 hierarchies for the controllers.
    CgroupV1,
    /// `hartpod` and `hartpod-pod` in `HARTPOD_BIN_DIR` (`make build`).
    Binaries,
    /// `hartpod-attacker` there (`make attacker`).
    Attacker,
    /// Debian's `prometheus`, with promtool.
    Prometheus,
    /// KVM on riscv64, and the VMM beside the daemon: what guests need.
    Kvm,
    /// AppArmor in the kernel, and its parser; of containers on the node.
    AppArmor,
    /// Something that a container has of the node, or that is seen of it from there, such as `devices`: not where pods are guests.
    OfNode(&'static str),
    /// Processors that are no programs themselves: `HARTPOD_LAB` says that they are.
    Speed,
}

/// Where Debian puts CNI plugins.
pub const CNI_BIN_DIR: &str = "/usr/lib/cni";
/// A busybox without libraries, from Debian's `busybox-static`.
pub const BUSYBOX: &str = "/bin/busybox";

impl Need {
    /// Why this machine lacks it, or `None` if it does not.
    pub fn missing(self) -> Option<String> {
        let (met, reason) = match self {
            Self::Root => (nix::unistd::geteuid().is_root(), "needs root".into()),
            Self::Registry => {
                (crate::eventually::emulated() || in_path("docker-registry"), "needs docker-registry".into())
            }
            Self::Busybox => (Path::new(BUSYBOX).exists(), format!("needs {BUSYBOX} (busybox-static)")),
            Self::CniPlugins => {
                let all =
                    ["bridge", "host-local", "portmap"].map(|p| Path::new(CNI_BIN_DIR).join(p).exists());
                (all == [true; 3], format!("needs bridge, host-local and portmap in {CNI_BIN_DIR}"))
            }
            Self::Iptables => (iptables_works(), "needs iptables with nat in a network namespace".into()),
            Self::Ipv6 => (Path::new("/proc/net/if_inet6").exists(), "needs IPv6".into()),
            Self::MemoryController => {
                let met = Path::new("/sys/fs/cgroup/memory").is_dir()
                    || controllers_v2().is_some_and(|all| all.split_whitespace().any(|one| one == "memory"));
                (met, "needs a cgroup memory controller".into())
            }
            Self::CgroupV2 => (controllers_v2().is_some(), "needs cgroup v2 at /sys/fs/cgroup".into()),
            Self::Systemd => {
                (crate::isolation::under_systemd(), "needs a systemd of its own (tests/systemd/run)".into())
            }
            Self::SystemdWith(_) if Self::Systemd.missing().is_some() => return Self::Systemd.missing(),
            Self::SystemdWith(wanted) => {
                let all = controllers_v2().unwrap_or_default();
                let met = wanted.iter().all(|one| all.split_whitespace().any(|other| other == *one));
                (met, format!("needs {} in the v2 tree", wanted.join(" and ")))
            }
            Self::CgroupV1 => {
                (Path::new("/sys/fs/cgroup/memory").is_dir(), "needs cgroup v1 hierarchies".into())
            }
            Self::Binaries => binary("hartpod").and(binary("hartpod-pod")),
            // It goes for the agent of its pod.
            Self::Attacker if crate::guest::by_default() => return Self::OfNode("processes").missing(),
            Self::Attacker => binary("hartpod-attacker"),
            Self::Prometheus => {
                (in_path("prometheus") && in_path("promtool"), "needs prometheus and promtool".into())
            }
            Self::Kvm => {
                let met = cfg!(target_arch = "riscv64") && Path::new("/dev/kvm").exists();
                (met, "needs /dev/kvm of a riscv64 machine (make lab)".into()).and(binary("hartpod-vmm"))
            }
            Self::AppArmor if crate::guest::by_default() => {
                return Self::OfNode("AppArmor profiles").missing();
            }
            Self::AppArmor => {
                let loaded = std::fs::read_to_string("/sys/kernel/security/apparmor/profiles").is_ok();
                let met = loaded
                    && ["/usr/sbin", "/sbin"]
                        .iter()
                        .any(|dir| Path::new(dir).join("apparmor_parser").exists());
                (met, "needs AppArmor in the kernel, securityfs and apparmor_parser".into())
            }
            Self::OfNode(what) => {
                (!crate::guest::by_default(), format!("guests have none of the node's {what}"))
            }
            Self::Speed => (!crate::eventually::emulated(), "takes too long on an emulated machine".into()),
        };
        (!met).then_some(reason)
    }
}

trait And {
    fn and(self, other: Self) -> Self;
}

impl And for (bool, String) {
    fn and(self, other: Self) -> Self {
        if self.0 { other } else { self }
    }
}

fn binary(name: &str) -> (bool, String) {
    let path = crate::node::bin_dir().join(name);
    (path.exists(), format!("needs {} (make build attacker)", path.display()))
}

fn controllers_v2() -> Option<String> {
    std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers").ok()
}

fn in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).exists())
}

/// Asked for every test, so the answer is kept.
fn iptables_works() -> bool {
    static WORKS: OnceLock<bool> = OnceLock::new();
    *WORKS.get_or_init(try_iptables)
}

fn try_iptables() -> bool {
    let script = "iptables -t nat -N PROBE && iptables -t nat -X PROBE";
    let probe = Command::new("unshare").args(["--net", "sh", "-c", script]).output();
    probe.is_ok_and(|output| output.status.success())
}
