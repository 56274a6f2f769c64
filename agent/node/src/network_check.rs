//! CNI CHECK of pods that an earlier daemon brought into the network: somebody may have changed it while there was none.
//!
//! Behind the calls, and for people: what plugins are not content with is told in the log and in the pod's verbose status. It does not make
//! a pod unready, since plugins are strict about what pods do not need, and the kubelet would end the pod.

use std::sync::Arc;

use hartpod_cni::CniError;
use tokio::sync::Semaphore;

use crate::node::Node;
use crate::pod::{Command, PodHandle, SandboxState};

/// Pods that are checked at a time: the node has other things to do after a restart.
const AT_ONCE: usize = 2;

/// Checks every pod that is ready.
pub(crate) async fn check_adopted(node: Arc<Node>) {
    let is_joined = |pod: &PodHandle| pod.info.netns.is_some() && pod.snapshot().state == SandboxState::Ready;
    let pods: Vec<_> = node.registry.pods().into_iter().filter(is_joined).collect();
    let places = Arc::new(Semaphore::new(AT_ONCE));
    for pod in pods {
        // Nobody closes it.
        let Ok(place) = places.clone().acquire_owned().await else { return };
        let node = node.clone();
        tokio::spawn(async move {
            check(&node, pod).await;
            drop(place);
        });
    }
}

async fn check(node: &Node, mut pod: PodHandle) {
    let id = pod.info.id.clone();
    let checked = tokio::select! {
        biased;
        // Plugins are not asked two things of one pod at a time: a CHECK ends, killed, before the DEL of a stop.
        _ = pod.snapshot.wait_for(|now| now.state != SandboxState::Ready) => return,
        checked = node.cni.check(id.as_str()) => checked,
    };
    match checked {
        Ok(_) | Err(CniError::Interrupted) => {}
        Err(error) => {
            let warning = crate::chain(&error);
            tracing::warn!(sandbox = %id, name = %pod.info.name, error = warning, "the pod's network is not as it was made");
            pod.tell(Command::NetworkWarning(warning));
        }
    }
}
