//! Now and then, whether or not anybody asks: CPU times for the windows of rates, and what containers have written.

use std::collections::BTreeSet;
use std::sync::Arc;

use hartpod_container::cgroup::Depth;
use tokio::time::MissedTickBehavior;

use super::pods::own_id;
use super::window::SPAN;
use super::{Target, pods};
use crate::node::Node;
use crate::pod::PodSnapshot;

/// Keeps the book until the daemon ends.
pub(crate) async fn keep(node: Arc<Node>) {
    let mut ticks = tokio::time::interval(SPAN);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let snapshots: Vec<_> = node.registry.pods().iter().map(|pod| pod.snapshot()).collect();
        forget_others(&node, &snapshots);
        if snapshots.is_empty() {
            continue;
        }
        pods(&node, snapshots.clone(), Depth::Cpu).await;
        let node = node.clone();
        let measured = tokio::task::spawn_blocking(move || measure_blocking(&node, &snapshots)).await;
        if let Err(error) = measured {
            tracing::warn!(%error, "writable layers are not measured");
        }
    }
}

/// Files of what has ended are closed, for they keep its cgroups in the kernel's memory.
fn forget_others(node: &Node, snapshots: &[Arc<PodSnapshot>]) {
    let mut ids = BTreeSet::new();
    for pod in snapshots {
        if pod.agent.is_some() {
            ids.extend([pod.info.id.to_string(), own_id(&pod.info)]);
        }
        ids.extend(pod.containers.iter().map(|c| c.info.id.to_string()));
    }
    node.stats.keep_only(&ids);
}

fn measure_blocking(node: &Node, snapshots: &[Arc<PodSnapshot>]) {
    for target in snapshots.iter().flat_map(Target::all_of) {
        let known = target.entry(node).disk();
        let ended_at = target.container.exit.as_ref().map(|exit| exit.finished_at);
        let is_final = known.zip(ended_at).is_some_and(|(disk, ended_at)| disk.at > ended_at);
        if !is_final && known.is_none_or(|disk| disk.is_due()) {
            target.measure_blocking(node, None);
        }
    }
}
