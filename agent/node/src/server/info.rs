//! The verbose part of status calls: JSON under the key `info`, with the names that users of `crictl inspect` know from containerd.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::container::ContainerSnapshot;
use crate::node::Node;
use crate::pod::PodSnapshot;

/// The one key.
const INFO: &str = "info";

pub(super) fn of_pod(node: &Node, pod: &PodSnapshot) -> BTreeMap<String, String> {
    let info = &pod.info;
    let agent = pod.agent.as_ref();
    let cgroup = node.leaf(info.cgroup_parent(), info.id.as_str());
    wrap(&json!({
        "pid": agent.map_or(0, |a| a.process.record.pid),
        "state": pod.state.adjective(),
        "reason": pod.reason,
        "runtimeHandler": info.handler,
        "cgroupParent": info.cgroup_parent(),
        "cgroup": cgroup.map(|c| c.cgroup_path().to_owned()).unwrap_or_default(),
        "netns": info.netns,
        "ips": pod.ips,
        "agentFolder": node.layout.agent(&info.id),
        "containers": pod.containers.iter().map(|c| c.info.id.as_str()).collect::<Vec<_>>(),
        "config": info.config,
    }))
}

/// The spec is read from the disk: it is large, and nobody asks for it but people.
pub(super) async fn of_container(
    node: &Node,
    pod: &PodSnapshot,
    container: &ContainerSnapshot,
) -> BTreeMap<String, String> {
    let info = &container.info;
    let file = node.records.spec_file(&info.pod, &info.id);
    let spec = tokio::fs::read(&file).await.ok().and_then(|s| serde_json::from_slice::<Value>(&s).ok());
    wrap(&json!({
        "sandboxID": info.pod.as_str(),
        // In a guest the number is the guest's own: on the node it is somebody else's.
        "pid": if pod.info.is_guest() { 0 } else { container.pid },
        "state": container.state.name(),
        "removing": container.state == crate::container::ContainerState::Removing,
        "cgroup": info.cgroup_path,
        "netns": pod.info.netns,
        "runtimeHandler": pod.info.handler,
        "stopSignal": container.stop_signal,
        "writableLayer": node.layout.scratch(&info.id),
        "config": info.config,
        "runtimeSpec": spec,
    }))
}

pub(super) fn wrap(value: &Value) -> BTreeMap<String, String> {
    [(INFO.to_owned(), value.to_string())].into()
}
