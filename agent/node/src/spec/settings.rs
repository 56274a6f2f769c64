//! What the node offers to containers, looked up once.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use oci_spec::runtime::Capabilities;

use super::capabilities::from_mask;
use crate::apparmor::AppArmor;
use crate::config::Config;
use crate::open_files;
use crate::selinux::SeLinux;

/// `f_type` of a cgroup2 file system (linux/magic.h).
const CGROUP2_SUPER_MAGIC: i64 = 0x6367_7270;

/// Facts of the node that decide specs.
#[derive(Debug, Clone)]
pub struct SpecSettings {
    /// What hartpod itself may give away.
    pub capabilities: Capabilities,
    /// cgroup v2 is all there is (neither v1 nor hybrid).
    pub unified_cgroups: bool,
    /// The kernel accounts for swap by cgroup.
    pub swap_controller: bool,
    /// The kernel limits huge pages by cgroup.
    pub hugetlb_controller: bool,
    /// The kernel loads seccomp filters.
    pub seccomp: bool,
    /// AppArmor, where it is enabled.
    pub apparmor: Option<Arc<AppArmor>>,
    /// SELinux, where it is on and has a policy for containers.
    pub selinux: Option<Arc<SeLinux>>,
    /// Soft and hard limit of open files of a container's process.
    pub open_files: (u64, u64),
    /// The host's /dev.
    pub dev: PathBuf,
    /// Whether privileged containers have the host's devices.
    pub privileged_devices: bool,
    /// Where CDI files are, the folder that counts most last.
    pub cdi_folders: Vec<PathBuf>,
}

impl Default for SpecSettings {
    /// A node that has no more than it must; all capabilities, systemd's default limits.
    fn default() -> Self {
        Self {
            capabilities: from_mask(u64::MAX),
            unified_cgroups: false,
            swap_controller: false,
            hugetlb_controller: false,
            seccomp: false,
            apparmor: None,
            selinux: None,
            open_files: (1024, 524_288),
            dev: "/dev".into(),
            privileged_devices: true,
            cdi_folders: Vec::new(),
        }
    }
}

impl SpecSettings {
    /// What guests offer, whose kernel is a distribution's and whose cgroups are v2.
    pub fn of_guests() -> Self {
        Self { unified_cgroups: true, seccomp: true, open_files: (1024, 1 << 20), ..Self::default() }
    }

    /// Looks at the running system; what cannot be read counts as missing.
    pub fn detect(config: &Config) -> Self {
        let root = &config.cgroup.root;
        let unified_cgroups = is_cgroup2(root);
        let controllers = read("/proc/cgroups");
        let has = |name: &str| {
            controllers.lines().any(|l| l.split('\t').next() == Some(name) && l.trim_end().ends_with("\t1"))
        };
        Self {
            capabilities: from_mask(own_capabilities(&read("/proc/self/status"))),
            unified_cgroups,
            swap_controller: swap_is_counted(root, unified_cgroups),
            hugetlb_controller: has("hugetlb"),
            seccomp: Path::new("/proc/sys/kernel/seccomp/actions_avail").exists(),
            apparmor: AppArmor::detect().map(Arc::new),
            selinux: SeLinux::detect().map(Arc::new),
            open_files: own_open_files(),
            dev: "/dev".into(),
            privileged_devices: !config.pod.privileged_without_host_devices,
            cdi_folders: config.cdi.spec_dirs.clone(),
        }
    }
}

/// A missing limit is what the kernel calls infinity.
fn own_open_files() -> (u64, u64) {
    let own = open_files::original();
    (own.current.unwrap_or(u64::MAX), own.maximum.unwrap_or(u64::MAX))
}

fn read(path: impl AsRef<Path>) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn is_cgroup2(root: &Path) -> bool {
    // The type of f_type differs by architecture.
    #[allow(clippy::unnecessary_cast)]
    rustix::fs::statfs(root).is_ok_and(|s| s.f_type as i64 == CGROUP2_SUPER_MAGIC)
}

/// What is both in the permitted and in the bounding set: the rest cannot be handed on.
fn own_capabilities(status: &str) -> u64 {
    let mask = |name: &str| {
        let line = status.lines().find_map(|l| l.strip_prefix(name))?;
        u64::from_str_radix(line.trim(), 16).ok()
    };
    mask("CapPrm:").unwrap_or(0) & mask("CapBnd:").unwrap_or(0)
}

/// v1 shows it in the root; v2's root has no such file, so any first-level group is asked.
fn swap_is_counted(root: &Path, unified: bool) -> bool {
    if !unified {
        return root.join("memory/memory.memsw.limit_in_bytes").exists();
    }
    let Ok(groups) = std::fs::read_dir(root) else { return false };
    groups.flatten().any(|g| g.path().join("memory.swap.max").exists())
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::Capability;

    use super::*;

    #[test]
    fn a_capability_must_be_held_and_not_bounded_away() {
        let status =
            "Name:\tx\nCapInh:\t0000000000000000\nCapPrm:\t0000000000000003\nCapBnd:\t0000000000000005\n";
        assert_eq!(from_mask(own_capabilities(status)), [Capability::Chown].into());
        assert_eq!(own_capabilities(""), 0);
    }

    #[test]
    fn swap_is_looked_for_where_each_version_has_it() {
        let dir = tempfile::tempdir().unwrap();
        assert!(!swap_is_counted(dir.path(), false));
        assert!(!swap_is_counted(dir.path(), true));
        std::fs::create_dir(dir.path().join("memory")).unwrap();
        std::fs::write(dir.path().join("memory/memory.memsw.limit_in_bytes"), "").unwrap();
        assert!(swap_is_counted(dir.path(), false));
        std::fs::create_dir(dir.path().join("init.scope")).unwrap();
        std::fs::write(dir.path().join("init.scope/memory.swap.max"), "").unwrap();
        assert!(swap_is_counted(dir.path(), true));
    }

    #[test]
    fn this_system_can_be_looked_at() {
        let settings = SpecSettings::detect(&Config::default());
        assert!(settings.capabilities.contains(&Capability::Chown) || !rustix::process::geteuid().is_root());
    }
}
