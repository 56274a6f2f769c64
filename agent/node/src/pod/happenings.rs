//! Which events the changes of a pod are. They are told once what changed is in the records: a listener who asks after a crash is not told less.

use std::collections::BTreeMap;
use std::sync::Arc;

use hartpod_proto::cri::v1 as cri;

use super::PodSnapshot;
use super::task::PodTask;
use crate::container::ContainerSnapshot;
use crate::events::Happened;

impl PodTask {
    /// Notes what is different from what was published before.
    pub(super) fn note_changes(&mut self, next: &PodSnapshot) {
        let noted = changes(&self.snapshot.borrow(), next);
        self.happened.extend(noted);
    }

    /// Tells what was noted, unless a record is behind.
    pub(super) fn tell_happened(&mut self) {
        if self.happened.is_empty() || self.recording {
            return;
        }
        let pod = self.snapshot.borrow().clone();
        for (id, happened) in std::mem::take(&mut self.happened) {
            self.node.events.tell(id, happened, &pod);
        }
    }

    /// The pod is gone, and all that was in it.
    pub(super) fn tell_deleted(&mut self) {
        self.recording = false;
        self.tell_happened();
        let pod = self.snapshot.borrow().clone();
        if pod.cri_state().is_none() {
            return;
        }
        for container in pod.containers.iter().filter(|c| c.state.to_cri().is_some()) {
            self.node.events.tell(container.info.id.to_string(), Happened::Deleted, &pod);
        }
        self.node.events.tell(pod.info.id.to_string(), Happened::Deleted, &pod);
    }
}

/// What happened between two moments: to the sandbox when it begins, then to containers, then to the sandbox when it ends.
fn changes(before: &PodSnapshot, after: &PodSnapshot) -> Vec<(String, Happened)> {
    use cri::PodSandboxState::{SandboxNotready, SandboxReady};

    let sandbox = after.info.id.to_string();
    let (begins, ends): (&[Happened], &[Happened]) = match (before.cri_state(), after.cri_state()) {
        (None, Some(SandboxReady)) => (&[Happened::Created, Happened::Started], &[]),
        (None, Some(SandboxNotready)) => (&[Happened::Created], &[Happened::Stopped]),
        (Some(SandboxNotready), Some(SandboxReady)) => (&[Happened::Started], &[]),
        (Some(SandboxReady), Some(SandboxNotready)) => (&[], &[Happened::Stopped]),
        _ => (&[], &[]),
    };
    let mut told: Vec<_> = begins.iter().map(|h| (sandbox.clone(), *h)).collect();
    let mut left: BTreeMap<&str, &Arc<ContainerSnapshot>> =
        before.containers.iter().map(|c| (c.info.id.as_str(), c)).collect();
    for container in &after.containers {
        let id = container.info.id.as_str();
        let was = left.remove(id).and_then(|c| c.state.to_cri());
        told.extend(steps(was, container.state.to_cri()).iter().map(|h| (id.to_owned(), *h)));
    }
    let gone = left.values().filter(|c| c.state.to_cri().is_some());
    told.extend(gone.map(|c| (c.info.id.to_string(), Happened::Deleted)));
    told.extend(ends.iter().map(|h| (sandbox.clone(), *h)));
    told
}

/// What a container went through from one state to another, those included that nobody saw.
fn steps(was: Option<cri::ContainerState>, is: Option<cri::ContainerState>) -> &'static [Happened] {
    use Happened::{Created, Started, Stopped};
    use cri::ContainerState::{ContainerCreated, ContainerExited, ContainerRunning};

    match (was, is) {
        (None, Some(ContainerCreated)) => &[Created],
        (None, Some(ContainerRunning)) => &[Created, Started],
        (None, Some(ContainerExited)) => &[Created, Stopped],
        (Some(ContainerCreated), Some(ContainerRunning)) => &[Started],
        (Some(ContainerCreated | ContainerRunning), Some(ContainerExited)) => &[Stopped],
        _ => &[],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::container::{ContainerState, test_container};
    use crate::pod::{SandboxState, test_pod};

    fn pod(state: SandboxState, containers: &[(&str, ContainerState)]) -> PodSnapshot {
        let mut pod = test_pod("ab", state, &[]);
        pod.containers =
            containers.iter().map(|(id, state)| Arc::new(test_container(id, *state, &[]))).collect();
        pod
    }

    fn told(before: &PodSnapshot, after: &PodSnapshot) -> Vec<(String, Happened)> {
        changes(before, after).into_iter().map(|(id, happened)| (id[..2].to_owned(), happened)).collect()
    }

    fn expected(events: &[(&str, Happened)]) -> Vec<(String, Happened)> {
        events.iter().map(|(id, happened)| ((*id).to_owned(), *happened)).collect()
    }

    #[test]
    fn a_life_is_told_step_by_step() {
        use Happened::{Created, Deleted, Started, Stopped};
        let none = pod(SandboxState::Starting, &[]);
        let ready = |containers: &[_]| pod(SandboxState::Ready, containers);
        let states = [
            (none, ready(&[]), expected(&[("ab", Created), ("ab", Started)])),
            (ready(&[]), ready(&[("cd", ContainerState::Creating)]), Vec::new()),
            (
                ready(&[("cd", ContainerState::Creating)]),
                ready(&[("cd", ContainerState::Created)]),
                expected(&[("cd", Created)]),
            ),
            (
                ready(&[("cd", ContainerState::Created)]),
                ready(&[("cd", ContainerState::Running)]),
                expected(&[("cd", Started)]),
            ),
            (
                ready(&[("cd", ContainerState::Running)]),
                ready(&[("cd", ContainerState::Running)]),
                Vec::new(),
            ),
            (
                ready(&[("cd", ContainerState::Running)]),
                ready(&[("cd", ContainerState::Exited)]),
                expected(&[("cd", Stopped)]),
            ),
            (ready(&[("cd", ContainerState::Exited)]), ready(&[]), expected(&[("cd", Deleted)])),
        ];
        for (before, after, events) in states {
            assert_eq!(told(&before, &after), events);
        }
    }

    #[test]
    fn what_ends_with_its_pod_ends_before_it() {
        let before =
            pod(SandboxState::Ready, &[("cd", ContainerState::Running), ("ef", ContainerState::Exited)]);
        let after =
            pod(SandboxState::NotReady, &[("cd", ContainerState::Exited), ("ef", ContainerState::Exited)]);
        assert_eq!(told(&before, &after), expected(&[("cd", Happened::Stopped), ("ab", Happened::Stopped)]));
        let again = pod(SandboxState::Silent, &[]);
        assert_eq!(
            told(&after, &pod(SandboxState::Stopped, &[("cd", ContainerState::Exited)])),
            expected(&[("ef", Happened::Deleted)])
        );
        assert_eq!(told(&again, &pod(SandboxState::Ready, &[])), expected(&[("ab", Happened::Started)]));
    }

    #[test]
    fn a_state_that_was_skipped_is_told() {
        let before = pod(SandboxState::Ready, &[]);
        let after = pod(SandboxState::Ready, &[("cd", ContainerState::Exited)]);
        assert_eq!(told(&before, &after), expected(&[("cd", Happened::Created), ("cd", Happened::Stopped)]));
        // One whose making failed was never there.
        let half = pod(SandboxState::Ready, &[("cd", ContainerState::Creating)]);
        assert_eq!(told(&half, &before), Vec::new());
    }
}
