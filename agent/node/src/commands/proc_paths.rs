//! What a container does not get to see or write of /proc and /sys: CRI knows no default, so every caller sends lists.

use hartpod_proto::cri::v1 as cri;

/// As the kubelet sends them (`defaultMaskedPaths` in pkg/securitycontext); one that a kernel does not have is passed over.
const MASKED: [&str; 11] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
];

/// As the kubelet sends them (`defaultReadonlyPaths` there).
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// A security context that keeps the container from the node's /proc and /sys, with the default filter of system calls.
pub(super) fn confined(options: cri::NamespaceOption) -> cri::LinuxContainerSecurityContext {
    cri::LinuxContainerSecurityContext {
        namespace_options: Some(options),
        seccomp: Some(cri::SecurityProfile::default()),
        masked_paths: MASKED.map(str::to_owned).to_vec(),
        readonly_paths: READ_ONLY.map(str::to_owned).to_vec(),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nodes_settings_are_out_of_reach() {
        let security = confined(cri::NamespaceOption::default());
        assert!(security.readonly_paths.iter().any(|path| path == "/proc/sys"));
        assert!(security.masked_paths.iter().any(|path| path == "/proc/kcore"));
        // The default value of the profile's type is the runtime's own filter.
        let seccomp = security.seccomp.unwrap();
        assert_eq!(seccomp.profile_type(), cri::security_profile::ProfileType::RuntimeDefault);
    }
}
