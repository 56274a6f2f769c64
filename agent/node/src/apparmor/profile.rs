//! The text of hartpod's own AppArmor profile.

/// Its name, in the manner of `cri-containerd.apparmor.d` and `docker-default`.
pub(crate) const DEFAULT_PROFILE: &str = "hartpod-default";

/// Where AppArmor 3 and later have the features that policies of that version know.
pub(super) const ABI: &str = "/etc/apparmor.d/abi/3.0";

/// Allows in meaning what containerd's default profile does (contrib/apparmor, template.go): everything but mounting, and writing to those parts of
/// /proc and /sys that are the node's. It needs no files of the distribution's policy. `daemon` is what the daemon itself runs under, if anything;
/// with `abi` it means the same whatever the kernel has learnt since.
pub(super) fn text(daemon: Option<&str>, abi: bool) -> String {
    let abi = if abi { "abi <abi/3.0>,\n" } else { "" };
    let daemon = daemon.map(|peer| format!("  signal (receive) peer=\"{peer}\",\n")).unwrap_or_default();
    format!(
        r#"{abi}profile {DEFAULT_PROFILE} flags=(attach_disconnected,mediate_deleted) {{
  capability,
  file,
  network,
  unix,
  umount,

  # Whoever stops it may, and its processes each other.
  signal (receive) peer=unconfined,
{daemon}  signal (send, receive) peer={DEFAULT_PROFILE},
  ptrace (readby, tracedby),
  ptrace (read, trace) peer={DEFAULT_PROFILE},

  deny mount,

  # Of /proc only processes are for writing, and what the pod has of its own: /proc/sys/kernel/shm*.
  deny /proc/* w,
  deny /proc/[^0-9s]*/** w,
  deny /proc/s[^y]*/** w,
  deny /proc/sy[^s]*/** w,
  deny /proc/sys[^/]*/** w,
  deny /proc/sys/[^k]** w,
  deny /proc/sys/kernel/[^s]** w,
  deny /proc/sys/kernel/s[^h]** w,
  deny /proc/sys/kernel/sh[^m]** w,
  deny /proc/{{kcore,kmem,mem,sysrq-trigger}} rwklx,

  # Of /sys only cgroups are.
  deny /sys/[^f]** wklx,
  deny /sys/f[^s]** wklx,
  deny /sys/fs/[^c]** wklx,
  deny /sys/fs/c[^g]** wklx,
  deny /sys/fs/cg[^r]** wklx,
  deny /sys/firmware/** rwklx,
  deny /sys/devices/virtual/powercap/** rwklx,
  deny /sys/kernel/security/** rwklx,
}}
"#
    )
}
