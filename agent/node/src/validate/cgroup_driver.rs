//! Whether the kubelet and hartpod mean the same by a pod's cgroup.

use hartpod_container::cgroup::is_slice;
use hartpod_proto::cri::v1 as cri;

use super::InvalidRequest;

/// Who makes cgroups on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Driver {
    Cgroupfs,
    Systemd,
}

impl Driver {
    pub(crate) fn of(systemd: bool) -> Self {
        if systemd { Self::Systemd } else { Self::Cgroupfs }
    }
}

/// A kubelet with the other driver would make cgroups that it does not find its pods in.
pub(crate) fn cgroup_driver(config: &cri::PodSandboxConfig, driver: Driver) -> Result<(), InvalidRequest> {
    let parent = config.linux.as_ref().map_or("", |linux| linux.cgroup_parent.as_str());
    let problem = match (driver, is_slice(parent)) {
        (Driver::Cgroupfs, true) => "is a systemd slice, and this node's cgroup driver is cgroupfs",
        (Driver::Systemd, false) if !parent.is_empty() => {
            "is a path, and this node's cgroup driver is systemd, with slices"
        }
        (Driver::Cgroupfs | Driver::Systemd, _) => return Ok(()),
    };
    let field = "config.linux.cgroup_parent".to_owned();
    let problem = format!(
        "{parent} {problem}: the kubelet's cgroupDriver and hartpod's cgroup.driver must be the same"
    );
    Err(InvalidRequest { field, problem })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parent_of_the_other_driver_is_refused() {
        let outcome = |parent: &str, driver| {
            let linux = cri::LinuxPodSandboxConfig { cgroup_parent: parent.into(), ..Default::default() };
            let config = cri::PodSandboxConfig { linux: Some(linux), ..Default::default() };
            cgroup_driver(&config, driver).map_err(|error| error.to_string())
        };
        for (parent, driver) in [
            ("", Driver::Cgroupfs),
            ("", Driver::Systemd),
            ("/kubepods/pod1", Driver::Cgroupfs),
            ("kubepods-pod1.slice", Driver::Systemd),
            ("/a.slice/a-b.slice", Driver::Cgroupfs),
        ] {
            outcome(parent, driver).unwrap();
        }
        let refused = outcome("kubepods-pod1.slice", Driver::Cgroupfs).unwrap_err();
        assert!(refused.contains("kubepods-pod1.slice is a systemd slice"), "{refused}");
        let refused = outcome("/kubepods/pod1", Driver::Systemd).unwrap_err();
        assert!(refused.contains("/kubepods/pod1 is a path"), "{refused}");
    }
}
