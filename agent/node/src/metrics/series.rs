//! Readings, told as series. What was not counted has no series.

use hartpod_container::cgroup::{DeviceSample, Pressure, Stall};
use hartpod_proto::cri::v1 as cri;

use super::device::{Devices, FileSystem};
use super::family::{self as f, Family};
use crate::stats::{ContainerReading, PodReading, Reading};

/// One value, in the unit that its family's name says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Value {
    Count(u64),
    /// A time, which is told in seconds.
    Nanoseconds(u64),
}

/// Takes the series of one pod or container, as they come: there are thousands, so none is kept on the way.
pub(crate) trait Sink {
    /// `labels` are the family's own.
    fn put(&mut self, family: &'static Family, labels: &[&str], value: Value);
}

/// Gives a sink what is there.
struct Teller<'a, S>(&'a mut S);

impl<S: Sink> Teller<'_, S> {
    fn count(&mut self, family: &'static Family, labels: &[&str], count: Option<u64>) {
        if let Some(count) = count {
            self.0.put(family, labels, Value::Count(count));
        }
    }

    fn nanoseconds(&mut self, family: &'static Family, labels: &[&str], time: Option<u64>) {
        if let Some(time) = time {
            self.0.put(family, labels, Value::Nanoseconds(time));
        }
    }

    /// Of what happened at a moment since the Unix epoch.
    fn moment(&mut self, family: &'static Family, at: i64) {
        self.nanoseconds(family, &[], u64::try_from(at).ok().filter(|at| *at > 0));
    }
}

/// What a container has used.
pub(crate) fn of_container(
    read: &ContainerReading,
    layers: Option<&FileSystem>,
    devices: &mut Devices,
    sink: &mut impl Sink,
) {
    let mut told = Teller(sink);
    if let Some(reading) = &read.reading {
        // A guest's devices have numbers of its own.
        let is_guest = read.target.pod.info.is_guest();
        usage(&mut told, reading, (!is_guest).then_some(devices));
        let container = &read.target.container;
        specification(&mut told, container.resources.as_deref().or_else(|| container.info.resources()));
        let limit = reading.processes.and_then(|p| p.files_limit);
        told.count(&f::ULIMITS, &["max_open_files"], limit);
        told.moment(&f::START_TIME, container.started_at);
    }
    if let Some(layers) = layers {
        let device = [layers.device.as_str()];
        told.count(&f::FS_USAGE, &device, read.disk.map(|disk| disk.bytes));
        told.count(&f::FS_LIMIT, &device, Some(layers.size));
        told.count(&f::FS_INODES, &device, layers.inodes.map(|(all, _)| all));
        told.count(&f::FS_INODES_FREE, &device, layers.inodes.map(|(_, free)| free));
    }
}

/// What a pod has used as a whole: on this host, agent or VMM included.
pub(crate) fn of_pod(read: &PodReading, devices: &mut Devices, sink: &mut impl Sink) {
    let mut told = Teller(sink);
    if let Some(reading) = &read.reading {
        usage(&mut told, reading, Some(devices));
        told.moment(&f::START_TIME, read.pod.info.created_at);
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
}

fn usage(told: &mut Teller<'_, impl Sink>, reading: &Reading, devices: Option<&mut Devices>) {
    let sample = &reading.sample;
    let (cpu, memory) = (&sample.cpu, &sample.memory);
    told.count(&f::CPU_PERIODS, &[], cpu.periods);
    told.count(&f::CPU_THROTTLED_PERIODS, &[], cpu.throttled_periods);
    told.nanoseconds(&f::CPU_THROTTLED, &[], cpu.throttled_ns);
    told.nanoseconds(&f::CPU_SYSTEM, &[], cpu.system_ns);
    told.nanoseconds(&f::CPU_USER, &[], cpu.user_ns);
    told.nanoseconds(&f::CPU_USAGE, &["total"], cpu.usage_ns);

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
        match names.as_mut() {
            Some(names) => block_device(told, device, names.name(device.major, device.minor)),
            None => block_device(told, device, &format!("{}:{}", device.major, device.minor)),
        }
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
    told.moment(&f::LAST_SEEN, reading.at);
}

fn block_device(told: &mut Teller<'_, impl Sink>, device: &DeviceSample, name: &str) {
    told.count(&f::FS_READ_BYTES, &[name], Some(device.read_bytes));
    told.count(&f::FS_READS, &[name], Some(device.reads));
    told.count(&f::FS_WRITTEN_BYTES, &[name], Some(device.write_bytes));
    told.count(&f::FS_WRITES, &[name], Some(device.writes));
    let (major, minor) = (device.major.to_string(), device.minor.to_string());
    told.count(&f::BLKIO, &[name, &major, &minor, "Read"], Some(device.read_bytes));
    told.count(&f::BLKIO, &[name, &major, &minor, "Write"], Some(device.write_bytes));
}

fn pressure(
    told: &mut Teller<'_, impl Sink>,
    (waiting, stalled): (&'static Family, &'static Family),
    pressure: Option<Pressure>,
) {
    let nanoseconds = |stall: Stall| stall.total_us.saturating_mul(1000);
    told.nanoseconds(waiting, &[], pressure.map(|p| nanoseconds(p.some)));
    told.nanoseconds(stalled, &[], pressure.and_then(|p| p.full).map(nanoseconds));
}

/// What was asked for, as cAdvisor has it: 0 is no limit, and what the kernel has of itself where nothing was said.
fn specification(told: &mut Teller<'_, impl Sink>, resources: Option<&cri::LinuxContainerResources>) {
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
