//! Now and then, whether or not anybody asks: what containers have written.
//!
//! Layers are walked one at a time. One that takes more than its turn is from then on walked apart from the others, with all the time that it takes: nobody else's numbers wait for it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::MissedTickBehavior;

use super::Target;
use super::window::SPAN;
use crate::node::Node;

/// What a layer gets before it counts as a large one; some tens of thousands of files.
const TURN: Duration = Duration::from_millis(250);

/// Which layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lane {
    Small,
    Large,
}

/// Measures layers until the daemon ends.
pub(crate) async fn keep(node: Arc<Node>) {
    tokio::join!(keep_lane(&node, Lane::Small), keep_lane(&node, Lane::Large));
}

async fn keep_lane(node: &Arc<Node>, lane: Lane) {
    let mut ticks = tokio::time::interval(SPAN);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let pods = node.registry.pods();
        let due: Vec<_> = pods
            .iter()
            .flat_map(|pod| Target::all_of(&pod.snapshot()).collect::<Vec<_>>())
            .filter(|target| is_due(node, target, lane))
            .collect();
        if due.is_empty() {
            continue;
        }
        let node = node.clone();
        let measured = tokio::task::spawn_blocking(move || {
            due.iter().for_each(|target| measure_blocking(&node, target, lane));
        });
        if let Err(error) = measured.await {
            tracing::warn!(%error, "writable layers are not measured");
        }
    }
}

fn is_due(node: &Node, target: &Target, lane: Lane) -> bool {
    let entry = target.entry(node);
    let known = entry.disk();
    let ended_at = target.container.exit.as_ref().map(|exit| exit.finished_at);
    let is_final = known.zip(ended_at).is_some_and(|(disk, ended_at)| disk.at > ended_at);
    let is_mine = entry.is_large() == (lane == Lane::Large);
    is_mine && !is_final && known.is_none_or(|disk| disk.is_due())
}

fn measure_blocking(node: &Node, target: &Target, lane: Lane) {
    let began = Instant::now();
    let deadline = (lane == Lane::Small).then(|| began + TURN);
    target.measure_blocking(node, deadline);
    // In its turn, or not in time for it.
    target.entry(node).set_large(began.elapsed() >= TURN);
}
