//! Now and then, whether or not anybody asks: what containers have written.
//!
//! Layers are walked one at a time. One that takes more than its turn is from then on walked apart from the others, with much more time: nobody else's numbers wait for it.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::time::MissedTickBehavior;

use super::Target;
use super::window::SPAN;
use super::writable::{self, Layer};
use crate::node::Node;

/// What a layer gets before it counts as a large one; some tens of thousands of files.
pub(super) const TURN: Duration = Duration::from_millis(250);
/// What a large one gets before it is left as it is, for the others' sake: ten million files on a disk that has none of them in memory take longer.
const LONG_TURN: Duration = Duration::from_secs(300);
/// A layer's walk is repeated after this many times as long as it took, so walking takes a twentieth of one core at most.
const PAUSE: u32 = 20;

/// Which layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lane {
    Small,
    Large,
}

/// A layer to walk: no more than that, for a walk is not to keep what a removed pod had open.
#[derive(Debug)]
struct Due {
    /// Of the container.
    id: String,
    layer: Layer,
    /// None of one that was never walked.
    since: Option<Instant>,
}

/// Measures layers until the daemon ends.
pub(crate) async fn keep(node: Arc<Node>) {
    tokio::join!(keep_lane(&node, Lane::Small), keep_lane(&node, Lane::Large));
}

/// How long after a walk that took so long the next one is due.
pub(super) fn pause(took: Duration) -> Duration {
    SPAN.max(took * PAUSE) - Duration::from_secs(1)
}

async fn keep_lane(node: &Arc<Node>, lane: Lane) {
    let mut ticks = tokio::time::interval(SPAN);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let mut due = due(node, lane);
        while !due.is_empty() {
            let node_of_walk = node.clone();
            let walked = tokio::task::spawn_blocking(move || {
                due.iter().for_each(|due| walk_blocking(&node_of_walk, due, lane));
            });
            if let Err(error) = walked.await {
                tracing::warn!(%error, "writable layers are not measured");
                break;
            }
            due = self::due(node, lane);
        }
    }
}

/// What is to be walked next, the stalest first. Of large ones it is one, for the next may be another by then.
fn due(node: &Node, lane: Lane) -> Vec<Due> {
    let pods = node.registry.pods();
    let targets = pods.iter().flat_map(|pod| Target::all_of(&pod.snapshot()).collect::<Vec<_>>());
    let mut due: Vec<_> = targets.filter_map(|target| of_lane(node, &target, lane)).collect();
    due.sort_by_key(|due| due.since);
    if lane == Lane::Large {
        due.truncate(1);
    }
    due
}

fn of_lane(node: &Node, target: &Target, lane: Lane) -> Option<Due> {
    let entry = target.entry(node);
    let ended_at = target.container.exit.as_ref().map(|exit| exit.finished_at);
    let is_final = entry.disk().zip(ended_at).is_some_and(|(disk, ended_at)| disk.at > ended_at);
    let is_mine = entry.is_large() == (lane == Lane::Large);
    let since = entry.walk_due();
    let is_due = since.is_none_or(|since| Instant::now() >= since);
    (is_mine && !is_final && is_due).then(|| Due {
        id: target.container.info.id.to_string(),
        layer: target.layer(node),
        since,
    })
}

fn walk_blocking(node: &Node, due: &Due, lane: Lane) {
    let began = Instant::now();
    let turn = if lane == Lane::Small { TURN } else { LONG_TURN };
    let found = writable::measure_blocking(&due.layer, began + turn);
    // Its container may have been removed meanwhile.
    if let Some(entry) = node.stats.known(&due.id) {
        entry.walked(found, began.elapsed());
    }
}
