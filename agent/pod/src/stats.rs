//! A cgroup's numbers as pod/v1 tells them.

use hartpod_container::cgroup::{self, Depth};
use hartpod_proto::pod::v1::{DeviceStats, HugePageStats, Pressure, Sample, Stall, stats_request};

pub(crate) fn depth(asked: stats_request::Depth) -> Depth {
    match asked {
        stats_request::Depth::Cpu => Depth::Cpu,
        stats_request::Depth::Stats => Depth::Stats,
        stats_request::Depth::All => Depth::All,
    }
}

pub(crate) fn message(sample: cgroup::Sample) -> Sample {
    let cgroup::Sample {
        cpu,
        memory,
        io,
        huge_pages,
        tasks,
        tasks_limit,
        cpu_pressure,
        memory_pressure,
        io_pressure,
    } = sample;
    Sample {
        cpu_usage_ns: cpu.usage_ns,
        cpu_user_ns: cpu.user_ns,
        cpu_system_ns: cpu.system_ns,
        cpu_periods: cpu.periods,
        cpu_throttled_periods: cpu.throttled_periods,
        cpu_throttled_ns: cpu.throttled_ns,
        memory_usage: memory.usage,
        memory_inactive_file: memory.inactive_file,
        memory_rss: memory.rss,
        memory_cache: memory.cache,
        memory_mapped_file: memory.mapped_file,
        memory_kernel: memory.kernel,
        memory_swap: memory.swap,
        memory_peak: memory.peak,
        memory_limit: memory.limit,
        memory_swap_limit: memory.swap_limit,
        memory_limit_hits: memory.limit_hits,
        memory_page_faults: memory.page_faults,
        memory_major_page_faults: memory.major_page_faults,
        memory_oom_kills: memory.oom_kills,
        tasks,
        tasks_limit,
        cpu_pressure: cpu_pressure.map(pressure),
        memory_pressure: memory_pressure.map(pressure),
        io_pressure: io_pressure.map(pressure),
        io: io.into_iter().map(device).collect(),
        huge_pages: huge_pages
            .into_iter()
            .map(|h| HugePageStats { size: h.size, usage: h.usage, peak: h.peak })
            .collect(),
    }
}

fn device(device: cgroup::DeviceSample) -> DeviceStats {
    let cgroup::DeviceSample { major, minor, read_bytes, write_bytes, reads, writes } = device;
    DeviceStats { major, minor, read_bytes, write_bytes, reads, writes }
}

fn pressure(pressure: cgroup::Pressure) -> Pressure {
    Pressure { some: Some(stall(pressure.some)), full: pressure.full.map(stall) }
}

fn stall(stall: cgroup::Stall) -> Stall {
    let cgroup::Stall { total_us, avg10, avg60, avg300 } = stall;
    Stall { total_us, avg10, avg60, avg300 }
}
