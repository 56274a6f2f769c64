//! The numbers of all pods.

use std::sync::Arc;

use hartpod_container::cgroup::Depth;

use super::device::{Devices, FileSystem};
use crate::node::Node;
use crate::stats::{PodReading, ReadError, pods};

/// What series are made of.
#[derive(Debug)]
pub(crate) struct Readings {
    /// Every pod that is not stopped, with its containers.
    pub(crate) pods: Vec<PodReading>,
    /// What writable layers are on.
    pub(crate) layers: Option<FileSystem>,
    /// Names that were looked up.
    pub(crate) devices: Devices,
}

/// Reads the numbers, and has them told on a thread that may block.
pub(crate) async fn collect<T: Send + 'static>(
    node: &Arc<Node>,
    tell_blocking: impl FnOnce(&Node, Readings) -> T + Send + 'static,
) -> Result<T, ReadError> {
    let snapshots =
        node.registry.pods().iter().map(|pod| pod.snapshot()).filter(|pod| pod.state.is_up()).collect();
    let pods = pods(node, snapshots, Depth::All).await?;
    let node = node.clone();
    let told = tokio::task::spawn_blocking(move || {
        let mut devices = Devices::default();
        let layers = FileSystem::of_blocking(&node.layout.containers(), &mut devices);
        tell_blocking(&node, Readings { pods, layers, devices })
    });
    Ok(told.await?)
}
