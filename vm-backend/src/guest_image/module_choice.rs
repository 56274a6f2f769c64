//! Which modules a guest gets: those that it boots with, and those that it may ask for.

/// Loaded before the agent says that it is ready: without them nobody can talk to it.
pub(super) const EARLY: [&str; 2] = ["virtio_mmio", "vmw_vsock_virtio_transport"];

/// Loaded while the host goes on: a container's disk (block device, layers, overlay, scratch), the pod's network, the balloon.
pub(super) const LATE: [&str; 6] = ["virtio_blk", "erofs", "ext4", "overlay", "virtio_net", "virtio_balloon"];

/// Folders of modules that a guest may load on demand: what network set-up inside a pod needs (iptables, nftables, ipvs, tunnels,
/// traffic control), and nothing that drives hardware or parses what an outsider made (file systems of images, odd protocols).
const FOLDERS: [&str; 9] = [
    "kernel/net/netfilter/",
    "kernel/net/ipv4/netfilter/",
    "kernel/net/ipv6/netfilter/",
    "kernel/net/bridge/",
    "kernel/net/8021q/",
    "kernel/net/802/",
    "kernel/net/sched/",
    "kernel/net/xfrm/",
    "kernel/drivers/net/wireguard/",
];

/// Modules outside of those folders that a guest may load on demand, by name.
const NAMES: [&str; 35] = [
    // Volumes.
    "virtiofs",
    // Devices of VPNs, overlays and meshes.
    "tun",
    "tap",
    "veth",
    "dummy",
    "bridge",
    "macvlan",
    "macvtap",
    "ipvlan",
    "ipvtap",
    "vxlan",
    "geneve",
    "ifb",
    "vrf",
    "bareudp",
    "nlmon",
    // Tunnels.
    "ip_tunnel",
    "ip6_tunnel",
    "tunnel4",
    "tunnel6",
    "ipip",
    "sit",
    "ip_gre",
    "ip6_gre",
    "gre",
    "udp_tunnel",
    "ip6_udp_tunnel",
    "fou",
    "fou6",
    // Diagnosis by ss(8), and congestion control.
    "inet_diag",
    "tcp_diag",
    "udp_diag",
    "unix_diag",
    "tcp_bbr",
    // Its file systems live in /proc and /sys only.
    "configfs",
];

/// Whether a guest may load the module in this file, named below /lib/modules/<release>. What it needs comes along.
pub(super) fn on_demand(path: &str) -> bool {
    FOLDERS.iter().any(|folder| path.starts_with(folder))
        || NAMES.contains(&super::module_tree::name_of(path).as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn networks_may_be_set_up_and_disks_of_strangers_not_be_mounted() {
        for path in [
            "kernel/net/netfilter/xt_conntrack.ko.xz",
            "kernel/net/ipv6/netfilter/ip6_tables.ko.xz",
            "kernel/drivers/net/tun.ko.xz",
            "kernel/drivers/net/wireguard/wireguard.ko",
        ] {
            assert!(on_demand(path), "{path}");
        }
        for path in ["kernel/fs/ntfs3/ntfs3.ko", "kernel/net/dccp/dccp.ko.xz", "kernel/drivers/net/tuner.ko"]
        {
            assert!(!on_demand(path), "{path}");
        }
    }
}
