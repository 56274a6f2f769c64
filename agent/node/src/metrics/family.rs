//! The families: name, kind and labels of what is told.

use super::labels::COMMON_LABELS;

/// Whether a value only grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Until the container's restart.
    Counter,
    Gauge,
}

/// One family of series.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Family {
    pub(crate) name: &'static str,
    pub(crate) help: &'static str,
    pub(crate) kind: Kind,
    /// Besides [`COMMON_LABELS`].
    pub(crate) labels: &'static [&'static str],
    /// Its place among [`FAMILIES`].
    pub(super) place: usize,
}

impl Family {
    /// All labels.
    pub(crate) fn label_keys(&self) -> impl Iterator<Item = &'static str> {
        COMMON_LABELS.into_iter().chain(self.labels.iter().copied())
    }
}

macro_rules! families {
    ($($id:ident = $kind:ident $name:literal [$($label:literal),*] $help:literal;)*) => {
        /// What counts the families.
        #[allow(non_camel_case_types, clippy::upper_case_acronyms)]
        enum Place { $($id),* }

        $(pub(crate) static $id: Family =
            Family { name: $name, help: $help, kind: Kind::$kind, labels: &[$($label),*], place: Place::$id as usize };)*

        /// All of them, by name.
        pub(crate) static FAMILIES: &[&Family] = &[$(&$id),*];
    };
}

families! {
    BLKIO = Counter "container_blkio_device_usage_total" ["device", "major", "minor", "operation"]
        "Bytes read from and written to a block device.";
    CPU_PERIODS = Counter "container_cpu_cfs_periods_total" [] "Periods of the CPU quota that have passed.";
    CPU_THROTTLED_PERIODS = Counter "container_cpu_cfs_throttled_periods_total" []
        "Periods in which the CPU quota ran out.";
    CPU_THROTTLED = Counter "container_cpu_cfs_throttled_seconds_total" []
        "Time that tasks waited for the next period of the CPU quota.";
    CPU_SYSTEM = Counter "container_cpu_system_seconds_total" [] "CPU time in the kernel.";
    CPU_USAGE = Counter "container_cpu_usage_seconds_total" ["cpu"] "CPU time, of all CPUs together.";
    CPU_USER = Counter "container_cpu_user_seconds_total" [] "CPU time in user mode.";
    FILES = Gauge "container_file_descriptors" [] "Open files of all processes.";
    FS_INODES_FREE = Gauge "container_fs_inodes_free" ["device"]
        "Free inodes of the file system that the writable layer is on.";
    FS_INODES = Gauge "container_fs_inodes_total" ["device"]
        "Inodes of the file system that the writable layer is on.";
    FS_LIMIT = Gauge "container_fs_limit_bytes" ["device"]
        "Size of the file system that the writable layer is on.";
    FS_READ_BYTES = Counter "container_fs_reads_bytes_total" ["device"] "Bytes read.";
    FS_READS = Counter "container_fs_reads_total" ["device"] "Reads completed.";
    FS_USAGE = Gauge "container_fs_usage_bytes" ["device"] "Bytes of the writable layer.";
    FS_WRITTEN_BYTES = Counter "container_fs_writes_bytes_total" ["device"] "Bytes written.";
    FS_WRITES = Counter "container_fs_writes_total" ["device"] "Writes completed.";
    HUGE_PAGES_PEAK = Gauge "container_hugetlb_max_usage_bytes" ["pagesize"] "The most bytes of huge pages ever in use.";
    HUGE_PAGES = Gauge "container_hugetlb_usage_bytes" ["pagesize"] "Bytes of huge pages in use.";
    LAST_SEEN = Gauge "container_last_seen" [] "When the numbers were read, since the Unix epoch.";
    MEMORY_CACHE = Gauge "container_memory_cache" [] "Bytes of page cache.";
    MEMORY_LIMIT_HITS = Counter "container_memory_failcnt" [] "How often the memory limit was hit.";
    MEMORY_FAULTS = Counter "container_memory_failures_total" ["failure_type", "scope"] "Page faults.";
    MEMORY_KERNEL = Gauge "container_memory_kernel_usage" [] "Bytes of the kernel's own memory.";
    MEMORY_MAPPED = Gauge "container_memory_mapped_file" [] "Bytes of mapped files.";
    MEMORY_PEAK = Gauge "container_memory_max_usage_bytes" [] "The most memory ever in use, in bytes.";
    MEMORY_RSS = Gauge "container_memory_rss" [] "Bytes of anonymous memory.";
    MEMORY_SWAP = Gauge "container_memory_swap" [] "Bytes in swap.";
    MEMORY_USAGE = Gauge "container_memory_usage_bytes" [] "Memory in use, page cache included, in bytes.";
    MEMORY_WORKING_SET = Gauge "container_memory_working_set_bytes" []
        "Memory in use without page cache that was not used lately, in bytes.";
    NET_RX_BYTES = Counter "container_network_receive_bytes_total" ["interface"] "Bytes received.";
    NET_RX_ERRORS = Counter "container_network_receive_errors_total" ["interface"] "Errors while receiving.";
    NET_RX_DROPPED = Counter "container_network_receive_packets_dropped_total" ["interface"]
        "Packets dropped while receiving.";
    NET_RX_PACKETS = Counter "container_network_receive_packets_total" ["interface"] "Packets received.";
    NET_TX_BYTES = Counter "container_network_transmit_bytes_total" ["interface"] "Bytes sent.";
    NET_TX_ERRORS = Counter "container_network_transmit_errors_total" ["interface"] "Errors while sending.";
    NET_TX_DROPPED = Counter "container_network_transmit_packets_dropped_total" ["interface"]
        "Packets dropped while sending.";
    NET_TX_PACKETS = Counter "container_network_transmit_packets_total" ["interface"] "Packets sent.";
    OOM = Counter "container_oom_events_total" [] "Processes that the kernel killed for want of memory.";
    CPU_STALLED = Counter "container_pressure_cpu_stalled_seconds_total" [] "Time that all tasks waited for a CPU.";
    CPU_WAITING = Counter "container_pressure_cpu_waiting_seconds_total" [] "Time that some task waited for a CPU.";
    IO_STALLED = Counter "container_pressure_io_stalled_seconds_total" [] "Time that all tasks waited for devices.";
    IO_WAITING = Counter "container_pressure_io_waiting_seconds_total" [] "Time that some task waited for devices.";
    MEMORY_STALLED = Counter "container_pressure_memory_stalled_seconds_total" []
        "Time that all tasks waited for memory.";
    MEMORY_WAITING = Counter "container_pressure_memory_waiting_seconds_total" []
        "Time that some task waited for memory.";
    PROCESSES = Gauge "container_processes" [] "Processes.";
    SOCKETS = Gauge "container_sockets" [] "Open sockets of all processes.";
    SPEC_CPU_PERIOD = Gauge "container_spec_cpu_period" [] "Period of the CPU quota in microseconds.";
    SPEC_CPU_QUOTA = Gauge "container_spec_cpu_quota" [] "CPU quota in microseconds per period.";
    SPEC_CPU_SHARES = Gauge "container_spec_cpu_shares" [] "Share of the CPUs, of 1024 for each of others.";
    SPEC_MEMORY_LIMIT = Gauge "container_spec_memory_limit_bytes" [] "Memory limit; 0 is none.";
    SPEC_MEMORY_RESERVATION = Gauge "container_spec_memory_reservation_limit_bytes" []
        "Memory that is protected from being reclaimed; 0 is none.";
    SPEC_MEMORY_SWAP = Gauge "container_spec_memory_swap_limit_bytes" [] "Limit of memory and swap; 0 is none.";
    START_TIME = Gauge "container_start_time_seconds" [] "When it started, since the Unix epoch.";
    THREADS = Gauge "container_threads" [] "Processes and threads.";
    THREADS_MAX = Gauge "container_threads_max" [] "The most processes and threads that may be; 0 is no limit.";
    ULIMITS = Gauge "container_ulimits_soft" ["ulimit"] "Soft limits of the first process.";
}

#[cfg(test)]
mod tests {
    use super::*;

    /// shared with the kubelet: what `/metrics/cadvisor` has to have (KEP-2371).
    const NAMES: &str = include_str!("names.txt");

    #[test]
    fn every_name_that_the_kubelet_wants_has_a_family_and_no_other() {
        let families: Vec<_> = FAMILIES.iter().map(|f| f.name).collect();
        assert_eq!(families, NAMES.lines().collect::<Vec<_>>());
    }

    #[test]
    fn every_family_knows_its_place() {
        assert!(FAMILIES.iter().enumerate().all(|(place, family)| family.place == place));
    }

    #[test]
    fn counters_are_named_as_counters() {
        for family in FAMILIES {
            let is_total = family.name.ends_with("_total") || family.name == "container_memory_failcnt";
            let is_counter = family.kind == Kind::Counter;
            let exempt = ["container_fs_inodes_total"].contains(&family.name);
            assert!(exempt || is_counter == is_total, "{}", family.name);
        }
    }
}
