//! What a cgroup has used, as numbers. What this kernel does not count is absent, never 0.

/// Numbers of one cgroup and all below it, read within one pass over its files.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Sample {
    pub cpu: CpuSample,
    pub memory: MemorySample,
    /// Bytes and operations per block device; only of [`Depth::All`](super::Depth::All).
    pub io: Vec<DeviceSample>,
    /// Bytes of huge pages in use, and the most that ever were, by size; only of [`Depth::All`](super::Depth::All).
    pub huge_pages: Vec<HugePageSample>,
    /// Processes and threads.
    pub tasks: Option<u64>,
    /// The most that may be; none without a limit.
    pub tasks_limit: Option<u64>,
    /// Time that tasks waited for a CPU.
    pub cpu_pressure: Option<Pressure>,
    /// Time that tasks waited for memory.
    pub memory_pressure: Option<Pressure>,
    /// Time that tasks waited for block devices.
    pub io_pressure: Option<Pressure>,
}

/// CPU time since the cgroup was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CpuSample {
    /// Nanoseconds, of all CPUs together.
    pub usage_ns: Option<u64>,
    /// Nanoseconds in user mode; on v1 only of [`Depth::All`](super::Depth::All), and in steps of a tick.
    pub user_ns: Option<u64>,
    /// Nanoseconds in the kernel; as `user_ns`.
    pub system_ns: Option<u64>,
    /// Periods of the quota that have passed while there was something to run.
    pub periods: Option<u64>,
    /// Those in which it ran out.
    pub throttled_periods: Option<u64>,
    /// Nanoseconds that tasks waited for the next.
    pub throttled_ns: Option<u64>,
}

/// Memory, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemorySample {
    /// All that is charged, page cache included.
    pub usage: Option<u64>,
    /// Of the page cache what was not used lately: the kernel takes it first.
    pub inactive_file: Option<u64>,
    /// Anonymous memory.
    pub rss: Option<u64>,
    /// Page cache, shared memory included.
    pub cache: Option<u64>,
    /// Of it what is mapped.
    pub mapped_file: Option<u64>,
    /// The kernel's own, on behalf of the tasks.
    pub kernel: Option<u64>,
    /// In swap.
    pub swap: Option<u64>,
    /// The most that `usage` ever was.
    pub peak: Option<u64>,
    /// How often the limit was hit.
    pub limit_hits: Option<u64>,
    /// Page faults, and those that had to wait for a device.
    pub page_faults: Option<u64>,
    pub major_page_faults: Option<u64>,
    /// How many processes the kernel killed for want of memory.
    pub oom_kills: Option<u64>,
    /// The limit that holds, the parents' included on v1; none without one.
    pub limit: Option<u64>,
    /// The limit of swap alone; none without one.
    pub swap_limit: Option<u64>,
}

impl MemorySample {
    /// `usage` without what the kernel would take first, as the kubelet counts it for evictions.
    #[must_use]
    pub fn working_set(&self) -> Option<u64> {
        Some(self.usage?.saturating_sub(self.inactive_file?))
    }

    /// What is left below the limit; none without one.
    #[must_use]
    pub fn available(&self) -> Option<u64> {
        Some(self.limit?.saturating_sub(self.working_set()?))
    }

    /// What of swap is left below its limit; none without one.
    #[must_use]
    pub fn swap_available(&self) -> Option<u64> {
        Some(self.swap_limit?.saturating_sub(self.swap?))
    }
}

/// What one block device did for a cgroup.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DeviceSample {
    pub major: u32,
    pub minor: u32,
    pub read_bytes: u64,
    pub write_bytes: u64,
    pub reads: u64,
    pub writes: u64,
}

/// Huge pages of one size.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HugePageSample {
    /// As the kernel writes it, e.g. 2MB.
    pub size: String,
    /// Bytes.
    pub usage: u64,
    /// Bytes; v1 alone counts it.
    pub peak: Option<u64>,
}

/// Pressure stall information (Documentation/accounting/psi.rst).
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Pressure {
    /// At least one task waited.
    pub some: Stall,
    /// All waited.
    pub full: Option<Stall>,
}

/// Time lost.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Stall {
    /// Microseconds since the cgroup was made.
    pub total_us: u64,
    /// Percent of the last 10, 60 and 300 seconds.
    pub avg10: f64,
    pub avg60: f64,
    pub avg300: f64,
}
