//! Which pods and containers a list call asks for.

use std::collections::BTreeMap;

use hartpod_proto::cri::v1 as cri;

use crate::container::ContainerSnapshot;
use crate::pod::PodSnapshot;

/// The pod is listed at all, and the filter matches it. An id matches by prefix, as people type it.
pub(crate) fn pod(filter: Option<&cri::PodSandboxFilter>, pod: &PodSnapshot) -> bool {
    let Some(state) = pod.cri_state() else { return false };
    let Some(filter) = filter else { return true };
    pod.info.id.as_str().starts_with(&filter.id)
        && filter.state.as_ref().is_none_or(|wanted| wanted.state == state as i32)
        && has_labels(&pod.info.config.labels, &filter.label_selector)
}

/// The container is listed at all, and the filter matches it.
pub(crate) fn container(
    filter: Option<&cri::ContainerFilter>,
    pod: &PodSnapshot,
    container: &ContainerSnapshot,
) -> bool {
    let Some(state) = container.state.to_cri() else { return false };
    let Some(filter) = filter else { return true };
    container.info.id.as_str().starts_with(&filter.id)
        && pod.info.id.as_str().starts_with(&filter.pod_sandbox_id)
        && filter.state.as_ref().is_none_or(|wanted| wanted.state == state as i32)
        && has_labels(&container.info.config.labels, &filter.label_selector)
}

fn has_labels(labels: &BTreeMap<String, String>, wanted: &BTreeMap<String, String>) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::{ContainerState, test_container};
    use crate::pod::{SandboxState, test_pod};

    fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
    }

    #[test]
    fn a_pod_matches_by_id_prefix_state_and_labels() {
        let ready = test_pod("ab", SandboxState::Ready, &[("app", "web"), ("tier", "front")]);
        let filter = |id: &str, state: Option<cri::PodSandboxState>, wanted: &[(&str, &str)]| {
            let filter = cri::PodSandboxFilter {
                id: id.to_owned(),
                state: state.map(|s| cri::PodSandboxStateValue { state: s as i32 }),
                label_selector: labels(wanted),
            };
            pod(Some(&filter), &ready)
        };
        assert!(pod(None, &ready));
        assert!(filter("", None, &[]));
        assert!(filter("abab", Some(cri::PodSandboxState::SandboxReady), &[("app", "web")]));
        assert!(!filter("ba", None, &[]));
        assert!(!filter("", Some(cri::PodSandboxState::SandboxNotready), &[]));
        assert!(!filter("", None, &[("app", "web"), ("tier", "back")]));
        assert!(!filter("", None, &[("missing", "")]));
    }

    #[test]
    fn what_is_being_made_is_not_listed() {
        assert!(!pod(None, &test_pod("ab", SandboxState::Starting, &[])));
        let ready = test_pod("ab", SandboxState::Ready, &[]);
        assert!(!container(None, &ready, &test_container("cd", ContainerState::Creating, &[])));
    }

    #[test]
    fn a_container_matches_by_id_pod_state_and_labels() {
        let in_pod = test_pod("ab", SandboxState::Ready, &[]);
        let running = test_container("cd", ContainerState::Running, &[("a", "1")]);
        let filter = |f: cri::ContainerFilter| container(Some(&f), &in_pod, &running);
        assert!(filter(cri::ContainerFilter::default()));
        assert!(filter(cri::ContainerFilter { id: "cdc".into(), ..Default::default() }));
        assert!(!filter(cri::ContainerFilter { id: "ab".into(), ..Default::default() }));
        assert!(filter(cri::ContainerFilter { pod_sandbox_id: "aba".into(), ..Default::default() }));
        assert!(!filter(cri::ContainerFilter { pod_sandbox_id: "cd".into(), ..Default::default() }));
        let state = |s: cri::ContainerState| Some(cri::ContainerStateValue { state: s as i32 });
        assert!(filter(cri::ContainerFilter {
            state: state(cri::ContainerState::ContainerRunning),
            ..Default::default()
        }));
        assert!(!filter(cri::ContainerFilter {
            state: state(cri::ContainerState::ContainerCreated),
            ..Default::default()
        }));
        assert!(!filter(cri::ContainerFilter {
            label_selector: labels(&[("a", "2")]),
            ..Default::default()
        }));
    }
}
