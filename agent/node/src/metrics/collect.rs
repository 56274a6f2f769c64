//! The series of all pods.

use std::sync::Arc;

use hartpod_container::cgroup::Depth;

use super::device::{Devices, FileSystem};
use super::series::{self, Series};
use crate::node::Node;
use crate::pod::{PodSnapshot, own_leaf};
use crate::stats::{ContainerReading, PodReading, pods};

/// Values of [`COMMON_LABELS`](super::family::COMMON_LABELS).
pub(crate) type CommonLabels = [String; 6];

/// The series of one pod or container.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) id: String,
    pub(crate) labels: CommonLabels,
    pub(crate) series: Vec<Series>,
}

/// The series of a pod and of its containers.
#[derive(Debug)]
pub(crate) struct PodMetrics {
    pub(crate) pod: Told,
    pub(crate) containers: Vec<Told>,
    pub(crate) overhead: Overhead,
    pub(crate) is_guest: bool,
    /// Its guest did not answer just now.
    pub(crate) is_stale: bool,
}

/// What a pod costs besides its workload: its agent, or its guest's kernel and VMM. What is used on this host without what is used inside.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Overhead {
    pub(crate) memory_bytes: Option<u64>,
    pub(crate) cpu_seconds: Option<f64>,
}

/// Reads the numbers of every pod that is not stopped, and of its containers.
pub(crate) async fn collect(node: &Arc<Node>) -> Vec<PodMetrics> {
    let snapshots =
        node.registry.pods().iter().map(|pod| pod.snapshot()).filter(|pod| pod.state.is_up()).collect();
    let read = pods(node, snapshots, Depth::All).await;
    let node = node.clone();
    let told = tokio::task::spawn_blocking(move || {
        let mut devices = Devices::default();
        let layers = FileSystem::of_blocking(&node.layout.containers(), &mut devices);
        read.iter().map(|read| tell(&node, read, layers.as_ref(), &mut devices)).collect()
    });
    told.await.unwrap_or_default()
}

fn tell(node: &Node, read: &PodReading, layers: Option<&FileSystem>, devices: &mut Devices) -> PodMetrics {
    let containers = read.containers.iter().map(|c| Told {
        id: c.target.container.info.id.to_string(),
        labels: of_container(c),
        series: series::of_container(c, layers, devices),
    });
    let containers = containers.collect();
    let pod = Told {
        id: read.pod.info.id.to_string(),
        labels: of_pod(node, &read.pod),
        series: series::of_pod(read, devices),
    };
    let is_guest = read.pod.info.is_guest();
    PodMetrics {
        pod,
        containers,
        overhead: overhead(read),
        is_guest,
        is_stale: is_guest && read.inside.is_none(),
    }
}

// Nanoseconds of less than a hundred days are exact.
#[allow(clippy::cast_precision_loss)]
fn overhead(read: &PodReading) -> Overhead {
    let Some(own) = &read.own else { return Overhead::default() };
    let (inside_memory, inside_cpu) = match (&read.inside, read.pod.info.is_guest()) {
        (Some(inside), _) => (inside.memory.usage, inside.cpu.usage_ns),
        (None, true) => (None, None),
        (None, false) => (Some(0), Some(0)),
    };
    let less = |all: Option<u64>, part: Option<u64>| Some(all?.saturating_sub(part?));
    Overhead {
        memory_bytes: less(own.memory.usage, inside_memory),
        cpu_seconds: less(own.cpu.usage_ns, inside_cpu).map(|ns| ns as f64 * 1e-9),
    }
}

fn of_container(read: &ContainerReading) -> CommonLabels {
    let (pod, info) = (&read.target.pod.info, &read.target.container.info);
    let image = info.config.image.as_ref();
    let written =
        image.map(|i| if i.user_specified_image.is_empty() { &i.image } else { &i.user_specified_image });
    [
        info.name.name.clone(),
        info.cgroup_path.clone(),
        written.cloned().unwrap_or_default(),
        info.id.to_string(),
        pod.name.namespace.clone(),
        pod.name.name.clone(),
    ]
}

/// Without the name of a container, as cAdvisor tells what it reads from the cgroup of a pod.
fn of_pod(node: &Node, pod: &PodSnapshot) -> CommonLabels {
    let leaf = own_leaf(node, &pod.info).map(|leaf| leaf.cgroup_path().to_owned()).unwrap_or_default();
    let id = match pod.info.cgroup_parent() {
        "" => leaf,
        _ => leaf.rsplit_once('/').map(|(parent, _)| parent.to_owned()).unwrap_or_default(),
    };
    let name = &pod.info.name;
    [String::new(), id, String::new(), String::new(), name.namespace.clone(), name.name.clone()]
}

#[cfg(test)]
mod tests {
    use hartpod_container::cgroup::{CpuSample, MemorySample, Sample};

    use super::*;
    use crate::pod::{SandboxState, test_pod};

    fn used(memory: u64, nanos: u64) -> Sample {
        Sample {
            memory: MemorySample { usage: Some(memory), ..Default::default() },
            cpu: CpuSample { usage_ns: Some(nanos), ..Default::default() },
            ..Default::default()
        }
    }

    #[test]
    fn a_guests_overhead_is_what_is_not_used_inside() {
        let mut pod = test_pod("ab", SandboxState::Ready, &[]);
        let read = |pod: &PodSnapshot, own, inside| PodReading {
            pod: Arc::new(pod.clone()),
            own,
            inside,
            reading: None,
            tasks: None,
            interfaces: None,
            containers: Vec::new(),
        };
        let of_agent = overhead(&read(&pod, Some(used(300, 2_000_000_000)), None));
        assert_eq!(of_agent, Overhead { memory_bytes: Some(300), cpu_seconds: Some(2.0) });
        let info = Arc::get_mut(&mut pod.info).unwrap();
        info.handler = "vm".into();
        let told = overhead(&read(&pod, Some(used(1000, 3_000_000_000)), Some(used(400, 500_000_000))));
        assert_eq!(told, Overhead { memory_bytes: Some(600), cpu_seconds: Some(2.5) });
        let silent = overhead(&read(&pod, Some(used(1000, 3_000_000_000)), None));
        assert_eq!(silent, Overhead::default(), "a guest that says nothing has none");
    }
}
