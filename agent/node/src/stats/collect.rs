//! Numbers of many containers at once.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hartpod_container::cgroup::{Depth, open_files_limit};

use super::book::Entry;
use super::guest::Words;
use super::writable::{Layer, measure_blocking};
use super::{DiskUse, Reading};
use crate::container::{ContainerSnapshot, ContainerState};
use crate::guest::SCRATCH_FILE;
use crate::node::Node;
use crate::pod::PodSnapshot;

/// For layers that were never measured, all of them together: who asks first should not get nothing of small ones, nor wait for large ones.
const FIRST_WALKS: Duration = Duration::from_millis(100);
/// Where an overlay's upper folder is (pod.proto, Overlay).
const UPPER: &str = "upper";

/// A container of which something is wanted.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) pod: Arc<PodSnapshot>,
    pub(crate) container: Arc<ContainerSnapshot>,
}

/// What a container uses.
#[derive(Debug)]
pub(crate) struct ContainerReading {
    pub(crate) target: Target,
    /// None of one that has ended, or whose guest never told.
    pub(crate) reading: Option<Reading>,
    /// None until it was measured.
    pub(crate) disk: Option<DiskUse>,
}

/// Reads the numbers of all targets, in their order.
pub(crate) async fn containers(
    node: &Arc<Node>,
    targets: Vec<Target>,
    depth: Depth,
) -> Vec<ContainerReading> {
    let words = Words::ask(node, targets.iter().map(|t| &t.pod), depth).await;
    let node = node.clone();
    let read = tokio::task::spawn_blocking(move || read_blocking(&node, targets, &words, depth));
    read.await.unwrap_or_default()
}

pub(super) fn read_blocking(
    node: &Node,
    targets: Vec<Target>,
    words: &Words,
    depth: Depth,
) -> Vec<ContainerReading> {
    let deadline = Instant::now() + FIRST_WALKS;
    let mut buffer = Vec::new();
    let readings = targets.into_iter().map(|target| {
        let entry = target.entry(node);
        let reading = match target.is_alive() {
            false => None,
            true if target.pod.info.is_guest() => words.of(&target).or_else(|| entry.last()),
            true => target.read_blocking(&entry, depth, &mut buffer),
        };
        if entry.disk().is_none() && depth > Depth::Cpu && Instant::now() < deadline {
            target.measure_blocking(node, Some(deadline));
        }
        ContainerReading { reading, disk: entry.disk(), target }
    });
    readings.collect()
}

impl Target {
    /// Every container of a pod.
    pub(crate) fn all_of(pod: &Arc<PodSnapshot>) -> impl Iterator<Item = Self> {
        pod.containers.iter().map(|container| Self { pod: pod.clone(), container: container.clone() })
    }

    /// It has processes.
    pub(super) fn is_alive(&self) -> bool {
        matches!(self.container.state, ContainerState::Created | ContainerState::Running)
    }

    pub(super) fn entry(&self, node: &Node) -> Arc<Entry> {
        let info = &self.pod.info;
        node.stats.entry(self.container.info.id.as_str(), || {
            let leaf = node.leaf(info.cgroup_parent(), self.container.info.id.as_str());
            leaf.ok().filter(|_| !info.is_guest()).map(|leaf| leaf.meter())
        })
    }

    fn read_blocking(&self, entry: &Entry, depth: Depth, buffer: &mut Vec<u8>) -> Option<Reading> {
        let mut reading = entry.read_blocking(depth, self.began_at(), buffer)?;
        if let Some(processes) = &mut reading.processes {
            processes.files_limit = open_files_limit(self.container.pid);
        }
        Some(reading)
    }

    pub(super) fn began_at(&self) -> i64 {
        self.container.started_at.max(self.container.info.created_at)
    }

    /// Measures what the container has written.
    pub(super) fn measure_blocking(&self, node: &Node, deadline: Option<Instant>) {
        let scratch = node.layout.scratch(&self.container.info.id);
        let path = scratch.join(if self.pod.info.is_guest() { SCRATCH_FILE } else { UPPER });
        let layer = if self.pod.info.is_guest() { Layer::File(&path) } else { Layer::Folder(&path) };
        if let Some(disk) = measure_blocking(layer, deadline) {
            self.entry(node).set_disk(disk);
        }
    }
}
