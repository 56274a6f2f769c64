//! The verbose part of status calls: JSON under the key `info`, with the names that users of `crictl inspect` know from containerd.

use std::collections::BTreeMap;

use hartpod_proto::cri::v1 as cri;
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
        "networkWarning": pod.network_warning,
        "agentFolder": node.layout.agent(&info.id),
        "resources": pod.resources.as_deref(),
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
    let mut spec = tokio::fs::read(&file).await.ok().and_then(|s| serde_json::from_slice::<Value>(&s).ok());
    if let (Some(spec), Some(resources)) = (&mut spec, &container.resources) {
        put_over(node, pod, spec, resources);
    }
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

/// The file has what the container was made with; people want to see what it has.
fn put_over(node: &Node, pod: &PodSnapshot, spec: &mut Value, has: &cri::LinuxContainerResources) {
    let settings = if pod.info.is_guest() { &node.guest_spec_settings } else { &node.spec_settings };
    let limits = crate::spec::resources(has, settings, &mut Vec::new()).ok();
    let Some(Value::Object(limits)) = limits.and_then(|limits| serde_json::to_value(limits).ok()) else {
        return;
    };
    if let Some(resources) = spec.pointer_mut("/linux/resources").and_then(Value::as_object_mut) {
        resources.extend(limits);
    }
    if let Some(score) = spec.pointer_mut("/process/oomScoreAdj") {
        *score = has.oom_score_adj.into();
    }
}

pub(super) fn wrap(value: &Value) -> BTreeMap<String, String> {
    [(INFO.to_owned(), value.to_string())].into()
}
