//! The decisions of recovery, without looking at anything.

use hartpod_proto::pod::v1 as agent;

use crate::container::{ContainerState, Exit};
use crate::guest;
use crate::pod::{SandboxState, Word};
use crate::records::{ContainerRecord, PodRecord, PodStage};

/// What was found of a pod.
#[derive(Debug, Clone, Copy)]
pub(super) struct PodFacts {
    /// Neither a reboot nor a new node lies between the record and now.
    pub(super) same_epoch: bool,
    pub(super) agent_runs: bool,
    pub(super) agent_answers: bool,
}

/// What becomes of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PodVerdict {
    /// Never reported, so it may vanish.
    Undo,
    /// Its agent runs and tells.
    Adopt,
    /// Its agent runs and has not told yet: until it does, the pod is what its records say.
    Mute,
    /// Its agent is gone; something else of it may run.
    Lost,
    /// It was up in another life of the node: nothing of it runs.
    Rebooted,
    Stopped,
}

impl PodVerdict {
    pub(super) fn state(self) -> SandboxState {
        match self {
            Self::Adopt | Self::Mute => SandboxState::Ready,
            Self::Undo | Self::Lost | Self::Rebooted => SandboxState::NotReady,
            Self::Stopped => SandboxState::Stopped,
        }
    }

    /// Whether its agent has told.
    pub(super) fn word(self) -> Word {
        if self == Self::Mute { Word::Awaited } else { Word::Heard }
    }

    /// Why it is not ready: `heart` is what has ended of a pod that is lost, `words` what it said.
    pub(super) fn reason(self, heart: &str, words: Option<&str>) -> String {
        match (self, words) {
            (Self::Adopt | Self::Mute | Self::Stopped | Self::Undo, _) => String::new(),
            (Self::Lost, None) => format!("the pod's {heart} ended while hartpod was not running"),
            (Self::Lost, Some(words)) => {
                format!("the pod's {heart} ended while hartpod was not running: {words}")
            }
            (Self::Rebooted, _) => "the node was restarted".to_owned(),
        }
    }
}

/// What a guest tells of a container, in the host's terms: bounded, and by the host's clock as far as that was recorded.
pub(super) fn of_guest(told: &mut agent::ContainerState, record: &ContainerRecord, now: i64) {
    guest::cut(told);
    guest::to_host_time(told, (0, record.started_at), now);
}

pub(super) fn pod(record: &PodRecord, facts: PodFacts) -> PodVerdict {
    match (record.stage, facts) {
        (PodStage::Starting, _) => PodVerdict::Undo,
        (PodStage::Stopped, _) => PodVerdict::Stopped,
        (PodStage::Up, PodFacts { same_epoch: false, .. }) => PodVerdict::Rebooted,
        (PodStage::Up, PodFacts { agent_runs: false, .. }) => PodVerdict::Lost,
        (PodStage::Up, PodFacts { agent_answers: false, .. }) => PodVerdict::Mute,
        (PodStage::Up, _) => PodVerdict::Adopt,
    }
}

/// What becomes of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum ContainerVerdict {
    /// Its CreateContainer never finished.
    Undo,
    Keep(ContainerState, Option<Exit>),
}

/// `known` is what the pod's agent says of it.
pub(super) fn container(
    record: &ContainerRecord,
    pod: PodVerdict,
    known: Option<&agent::ContainerState>,
) -> ContainerVerdict {
    use ContainerVerdict::{Keep, Undo};
    if let Some(exit) = &record.exit {
        let exit = Exit {
            finished_at: exit.finished_at,
            code: exit.exit_code,
            reason: exit.reason.clone(),
            message: exit.message.clone(),
        };
        return Keep(ContainerState::Exited, Some(exit));
    }
    let unseen = |why: &str| Keep(ContainerState::Exited, Some(Exit::unseen(why)));
    match (pod, known) {
        (PodVerdict::Adopt, Some(known)) => match known.phase() {
            agent::Phase::Exited => Keep(ContainerState::Exited, Some(Exit::reported(known))),
            agent::Phase::Running => Keep(ContainerState::Running, None),
            // In a guest its log may not have been begun, and what its streams were to be opened with is forgotten: nobody was told of it, so
            // it is made anew.
            _ if !record.delivered && record.slot.is_some() => Undo,
            agent::Phase::Created | agent::Phase::Unspecified => Keep(ContainerState::Created, None),
        },
        // The agent forgot it, so a removal had begun.
        (PodVerdict::Adopt, None) if record.delivered => unseen("it was being removed when hartpod ended"),
        (PodVerdict::Adopt, None) => Undo,
        (PodVerdict::Mute, _) if record.started_at == 0 => Keep(ContainerState::Created, None),
        (PodVerdict::Mute, _) => Keep(ContainerState::Running, None),
        (PodVerdict::Lost, _) => {
            Keep(ContainerState::Exited, Some(Exit::killed("killed because the pod's agent was gone")))
        }
        (PodVerdict::Rebooted, _) => unseen("the node was restarted"),
        (PodVerdict::Stopped | PodVerdict::Undo, _) => unseen("its end was not recorded"),
    }
}

#[cfg(test)]
mod tests {
    use hartpod_proto::cri::v1 as cri;

    use super::*;
    use crate::epoch::Epoch;
    use crate::records::{ExitRecord, VERSION};

    fn pod_record(stage: PodStage) -> PodRecord {
        PodRecord {
            version: VERSION,
            id: "a".repeat(64).parse().unwrap(),
            stage,
            delivered: true,
            handler: String::new(),
            created_at: 1,
            epoch: Epoch::read_blocking(tempfile::tempdir().unwrap().path()).unwrap(),
            agent: None,
            netns: None,
            ips: Vec::new(),
            config: cri::PodSandboxConfig::default(),
            vmm_uid: None,
            guest: None,
            resources: None,
            selinux_level: None,
        }
    }

    fn container_record(delivered: bool, started_at: i64, exit: Option<i32>) -> ContainerRecord {
        ContainerRecord {
            version: VERSION,
            id: "c".repeat(64).parse().unwrap(),
            delivered,
            created_at: 1,
            started_at,
            exit: exit.map(|exit_code| ExitRecord {
                finished_at: 9,
                exit_code,
                reason: "Error".into(),
                message: String::new(),
            }),
            user: None,
            image_id: "sha256:1".into(),
            image_ref: "sha256:1".into(),
            stop_signal: 15,
            config: cri::ContainerConfig::default(),
            slot: None,
            image_volumes: Vec::new(),
            resources: None,
        }
    }

    #[test]
    fn every_stage_in_every_world() {
        let facts =
            |same_epoch, agent_runs, agent_answers| PodFacts { same_epoch, agent_runs, agent_answers };
        let worlds = [
            facts(true, true, true),
            facts(true, true, false),
            facts(true, false, false),
            facts(false, false, false),
        ];
        use PodVerdict::{Adopt, Lost, Mute, Rebooted, Stopped, Undo};
        let table = [
            (PodStage::Starting, [Undo, Undo, Undo, Undo]),
            (PodStage::Up, [Adopt, Mute, Lost, Rebooted]),
            (PodStage::Stopped, [Stopped, Stopped, Stopped, Stopped]),
        ];
        for (stage, row) in table {
            for (world, verdict) in worlds.into_iter().zip(row) {
                assert_eq!(pod(&pod_record(stage), world), verdict, "{stage:?} in {world:?}");
            }
        }
    }

    #[test]
    fn a_pod_is_ready_when_its_agent_runs() {
        use PodVerdict::{Adopt, Lost, Mute, Rebooted, Stopped, Undo};
        for verdict in [Adopt, Lost, Mute, Rebooted, Stopped, Undo] {
            let ready = matches!(verdict, Adopt | Mute);
            assert_eq!(verdict.state() == SandboxState::Ready, ready, "{verdict:?}");
        }
    }

    fn known(phase: agent::Phase, exit_code: i32) -> agent::ContainerState {
        agent::ContainerState { phase: phase.into(), exit_code, finished_at: 7, ..Default::default() }
    }

    #[test]
    fn the_agent_knows_what_became_of_a_container_meanwhile() {
        let record = container_record(true, 5, None);
        let verdict = |known| container(&record, PodVerdict::Adopt, Some(&known));
        assert_eq!(
            verdict(known(agent::Phase::Running, 0)),
            ContainerVerdict::Keep(ContainerState::Running, None)
        );
        let ContainerVerdict::Keep(state, Some(exit)) = verdict(known(agent::Phase::Exited, 3)) else {
            panic!("no exit");
        };
        assert_eq!((state, exit.code, exit.finished_at), (ContainerState::Exited, 3, 7));
    }

    #[test]
    fn a_container_in_a_guest_whose_creation_was_not_answered_is_made_anew() {
        let verdict = |slot, delivered, phase| {
            let record = ContainerRecord { slot, ..container_record(delivered, 0, None) };
            container(&record, PodVerdict::Adopt, Some(&known(phase, 0)))
        };
        let created = ContainerVerdict::Keep(ContainerState::Created, None);
        assert_eq!(verdict(Some(4), false, agent::Phase::Created), ContainerVerdict::Undo);
        assert_eq!(verdict(Some(4), true, agent::Phase::Created), created);
        assert_eq!(verdict(None, false, agent::Phase::Created), created);
        let running = ContainerVerdict::Keep(ContainerState::Running, None);
        assert_eq!(verdict(Some(4), false, agent::Phase::Running), running);
    }

    #[test]
    fn a_guest_has_neither_a_clock_nor_a_size_that_count() {
        let mut told = agent::ContainerState {
            started_at: 1000,
            finished_at: 1003,
            message: "x".repeat(100_000),
            ..known(agent::Phase::Exited, 3)
        };
        of_guest(&mut told, &container_record(true, 5, None), 20);
        assert_eq!((told.started_at, told.finished_at, told.message.len()), (5, 8, 4096));
        let mut ahead = agent::ContainerState { started_at: 1000, ..known(agent::Phase::Running, 0) };
        of_guest(&mut ahead, &container_record(true, 0, None), 20);
        assert_eq!(ahead.started_at, 20, "it is in the future");
    }

    #[test]
    fn a_reason_names_what_ended_and_what_it_said() {
        let reason = PodVerdict::Lost.reason("guest", Some("the guest's kernel panicked: x"));
        assert_eq!(
            reason,
            "the pod's guest ended while hartpod was not running: the guest's kernel panicked: x"
        );
        assert_eq!(PodVerdict::Adopt.reason("guest", Some("x")), "");
    }

    #[test]
    fn while_the_agent_is_silent_a_container_is_what_its_record_says() {
        for (started_at, state) in [(0, ContainerState::Created), (5, ContainerState::Running)] {
            let record = container_record(true, started_at, None);
            assert_eq!(container(&record, PodVerdict::Mute, None), ContainerVerdict::Keep(state, None));
        }
    }

    #[test]
    fn a_container_that_its_agent_does_not_know_was_being_made_or_removed() {
        let making = container_record(false, 0, None);
        assert_eq!(container(&making, PodVerdict::Adopt, None), ContainerVerdict::Undo);
        let removing = container_record(true, 5, None);
        assert!(matches!(
            container(&removing, PodVerdict::Adopt, None),
            ContainerVerdict::Keep(ContainerState::Exited, Some(_))
        ));
    }

    #[test]
    fn a_recorded_exit_stands_whatever_else_is_found() {
        let record = container_record(true, 5, Some(42));
        for verdict in [PodVerdict::Adopt, PodVerdict::Lost, PodVerdict::Rebooted, PodVerdict::Stopped] {
            let ContainerVerdict::Keep(ContainerState::Exited, Some(exit)) =
                container(&record, verdict, Some(&known(agent::Phase::Running, 0)))
            else {
                panic!("{verdict:?}");
            };
            assert_eq!(exit.code, 42);
        }
    }

    #[test]
    fn nothing_runs_after_a_reboot_or_without_an_agent() {
        let record = container_record(true, 5, None);
        let code = |verdict| match container(&record, verdict, None) {
            ContainerVerdict::Keep(ContainerState::Exited, Some(exit)) => exit.code,
            other => panic!("{other:?}"),
        };
        assert_eq!(code(PodVerdict::Rebooted), 255);
        assert_eq!(code(PodVerdict::Lost), 137);
    }
}
