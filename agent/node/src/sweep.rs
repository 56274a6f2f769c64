//! What earlier daemons left behind and no record claims.
//!
//! Only what is known to be ours goes: folders below our own root and state folders, entries of our own CNI cache, and the
//! network namespaces and cgroups of ids found there. Neither the folder of network namespaces nor the cgroup tree is searched
//! for our prefix or for ids as such: other hartpods on the machine, with roots of their own, use them too, as do other runtimes.

mod cgroup_search;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hartpod_cni::netns;
use hartpod_proto::{ContainerId, SandboxId};

use crate::agent_client::{AgentClient, Door};
use crate::node::Node;
use crate::pod;
use crate::scratch;
use crate::systemd::{DEFAULT_SLICE, destroy_leaf_blocking};

/// For the processes of a leaf to be gone after they were killed.
const LEAF_END: Duration = Duration::from_secs(10);

/// For an agent to end its containers in order, before they are killed with it.
const AGENT_END: Duration = Duration::from_secs(3);

/// Ids that something on the node is named after.
#[derive(Debug, Default)]
struct Found {
    /// Records that cannot be read, folders of agents, entries of the CNI cache.
    pods: BTreeSet<SandboxId>,
    /// Writable layers.
    containers: BTreeSet<ContainerId>,
}

/// Ids that records claim.
#[derive(Debug, Default)]
pub(crate) struct Claimed {
    pub(crate) pods: BTreeSet<SandboxId>,
    pub(crate) containers: BTreeSet<ContainerId>,
}

/// Those found that nobody claims.
fn orphans(found: Found, claimed: &Claimed) -> Found {
    Found {
        pods: found.pods.into_iter().filter(|id| !claimed.pods.contains(id)).collect(),
        containers: found.containers.into_iter().filter(|id| !claimed.containers.contains(id)).collect(),
    }
}

/// Clears away what nobody claims. `lost` are pods whose record cannot be read.
pub(crate) async fn sweep(node: &Arc<Node>, lost: Vec<SandboxId>, claimed: Claimed) {
    let found = {
        let node = node.clone();
        tokio::task::spawn_blocking(move || look_blocking(&node, lost)).await.unwrap_or_default()
    };
    let orphans = orphans(found, &claimed);
    // First the agents: they end their containers in order.
    for id in &orphans.pods {
        let dir = node.layout.agent(id);
        if dir.exists() {
            let _ = tokio::time::timeout(AGENT_END, AgentClient::new(dir, Door::Sockets).shut_down()).await;
        }
    }
    destroy_leaves(node, &orphans).await;
    for id in orphans.pods {
        sweep_pod(node, id).await;
    }
    for id in orphans.containers {
        tracing::warn!(container = %id, "removing a writable layer that no record claims");
        node.own_metrics.swept("layer");
        let (node, container) = (node.clone(), id.clone());
        let thrown = move || node.trash.throw_blocking(&node.layout.scratch(&container));
        if let Ok(Err(error)) = tokio::task::spawn_blocking(thrown).await {
            tracing::warn!(container = %id, error = %crate::chain(&error), "writable layer stays");
        }
    }
}

/// Nobody knows any more below which parents the leaves are.
async fn destroy_leaves(node: &Arc<Node>, orphans: &Found) {
    let pods = orphans.pods.iter().map(SandboxId::to_string);
    let ids: BTreeSet<String> = pods.chain(orphans.containers.iter().map(ContainerId::to_string)).collect();
    if ids.is_empty() {
        return;
    }
    let node = node.clone();
    let destroyed = tokio::task::spawn_blocking(move || {
        for (parent, id) in cgroup_search::find_blocking(&node.layout.cgroups, &ids) {
            let Ok(leaf) = node.leaf(&parent, &id) else { continue };
            tracing::warn!(cgroup = leaf.cgroup_path(), "removing a cgroup that no record claims");
            node.own_metrics.swept("cgroup");
            if let Err(error) = destroy_leaf_blocking(node.systemd.as_ref(), &leaf, Instant::now() + LEAF_END)
            {
                tracing::warn!(cgroup = leaf.cgroup_path(), %error, "cgroup stays");
            }
        }
        // An agent that ended its pod in order removed the cgroups, and systemd was not told.
        for id in node.systemd.iter().flat_map(|_| &ids) {
            let leaf = node.leaf(DEFAULT_SLICE, id).ok();
            if let Some(Err(error)) = node.systemd.as_ref().zip(leaf).map(|(s, leaf)| s.stop_blocking(&leaf))
            {
                tracing::warn!(id, error = %crate::chain(&error), "an empty scope may stay");
            }
        }
    });
    let _ = destroyed.await;
}

fn look_blocking(node: &Node, lost: Vec<SandboxId>) -> Found {
    let cached = node.cni.cached_ids();
    Found {
        pods: lost
            .into_iter()
            .chain(named_after(&node.layout.agents()))
            .chain(cached.iter().filter_map(|id| id.parse().ok()))
            .collect(),
        containers: named_after(&node.layout.containers()).collect(),
    }
}

/// Entries of a folder whose name is an id; others are not ours.
fn named_after<I: std::str::FromStr>(dir: &Path) -> impl Iterator<Item = I> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|e| e.file_name().to_str()?.parse().ok())
}

/// Takes down a pod of which nothing but the id is known, in the order of a stop. Steps that fail are tried again by the next
/// daemon's sweep, since the folders that name the pod go last.
async fn sweep_pod(node: &Arc<Node>, id: SandboxId) {
    tracing::warn!(sandbox = %id, "removing what is left of a pod that no record claims");
    node.own_metrics.swept("pod");
    if let Err(error) = node.cni.del(&pod::bare_attachment(id.as_str(), node.layout.netns_file(&id))).await {
        tracing::warn!(sandbox = %id, error = %crate::chain(&error), "a pod nobody claims stays in its network");
        return;
    }
    let node = node.clone();
    let removed = tokio::task::spawn_blocking(move || {
        if let Err(error) = netns::remove_blocking(&node.layout.netns_file(&id)) {
            tracing::warn!(sandbox = %id, error = %crate::chain(&error), "network namespace stays");
            return;
        }
        if let Err(error) = node.records.remove_pod_blocking(&id) {
            tracing::warn!(sandbox = %id, error = %crate::chain(&error), "record stays");
        }
        if let Err(error) = scratch::remove_blocking(&node.layout.agent(&id)) {
            tracing::warn!(sandbox = %id, error = %crate::chain(&error), "folder of the agent stays");
        }
    });
    let _ = removed.await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_nobody_claims_is_an_orphan() {
        let pod = |digit: &str| digit.repeat(64).parse::<SandboxId>().unwrap();
        let container = |digit: &str| digit.repeat(64).parse::<ContainerId>().unwrap();
        let found =
            Found { pods: [pod("1"), pod("2")].into(), containers: [container("3"), container("4")].into() };
        let claimed = Claimed { pods: [pod("1")].into(), containers: [container("4")].into() };
        let orphans = orphans(found, &claimed);
        assert_eq!(orphans.pods, [pod("2")].into());
        assert_eq!(orphans.containers, [container("3")].into());
    }

    #[test]
    fn look_alikes_are_not_named_after_an_id() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["a".repeat(64), "A".repeat(64), "a".repeat(63), "cni-1234".to_owned()] {
            std::fs::create_dir(dir.path().join(name)).unwrap();
        }
        let found: Vec<SandboxId> = named_after(dir.path()).collect();
        assert_eq!(found, ["a".repeat(64).parse::<SandboxId>().unwrap()]);
    }
}
