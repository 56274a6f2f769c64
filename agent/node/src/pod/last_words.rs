//! Why a pod's agent, or its guest, has ended: as the kernel knows it, and as it said itself.

use std::sync::Arc;

use super::bring_up::own_leaf;
use super::{PodInfo, RunningAgent};
use crate::backend;
use crate::node::Node;

/// Whether the kernel has killed the pod's agent, or its VMM, because a memory limit was hit.
pub(super) fn ran_out_of_memory(node: &Node, info: &PodInfo) -> bool {
    let kills = own_leaf(node, info).ok().and_then(|leaf| leaf.oom_kills().ok());
    kills.is_some_and(|kills| kills > 0)
}

/// What is known besides how its process ended.
pub(crate) fn last_words_blocking(node: &Node, info: &PodInfo) -> Option<String> {
    if ran_out_of_memory(node, info) {
        return Some("the kernel killed it because a memory limit of the pod was hit".to_owned());
    }
    backend::last_words_blocking(&info.handler, &node.layout.agent(&info.id))
}

/// Waits for its end, and tells all that is known of it.
pub(super) async fn how_it_ended(node: &Arc<Node>, info: &Arc<PodInfo>, agent: &RunningAgent) -> String {
    let how = agent.process.ended().await;
    if let Some(why) = agent.process.why_killed() {
        return format!("hartpod ended it: {why}");
    }
    let (node, info) = (node.clone(), info.clone());
    let words = tokio::task::spawn_blocking(move || last_words_blocking(&node, &info)).await;
    match words.ok().flatten() {
        Some(words) => format!("{how} ({words})"),
        None => how,
    }
}
