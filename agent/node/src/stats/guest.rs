//! What a guest tells of what its containers use. It may tell anything: it is told on as the guest's word, and bounded.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use hartpod_container::cgroup::{
    CpuSample, Depth, DeviceSample, HugePageSample, MemorySample, Pressure, ProcessSample, Sample, Stall,
};
use hartpod_container::net_dev::{Interface, Traffic};
use hartpod_proto::pod::v1 as pod;
use tokio::task::JoinSet;

use super::book::Processes;
use super::{Reading, Target};
use crate::node::Node;
use crate::pod::{INTERFACE, PodSnapshot};

/// For a guest to answer; who asks for numbers does not wait for one that hangs.
const ANSWER: Duration = Duration::from_secs(1);
/// Block devices, sizes of huge pages and interfaces of one pod or container that are told on.
pub(super) const MOST: usize = 32;

/// What guests said just now.
#[derive(Debug, Default)]
pub(super) struct Words(BTreeMap<String, Word>);

/// What one said.
#[derive(Debug)]
pub(super) struct Word {
    containers: BTreeMap<String, Reading>,
    /// Of all its containers together.
    pub(super) pod: Option<Sample>,
    pub(super) interfaces: Vec<Interface>,
}

impl Words {
    /// Asks the guests among these pods, all at once.
    pub(super) async fn ask(
        node: &Arc<Node>,
        pods: impl Iterator<Item = &Arc<PodSnapshot>>,
        depth: Depth,
    ) -> Self {
        let guests: BTreeMap<_, _> = pods
            .filter(|pod| pod.info.is_guest())
            .map(|pod| (pod.info.id.to_string(), pod.clone()))
            .collect();
        let mut asked = JoinSet::new();
        for (id, pod) in guests {
            let Some(agent) = pod.agent.clone().filter(|agent| agent.process.is_alive()) else { continue };
            let node = node.clone();
            asked.spawn(async move {
                let said = tokio::time::timeout(ANSWER, agent.client.stats(asked_depth(depth))).await;
                let said = said
                    .ok()?
                    .inspect_err(|error| tracing::debug!(%error, sandbox = id, "no numbers"))
                    .ok()?;
                Some((id, Word::new(&node, &pod, said)))
            });
        }
        Self(asked.join_all().await.into_iter().flatten().collect())
    }

    pub(super) fn get(&self, pod: &PodSnapshot) -> Option<&Word> {
        self.0.get(pod.info.id.as_str())
    }

    pub(super) fn of(&self, target: &Target) -> Option<Reading> {
        self.get(&target.pod)?.containers.get(target.container.info.id.as_str()).cloned()
    }
}

impl Word {
    /// Containers that the daemon does not know of are left out.
    fn new(node: &Node, pod: &Arc<PodSnapshot>, said: pod::StatsResponse) -> Self {
        let mut told: BTreeMap<_, _> =
            said.containers.into_iter().map(|mut c| (std::mem::take(&mut c.container_id), c)).collect();
        let containers = Target::all_of(pod).filter_map(|target| {
            let id = target.container.info.id.to_string();
            let told = told.remove(&id)?;
            let processes = processes(&told);
            let entry = target.entry(node);
            let mut sample = sample(told.sample.unwrap_or_default());
            sample.io.retain(|device| entry.knows_device((device.major, device.minor), MOST));
            let reading = entry.take_and_keep(sample, processes, target.began_at());
            Some((id, reading))
        });
        let containers = containers.collect();
        Self { containers, pod: said.pod.map(sample), interfaces: interfaces(said.interfaces) }
    }
}

/// At least what is kept for when the guest does not answer.
fn asked_depth(depth: Depth) -> pod::stats_request::Depth {
    match depth {
        Depth::Cpu | Depth::Usage | Depth::Stats => pod::stats_request::Depth::Stats,
        Depth::All => pod::stats_request::Depth::All,
    }
}

fn processes(told: &pod::ContainerStats) -> Option<Processes> {
    let counts = ProcessSample { processes: told.processes?, files: told.files, sockets: told.sockets };
    Some(Processes { counts, files_limit: told.files_limit })
}

fn sample(told: pod::Sample) -> Sample {
    Sample {
        cpu: CpuSample {
            usage_ns: told.cpu_usage_ns,
            user_ns: told.cpu_user_ns,
            system_ns: told.cpu_system_ns,
            periods: told.cpu_periods,
            throttled_periods: told.cpu_throttled_periods,
            throttled_ns: told.cpu_throttled_ns,
        },
        memory: MemorySample {
            usage: told.memory_usage,
            inactive_file: told.memory_inactive_file,
            rss: told.memory_rss,
            cache: told.memory_cache,
            mapped_file: told.memory_mapped_file,
            kernel: told.memory_kernel,
            swap: told.memory_swap,
            peak: told.memory_peak,
            limit_hits: told.memory_limit_hits,
            page_faults: told.memory_page_faults,
            major_page_faults: told.memory_major_page_faults,
            oom_kills: told.memory_oom_kills,
            limit: told.memory_limit,
            swap_limit: told.memory_swap_limit,
        },
        io: first_of_each(told.io, |d| (d.major, d.minor)).map(device).collect(),
        huge_pages: first_of_each(told.huge_pages, |h| h.size.clone())
            .filter(|h| is_size(&h.size))
            .map(huge_pages)
            .collect(),
        tasks: told.tasks,
        tasks_limit: told.tasks_limit,
        cpu_pressure: told.cpu_pressure.and_then(pressure),
        memory_pressure: told.memory_pressure.and_then(pressure),
        io_pressure: told.io_pressure.and_then(pressure),
    }
}

fn interfaces(told: Vec<pod::InterfaceStats>) -> Vec<Interface> {
    let interface = |told: pod::InterfaceStats| Interface {
        name: told.name,
        receive: Traffic {
            bytes: told.rx_bytes,
            packets: told.rx_packets,
            errors: told.rx_errors,
            dropped: told.rx_dropped,
        },
        transmit: Traffic {
            bytes: told.tx_bytes,
            packets: told.tx_packets,
            errors: told.tx_errors,
            dropped: told.tx_dropped,
        },
    };
    // A guest has the one that the daemon gave it. What a container makes besides has names of its choice.
    told.into_iter().find(|i| i.name == INTERFACE).map(interface).into_iter().collect()
}

/// Not too many, and none twice: the same series with two values would spoil a whole scrape.
fn first_of_each<T, K: Ord>(told: Vec<T>, key: impl Fn(&T) -> K) -> impl Iterator<Item = T> {
    let mut seen = BTreeSet::new();
    told.into_iter().take(MOST).filter(move |one| seen.insert(key(one)))
}

/// A size of huge pages as the kernel writes it (hugetlb_cgroup's mem_fmt): a power of two below 1024, so that there are few.
fn is_size(text: &str) -> bool {
    let number = ["KB", "MB", "GB"].iter().find_map(|unit| text.strip_suffix(unit));
    let is_size = |number: &str| number.parse().is_ok_and(|n: u16| n < 1024 && n.is_power_of_two());
    number.is_some_and(|number| !number.starts_with(['0', '+']) && is_size(number))
}

fn device(told: pod::DeviceStats) -> DeviceSample {
    let pod::DeviceStats { major, minor, read_bytes, write_bytes, reads, writes } = told;
    DeviceSample { major, minor, read_bytes, write_bytes, reads, writes }
}

fn huge_pages(told: pod::HugePageStats) -> HugePageSample {
    HugePageSample { size: told.size, usage: told.usage, peak: told.peak }
}

fn pressure(told: pod::Pressure) -> Option<Pressure> {
    Some(Pressure { some: stall(told.some?), full: told.full.map(stall) })
}

fn stall(told: pod::Stall) -> Stall {
    let finite = |percent: f64| if percent.is_finite() { percent.clamp(0.0, 100.0) } else { 0.0 };
    Stall {
        total_us: told.total_us,
        avg10: finite(told.avg10),
        avg60: finite(told.avg60),
        avg300: finite(told.avg300),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_guest_says_is_bounded() {
        let names = ["", "eth0", "a\nb", "x y", "eth0", "eth1"];
        let told =
            names.map(|name| pod::InterfaceStats { name: name.into(), rx_bytes: 1, ..Default::default() });
        let kept = interfaces(told.to_vec());
        assert_eq!(kept.iter().map(|i| i.name.as_str()).collect::<Vec<_>>(), ["eth0"]);
        let device = |minor| pod::DeviceStats { minor, ..Default::default() };
        let many: Vec<_> = std::iter::repeat_n(device(7), 2).chain((0..1000).map(device)).collect();
        let stalled = pod::Stall { avg10: f64::NAN, avg60: 1e300, ..Default::default() };
        let told = pod::Sample {
            io: many,
            cpu_pressure: Some(pod::Pressure { some: Some(stalled), full: None }),
            memory_pressure: Some(pod::Pressure::default()),
            ..Default::default()
        };
        let kept = sample(told);
        assert!(["2MB", "1GB", "512KB"].into_iter().all(is_size));
        for size in ["", "KB", "2mb", "2 MB", "3MB", "02MB", "+2MB", "1024MB", "65536MB", "2MB\"}"] {
            assert!(!is_size(size), "{size}");
        }
        let minors: Vec<_> = kept.io.iter().map(|d| d.minor).collect();
        assert_eq!(minors[..3], [7, 0, 1]);
        assert_eq!(minors.iter().filter(|minor| **minor == 7).count(), 1, "none twice");
        assert!(minors.len() <= MOST);
        let some = kept.cpu_pressure.unwrap().some;
        assert_eq!((some.avg10, some.avg60), (0.0, 100.0));
        assert_eq!(kept.memory_pressure, None);
    }
}
