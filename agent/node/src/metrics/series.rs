//! Readings, told as series. What was not counted has no series.

use hartpod_container::cgroup::{DeviceSample, Pressure};
use hartpod_proto::cri::v1 as cri;

use super::device::{Devices, FileSystem};
use super::family::{self as f, Family};
use crate::stats::{ContainerReading, PodReading, Reading};

/// One value.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Series {
    pub(crate) family: &'static Family,
    /// Of the family's own labels.
    pub(crate) labels: Vec<String>,
    /// In the unit that the name says; times are in seconds.
    pub(crate) value: f64,
}

/// Nanoseconds, microseconds and seconds.
const NANO: f64 = 1e-9;
const MICRO: f64 = 1e-6;

#[derive(Debug, Default)]
struct Told(Vec<Series>);

impl Told {
    fn value(&mut self, family: &'static Family, labels: &[&str], value: Option<f64>) {
        if let Some(value) = value {
            let labels = labels.iter().map(|l| (*l).to_owned()).collect();
            self.0.push(Series { family, labels, value });
        }
    }

    // Counters beyond 2^53 lose their last digits, as in every client of Prometheus.
    #[allow(clippy::cast_precision_loss)]
    fn count(&mut self, family: &'static Family, labels: &[&str], count: Option<u64>) {
        self.value(family, labels, count.map(|count| count as f64));
    }

    #[allow(clippy::cast_precision_loss)]
    fn time(&mut self, family: &'static Family, time: Option<u64>, unit: f64) {
        self.value(family, &[], time.map(|time| time as f64 * unit));
    }
}

/// What a container has used.
pub(crate) fn of_container(
    read: &ContainerReading,
    layers: Option<&FileSystem>,
    devices: &mut Devices,
) -> Vec<Series> {
    let mut told = Told::default();
    if let Some(reading) = &read.reading {
        // A guest's devices have numbers of its own.
        let is_guest = read.target.pod.info.is_guest();
        usage(&mut told, reading, (!is_guest).then_some(devices));
        let container = &read.target.container;
        specification(&mut told, container.resources.as_deref().or_else(|| container.info.resources()));
        let limit = reading.processes.and_then(|p| p.files_limit);
        told.count(&f::ULIMITS, &["max_open_files"], limit);
        told.time(
            &f::START_TIME,
            u64::try_from(read.target.container.started_at).ok().filter(|at| *at > 0),
            NANO,
        );
    }
    if let Some(layers) = layers {
        let device = [layers.device.as_str()];
        told.count(&f::FS_USAGE, &device, read.disk.map(|disk| disk.bytes));
        told.count(&f::FS_LIMIT, &device, Some(layers.size));
        told.count(&f::FS_INODES, &device, layers.inodes.map(|(all, _)| all));
        told.count(&f::FS_INODES_FREE, &device, layers.inodes.map(|(_, free)| free));
    }
    told.0
}

/// What a pod has used as a whole: on this host, agent or VMM included.
pub(crate) fn of_pod(read: &PodReading, devices: &mut Devices) -> Vec<Series> {
    let mut told = Told::default();
    if let Some(reading) = &read.reading {
        usage(&mut told, reading, Some(devices));
        told.time(&f::START_TIME, u64::try_from(read.pod.info.created_at).ok(), NANO);
    }
    for interface in read.interfaces.iter().flatten() {
        let name = [interface.name.as_str()];
        let (receive, transmit) = (&interface.receive, &interface.transmit);
        told.count(&f::NET_RX_BYTES, &name, Some(receive.bytes));
        told.count(&f::NET_RX_PACKETS, &name, Some(receive.packets));
        told.count(&f::NET_RX_ERRORS, &name, Some(receive.errors));
        told.count(&f::NET_RX_DROPPED, &name, Some(receive.dropped));
        told.count(&f::NET_TX_BYTES, &name, Some(transmit.bytes));
        told.count(&f::NET_TX_PACKETS, &name, Some(transmit.packets));
        told.count(&f::NET_TX_ERRORS, &name, Some(transmit.errors));
        told.count(&f::NET_TX_DROPPED, &name, Some(transmit.dropped));
    }
    told.0
}

fn usage(told: &mut Told, reading: &Reading, devices: Option<&mut Devices>) {
    let sample = &reading.sample;
    let (cpu, memory) = (&sample.cpu, &sample.memory);
    told.count(&f::CPU_PERIODS, &[], cpu.periods);
    told.count(&f::CPU_THROTTLED_PERIODS, &[], cpu.throttled_periods);
    told.time(&f::CPU_THROTTLED, cpu.throttled_ns, NANO);
    told.time(&f::CPU_SYSTEM, cpu.system_ns, NANO);
    told.time(&f::CPU_USER, cpu.user_ns, NANO);
    #[allow(clippy::cast_precision_loss)]
    told.value(&f::CPU_USAGE, &["total"], cpu.usage_ns.map(|ns| ns as f64 * NANO));

    told.count(&f::MEMORY_CACHE, &[], memory.cache);
    told.count(&f::MEMORY_LIMIT_HITS, &[], memory.limit_hits);
    told.count(&f::MEMORY_KERNEL, &[], memory.kernel);
    told.count(&f::MEMORY_MAPPED, &[], memory.mapped_file);
    told.count(&f::MEMORY_PEAK, &[], memory.peak);
    told.count(&f::MEMORY_RSS, &[], memory.rss);
    told.count(&f::MEMORY_SWAP, &[], memory.swap);
    told.count(&f::MEMORY_USAGE, &[], memory.usage);
    told.count(&f::MEMORY_WORKING_SET, &[], memory.working_set());
    // cAdvisor's scopes: the cgroup's own, and with those below; the kernel tells the second.
    for scope in ["container", "hierarchy"] {
        told.count(&f::MEMORY_FAULTS, &["pgfault", scope], memory.page_faults);
        told.count(&f::MEMORY_FAULTS, &["pgmajfault", scope], memory.major_page_faults);
    }
    told.count(&f::OOM, &[], memory.oom_kills);

    let mut names = devices;
    for device in &sample.io {
        let numbers = format!("{}:{}", device.major, device.minor);
        let name = names.as_mut().map_or(numbers, |n| n.name(device.major, device.minor).to_owned());
        block_device(told, device, &name);
    }
    for pages in &sample.huge_pages {
        told.count(&f::HUGE_PAGES, &[&pages.size], Some(pages.usage));
        told.count(&f::HUGE_PAGES_PEAK, &[&pages.size], pages.peak);
    }
    pressure(told, (&f::CPU_WAITING, &f::CPU_STALLED), sample.cpu_pressure);
    pressure(told, (&f::MEMORY_WAITING, &f::MEMORY_STALLED), sample.memory_pressure);
    pressure(told, (&f::IO_WAITING, &f::IO_STALLED), sample.io_pressure);

    told.count(&f::THREADS, &[], sample.tasks);
    told.count(&f::THREADS_MAX, &[], sample.tasks.and(sample.tasks_limit.or(Some(0))));
    let counts = reading.processes.map(|p| p.counts);
    told.count(&f::PROCESSES, &[], counts.map(|c| c.processes));
    told.count(&f::FILES, &[], counts.and_then(|c| c.files));
    told.count(&f::SOCKETS, &[], counts.and_then(|c| c.sockets));
    told.time(&f::LAST_SEEN, u64::try_from(reading.at).ok(), NANO);
}

fn block_device(told: &mut Told, device: &DeviceSample, name: &str) {
    told.count(&f::FS_READ_BYTES, &[name], Some(device.read_bytes));
    told.count(&f::FS_READS, &[name], Some(device.reads));
    told.count(&f::FS_WRITTEN_BYTES, &[name], Some(device.write_bytes));
    told.count(&f::FS_WRITES, &[name], Some(device.writes));
    let (major, minor) = (device.major.to_string(), device.minor.to_string());
    told.count(&f::BLKIO, &[name, &major, &minor, "Read"], Some(device.read_bytes));
    told.count(&f::BLKIO, &[name, &major, &minor, "Write"], Some(device.write_bytes));
}

fn pressure(told: &mut Told, families: (&'static Family, &'static Family), pressure: Option<Pressure>) {
    told.time(families.0, pressure.map(|p| p.some.total_us), MICRO);
    told.time(families.1, pressure.and_then(|p| p.full).map(|full| full.total_us), MICRO);
}

/// What was asked for, as cAdvisor has it: 0 is no limit, and what the kernel has of itself where nothing was said.
fn specification(told: &mut Told, resources: Option<&cri::LinuxContainerResources>) {
    const SHARES: i64 = 1024;
    const PERIOD: i64 = 100_000;
    let none = cri::LinuxContainerResources::default();
    let asked = resources.unwrap_or(&none);
    let or = |value: i64, default: i64| u64::try_from(if value > 0 { value } else { default }).ok();
    told.count(&f::SPEC_CPU_PERIOD, &[], or(asked.cpu_period, PERIOD));
    told.count(&f::SPEC_CPU_QUOTA, &[], u64::try_from(asked.cpu_quota).ok().filter(|quota| *quota > 0));
    told.count(&f::SPEC_CPU_SHARES, &[], or(asked.cpu_shares, SHARES));
    told.count(&f::SPEC_MEMORY_LIMIT, &[], or(asked.memory_limit_in_bytes, 0));
    let protected =
        ["memory.low", "memory.min"].iter().filter_map(|key| asked.unified.get(*key)?.parse().ok()).max();
    told.count(&f::SPEC_MEMORY_RESERVATION, &[], protected.or(Some(0)));
    told.count(&f::SPEC_MEMORY_SWAP, &[], or(asked.memory_swap_limit_in_bytes, 0));
}
