//! Numbers of many containers at once.

use std::sync::Arc;
use std::time::Instant;

use hartpod_container::cgroup::{Depth, open_files_limit};

use super::book::{Entry, Processes};
use super::guest::Words;
use super::pass::Pass;
use super::writable::{Layer, measure_blocking};
use super::{DiskUse, ReadError, Reading};
use crate::container::{ContainerSnapshot, ContainerState};
use crate::guest::SCRATCH_FILE;
use crate::node::Node;
use crate::pod::PodSnapshot;

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
) -> Result<Vec<ContainerReading>, ReadError> {
    let words = Words::ask(node, targets.iter().map(|t| &t.pod), depth).await;
    let node = node.clone();
    let read = tokio::task::spawn_blocking(move || {
        let mut pass = Pass::one_of(1, &node, &words, depth);
        targets.into_iter().map(|target| pass.container_blocking(target)).collect()
    });
    Ok(read.await?)
}

impl Pass<'_> {
    pub(super) fn container_blocking(&mut self, target: Target) -> ContainerReading {
        let entry = target.entry(self.node);
        let reading = match target.is_alive() {
            false => None,
            true if target.pod.info.is_guest() => self.words.of(&target).or_else(|| entry.last()),
            true => self.read_blocking(&target, &entry),
        };
        let is_new = entry.disk().is_none() && !entry.is_large();
        if is_new && self.depth >= Depth::Stats && Instant::now() < self.first_walks_end {
            let began = Instant::now();
            let found = measure_blocking(&target.layer(self.node), self.first_walks_end);
            entry.walked(found, began.elapsed());
        }
        ContainerReading { reading, disk: entry.disk(), target }
    }

    fn read_blocking(&mut self, target: &Target, entry: &Entry) -> Option<Reading> {
        let mut reading = entry.read_blocking(self.depth, target.began_at(), &mut self.buffer)?;
        if self.depth == Depth::All {
            let counts = entry.processes_blocking(&mut self.looks);
            let files_limit = open_files_limit(target.container.pid);
            reading.processes = counts.map(|counts| Processes { counts, files_limit });
        }
        Some(reading)
    }
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

    pub(super) fn began_at(&self) -> i64 {
        self.container.started_at.max(self.container.info.created_at)
    }

    /// Where what the container has written is.
    pub(super) fn layer(&self, node: &Node) -> Layer {
        let scratch = node.layout.scratch(&self.container.info.id);
        match self.pod.info.is_guest() {
            true => Layer::File(scratch.join(SCRATCH_FILE)),
            false => Layer::Folder(scratch.join(UPPER)),
        }
    }
}
