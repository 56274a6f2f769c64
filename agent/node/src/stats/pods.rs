//! Numbers of many pods at once.

use std::sync::Arc;

use hartpod_container::cgroup::{CpuSample, Depth, MemorySample, Sample};
use hartpod_container::net_dev::{self, Interface};

use super::collect::read_blocking as read_containers_blocking;
use super::guest::Words;
use super::{ContainerReading, Reading, Target};
use crate::node::Node;
use crate::pod::{PodInfo, PodSnapshot, own_leaf};

/// What a pod uses.
#[derive(Debug)]
pub(crate) struct PodReading {
    pub(crate) pod: Arc<PodSnapshot>,
    /// On this host, its agent or VMM included. None of one that has stopped.
    pub(crate) reading: Option<Reading>,
    /// What its agent or VMM uses on this host; only of [`Depth::All`].
    pub(crate) own: Option<Sample>,
    /// What its workload uses as the guest counts it; none of a pod on this host.
    pub(crate) inside: Option<Sample>,
    /// Processes and threads of its workload: in a guest those that are inside.
    pub(crate) tasks: Option<u64>,
    /// Of its own network, without `lo`; none with the node's.
    pub(crate) interfaces: Option<Vec<Interface>>,
    pub(crate) containers: Vec<ContainerReading>,
}

/// Reads the numbers of these pods, in their order, and of all their containers.
pub(crate) async fn pods(node: &Arc<Node>, pods: Vec<Arc<PodSnapshot>>, depth: Depth) -> Vec<PodReading> {
    let words = Words::ask(node, pods.iter(), depth).await;
    let node = node.clone();
    let read = tokio::task::spawn_blocking(move || {
        pods.into_iter().map(|pod| read_blocking(&node, pod, &words, depth)).collect()
    });
    read.await.unwrap_or_default()
}

fn read_blocking(node: &Node, pod: Arc<PodSnapshot>, words: &Words, depth: Depth) -> PodReading {
    let containers = read_containers_blocking(node, Target::all_of(&pod).collect(), words, depth);
    let word = words.get(&pod);
    let agent = pod.agent.as_ref().filter(|agent| agent.process.is_alive());
    let reading = agent.and_then(|_| host_reading_blocking(node, &pod, &containers, depth));
    let own = agent.filter(|_| depth == Depth::All).and_then(|_| own_reading_blocking(node, &pod));
    // The keeper, which wants CPU times alone, comes every ten seconds.
    let has_interfaces = depth > Depth::Cpu && pod.info.netns.is_some();
    let interfaces = match (has_interfaces, pod.info.is_guest()) {
        (false, _) => None,
        (true, true) => word.map(|word| word.interfaces.clone()),
        (true, false) => agent.and_then(|agent| interfaces_blocking(agent.process.record.pid)),
    };
    let tasks = match pod.info.is_guest() {
        true => word.and_then(|word| word.pod.as_ref()?.tasks),
        false => reading.as_ref().and_then(|r| r.sample.tasks),
    };
    let inside = word.and_then(|word| word.pod.clone());
    PodReading { reading, own, inside, tasks, interfaces, containers, pod }
}

/// The kubelet makes a cgroup for each pod, which has the numbers. A pod without one uses what its containers and its agent or VMM use now.
fn host_reading_blocking(
    node: &Node,
    pod: &PodSnapshot,
    containers: &[ContainerReading],
    depth: Depth,
) -> Option<Reading> {
    let info = &pod.info;
    let has_parent = !info.cgroup_parent().is_empty();
    let own = own_leaf(node, info).ok()?;
    let meter = || Some(if has_parent { own.parent_meter() } else { own.meter() });
    let entry = node.stats.entry(info.id.as_str(), meter);
    let mut buffer = Vec::new();
    let mut reading = entry.read_blocking(depth, info.created_at, &mut buffer)?;
    if !has_parent && !info.is_guest() {
        for other in containers.iter().filter_map(|c| c.reading.as_ref()) {
            add(&mut reading.sample, &other.sample);
            reading.nano_cores = sum(reading.nano_cores, other.nano_cores);
        }
    }
    Some(reading)
}

/// Of the leaf of the pod's agent or VMM.
fn own_reading_blocking(node: &Node, pod: &PodSnapshot) -> Option<Sample> {
    let own = own_leaf(node, &pod.info).ok()?;
    let entry = node.stats.entry(&own_id(&pod.info), || Some(own.meter()));
    Some(entry.read_blocking(Depth::Stats, pod.info.created_at, &mut Vec::new())?.sample)
}

/// In the book, beside the pod as a whole.
pub(super) fn own_id(info: &PodInfo) -> String {
    format!("own/{}", info.id)
}

/// Pressure and limits are no sums.
fn add(to: &mut Sample, other: &Sample) {
    let (cpu, memory) = (&mut to.cpu, &mut to.memory);
    *cpu = CpuSample {
        usage_ns: sum(cpu.usage_ns, other.cpu.usage_ns),
        user_ns: sum(cpu.user_ns, other.cpu.user_ns),
        system_ns: sum(cpu.system_ns, other.cpu.system_ns),
        ..CpuSample::default()
    };
    *memory = MemorySample {
        usage: sum(memory.usage, other.memory.usage),
        inactive_file: sum(memory.inactive_file, other.memory.inactive_file),
        rss: sum(memory.rss, other.memory.rss),
        cache: sum(memory.cache, other.memory.cache),
        mapped_file: sum(memory.mapped_file, other.memory.mapped_file),
        kernel: sum(memory.kernel, other.memory.kernel),
        swap: sum(memory.swap, other.memory.swap),
        page_faults: sum(memory.page_faults, other.memory.page_faults),
        major_page_faults: sum(memory.major_page_faults, other.memory.major_page_faults),
        oom_kills: sum(memory.oom_kills, other.memory.oom_kills),
        ..MemorySample::default()
    };
    to.tasks = sum(to.tasks, other.tasks);
    (to.cpu_pressure, to.memory_pressure, to.io_pressure) = (None, None, None);
}

fn sum(one: Option<u64>, other: Option<u64>) -> Option<u64> {
    Some(one?.saturating_add(other?))
}

/// Of the network namespace that a process is in.
fn interfaces_blocking(pid: i32) -> Option<Vec<Interface>> {
    let mut interfaces = net_dev::read(format!("/proc/{pid}/net/dev").as_ref()).ok()?;
    interfaces.retain(|i| i.name != "lo");
    Some(interfaces)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sum_of_what_is_not_counted_is_not_told() {
        let sample = |usage, tasks| Sample {
            cpu: CpuSample { usage_ns: usage, periods: Some(3), ..Default::default() },
            tasks,
            ..Default::default()
        };
        let mut total = sample(Some(5), Some(1));
        add(&mut total, &sample(Some(7), None));
        assert_eq!((total.cpu.usage_ns, total.tasks, total.cpu.periods), (Some(12), None, None));
    }
}
