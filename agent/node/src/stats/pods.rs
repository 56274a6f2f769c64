//! Numbers of many pods at once.

use std::sync::Arc;
use std::time::Duration;

use hartpod_container::cgroup::{CpuSample, Depth, MemorySample, ProcessSample, Sample};
use hartpod_container::net_dev::{self, Interface};
use tokio::task::{JoinError, JoinHandle};

use super::book::{Entry, Processes};
use super::guest::{MOST, Words};
use super::overhead::Overhead;
use super::pass::Pass;
use super::{ContainerReading, Reading, Target};
use crate::node::Node;
use crate::pod::{INTERFACE, PodInfo, PodSnapshot, own_leaf};

/// Threads that read: it is the kernel that works, on two CPUs at a time at most.
const THREADS: usize = 2;
/// Pods that are not worth another thread.
const PART: usize = 16;
/// For how long the processes of an agent or VMM, and what they have open, are told again: they change little, and to look takes as long as all else.
const OWN_COUNTS: Duration = Duration::from_secs(60);

/// What a pod uses.
#[derive(Debug)]
pub(crate) struct PodReading {
    pub(crate) pod: Arc<PodSnapshot>,
    /// On this host, its agent or VMM included. None of one that has stopped.
    pub(crate) reading: Option<Reading>,
    /// Nothing but of [`Depth::All`].
    pub(crate) overhead: Overhead,
    /// What its workload uses as the guest counts it; none of a pod on this host.
    pub(crate) inside: Option<Sample>,
    /// Processes and threads of its workload: in a guest those that are inside.
    pub(crate) tasks: Option<u64>,
    /// Of its own network, without `lo`; none with the node's.
    pub(crate) interfaces: Option<Vec<Interface>>,
    pub(crate) containers: Vec<ContainerReading>,
}

/// Numbers could not be read: what reads them has panicked. Half of them would look like a node with half as many pods.
#[derive(Debug, thiserror::Error)]
#[error("read what pods use")]
pub(crate) struct ReadError(#[from] JoinError);

/// Reads the numbers of these pods, in their order, and of all their containers.
pub(crate) async fn pods(
    node: &Arc<Node>,
    pods: Vec<Arc<PodSnapshot>>,
    depth: Depth,
) -> Result<Vec<PodReading>, ReadError> {
    let words = Arc::new(Words::ask(node, pods.iter(), depth).await);
    let part = pods.len().div_ceil(THREADS).max(PART);
    let parts: Vec<_> = pods.chunks(part).map(<[_]>::to_vec).collect();
    let passes = parts.len();
    // Another pod comes first each time: looks at files may not be enough for all.
    let first = if depth == Depth::All { node.stats.turn() } else { 0 };
    let passes = parts.into_iter().map(|part| {
        let (node, words) = (node.clone(), words.clone());
        tokio::task::spawn_blocking(move || {
            let mut pass = Pass::one_of(passes, &node, &words, depth);
            in_turn(part, first, |pod| pass.pod_blocking(pod))
        })
    });
    // All of them begin before the first is waited for.
    all(passes.collect()).await
}

/// What all of these give, one after the other.
async fn all<T>(passes: Vec<JoinHandle<Vec<T>>>) -> Result<Vec<T>, ReadError> {
    let mut read = Vec::new();
    for pass in passes {
        read.extend(pass.await?);
    }
    Ok(read)
}

/// Begins with another one each `turn`; what comes back stands in their order.
fn in_turn<T, R>(mut of: Vec<T>, turn: usize, read: impl FnMut(T) -> R) -> Vec<R> {
    let first = turn.checked_rem(of.len()).unwrap_or(0);
    of.rotate_left(first);
    let mut read: Vec<_> = of.into_iter().map(read).collect();
    read.rotate_right(first);
    read
}

impl Pass<'_> {
    fn pod_blocking(&mut self, pod: Arc<PodSnapshot>) -> PodReading {
        let containers: Vec<_> = Target::all_of(&pod).map(|target| self.container_blocking(target)).collect();
        let word = self.words.get(&pod);
        let agent = pod.agent.as_ref().filter(|agent| agent.process.is_alive());
        let mut reading = agent.and_then(|_| self.host_reading_blocking(&pod, &containers));
        let own = agent.filter(|_| self.depth == Depth::All);
        let overhead =
            own.and_then(|_| self.own_blocking(&pod, &containers, reading.as_mut())).unwrap_or_default();
        // The keeper, which wants CPU times alone, comes every ten seconds.
        let info = &pod.info;
        let has_interfaces = self.depth >= Depth::Stats && info.netns.is_some();
        let interfaces = match (has_interfaces, info.is_guest()) {
            (false, _) => None,
            (true, true) => word.map(|word| word.interfaces.clone()),
            (true, false) => agent.and_then(|agent| self.interfaces_blocking(info, agent.process.record.pid)),
        };
        let tasks = match pod.info.is_guest() {
            true => word.and_then(|word| word.pod.as_ref()?.tasks),
            false => reading.as_ref().and_then(|r| r.sample.tasks),
        };
        let inside = word.and_then(|word| word.pod.clone());
        PodReading { reading, overhead, inside, tasks, interfaces, containers, pod }
    }

    /// The kubelet makes a cgroup for each pod, which has the numbers. A pod without one uses what its containers and its agent or VMM use now.
    fn host_reading_blocking(
        &mut self,
        pod: &PodSnapshot,
        containers: &[ContainerReading],
    ) -> Option<Reading> {
        let info = &pod.info;
        let has_parent = !info.cgroup_parent().is_empty();
        let entry = self.entry(info);
        let mut reading = entry.read_blocking(self.depth, info.created_at, &mut self.buffer)?;
        if !has_parent && !info.is_guest() {
            for other in containers.iter().filter_map(|c| c.reading.as_ref()) {
                add(&mut reading.sample, &other.sample);
                reading.nano_cores = sum(reading.nano_cores, other.nano_cores);
            }
        }
        Some(reading)
    }

    /// Of the pod as a whole.
    fn entry(&self, info: &PodInfo) -> Arc<Entry> {
        self.node.stats.entry(info.id.as_str(), || {
            let own = own_leaf(self.node, info).ok()?;
            Some(if info.cgroup_parent().is_empty() { own.meter() } else { own.parent_meter() })
        })
    }

    /// Of the network namespace that a process is in, the pod's agent.
    fn interfaces_blocking(&self, info: &PodInfo, pid: i32) -> Option<Vec<Interface>> {
        let found = net_dev::read(format!("/proc/{pid}/net/dev").as_ref()).ok()?;
        let mut interfaces = net_dev::told(found, INTERFACE, MOST);
        let entry = self.entry(info);
        interfaces.retain(|i| i.name == INTERFACE || entry.knows_interface(&i.name, MOST));
        Some(interfaces)
    }

    /// Of the leaf of the pod's agent or VMM: what it costs, and its processes, which with those of the containers are all of the pod's on this host.
    fn own_blocking(
        &mut self,
        pod: &PodSnapshot,
        containers: &[ContainerReading],
        whole: Option<&mut Reading>,
    ) -> Option<Overhead> {
        let info = &pod.info;
        let entry = self.node.stats.entry(&own_id(info), || Some(own_leaf(self.node, info).ok()?.meter()));
        let counts = entry.processes_lately_blocking(OWN_COUNTS, &mut self.looks);
        if let (Some(whole), Some(own)) = (whole, counts) {
            let inside = containers.iter().filter_map(|c| c.reading.as_ref()?.processes);
            let inside = inside.filter(|_| !info.is_guest()).map(|inside| inside.counts);
            let counts = inside.fold(own, ProcessSample::and);
            whole.processes = Some(Processes { counts, files_limit: None });
        }
        let own = entry.read_blocking(Depth::Usage, info.created_at, &mut self.buffer)?.sample;
        let inside = self.words.get(pod).and_then(|word| word.pod.as_ref());
        let mut overhead = Overhead::new(&own, inside, info.is_guest());
        overhead.cpu_ns =
            overhead.cpu_ns.zip(own.cpu.usage_ns).map(|(found, used)| entry.overhead_cpu(found, used));
        Some(overhead)
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_part_that_cannot_be_read_is_no_smaller_node() {
        let whole = || tokio::task::spawn_blocking(|| vec![1, 2]);
        assert_eq!(all(vec![whole(), whole()]).await.unwrap(), [1, 2, 1, 2]);
        let broken = tokio::task::spawn_blocking(|| panic!("a test's"));
        assert!(all(vec![whole(), broken]).await.unwrap_err().0.is_panic());
    }

    #[test]
    fn each_comes_first_in_its_turn() {
        let order = |turn| {
            let mut seen = Vec::new();
            let read = in_turn(vec![1, 2, 3], turn, |one| {
                seen.push(one);
                one * 10
            });
            assert_eq!(read, [10, 20, 30], "in their order");
            seen
        };
        assert_eq!([0, 1, 2, 3].map(|turn| order(turn)[0]), [1, 2, 3, 1]);
        assert_eq!(order(1), [2, 3, 1]);
        assert!(in_turn(Vec::<u8>::new(), 7, |one| one).is_empty());
    }

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
