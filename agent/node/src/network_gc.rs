//! CNI GC, where the configuration asks for it: plugins give back what is of no pod.

use std::sync::Arc;
use std::time::Duration;

use hartpod_cni::{CollectError, Collected};

use crate::node::Node;

/// Nothing is lost between two collections but an address or two.
const EVERY: Duration = Duration::from_secs(60 * 60);
/// For pods that join or leave to be through with it.
const WHEN_BUSY: Duration = Duration::from_secs(2);

/// Collects at the start, when what earlier daemons left has been cleared away, and then rarely.
pub(crate) async fn collect_now_and_then(node: Arc<Node>) {
    loop {
        let pause = match node.cni.collect_garbage().await {
            Ok(Collected::Yes { network, pods }) => {
                tracing::info!(network, pods, "the network's plugins gave back what is of no pod");
                EVERY
            }
            Ok(Collected::NotOffered { network, why }) => {
                tracing::info!(network, why, "the network has no garbage collection");
                EVERY
            }
            Err(CollectError::Busy) => WHEN_BUSY,
            Err(error) => {
                tracing::warn!(error = crate::chain(&error), "the network's garbage is not collected");
                EVERY
            }
        };
        tokio::time::sleep(pause).await;
    }
}
