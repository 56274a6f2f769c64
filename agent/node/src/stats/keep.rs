//! Now and then, whether or not anybody asks: CPU times, for the windows of rates.

use std::collections::BTreeSet;
use std::sync::Arc;

use hartpod_container::cgroup::Depth;
use tokio::time::MissedTickBehavior;

use super::pods;
use super::pods::own_id;
use super::window::SPAN;
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
        if !snapshots.is_empty() {
            if let Err(error) = pods(&node, snapshots, Depth::Cpu).await {
                tracing::warn!(error = crate::chain(&error), "CPU times are not noted");
            }
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
