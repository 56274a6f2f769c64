//! The states of a container and what moves it between them.

use hartpod_proto::cri::v1 as cri;

/// Where a container is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ContainerState {
    /// Being made; nobody was told its id.
    Creating,
    /// Its process waits to be let go.
    Created,
    /// Its process was let go; whether execve succeeds is not known yet.
    Starting,
    Running,
    Exited,
    /// What is left of it is being deleted.
    Removing,
}

/// What happens to a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ContainerEvent {
    Made,
    StartAsked,
    Started,
    StartFailed,
    Exited,
    RemoveAsked,
    RemoveFailed,
    /// It was not removed, and goes on as before.
    StillWaits,
    StillRuns,
}

/// The event does not fit the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a container that {} cannot be {}", state.is(), event.verb())]
pub(crate) struct Refused {
    pub(crate) state: ContainerState,
    pub(crate) event: ContainerEvent,
}

impl ContainerState {
    /// The state after `event`, or why it cannot happen now.
    ///
    /// Calls to the agent and its reports come by different ways, so a report may overtake the answer to a call: a
    /// container never goes back in its life, and late news is no mistake.
    pub(crate) fn on(self, event: ContainerEvent) -> Result<Self, Refused> {
        use ContainerEvent as E;
        use ContainerState as S;
        match (self, event) {
            (S::Creating, E::Made) => Ok(S::Created),
            (S::Created | S::Starting | S::Running | S::Exited | S::Removing, E::Made) => Ok(self),
            (S::Created, E::StartAsked) => Ok(S::Starting),
            (S::Creating | S::Created | S::Starting | S::Running, E::Started) => Ok(S::Running),
            (S::Exited | S::Removing, E::Started | E::StartFailed | E::Exited) => Ok(self),
            (S::Starting, E::StartFailed) => Ok(S::Exited),
            (S::Creating | S::Created | S::Starting | S::Running, E::Exited) => Ok(S::Exited),
            (S::Created | S::Starting | S::Running | S::Exited | S::Removing, E::RemoveAsked) => {
                Ok(S::Removing)
            }
            (S::Removing, E::RemoveFailed) => Ok(S::Exited),
            (S::Removing, E::StillWaits) => Ok(S::Created),
            (S::Removing, E::StillRuns) => Ok(S::Running),
            (state, event) => Err(Refused { state, event }),
        }
    }

    /// What the kubelet calls it; nothing while it is being made.
    pub(crate) fn to_cri(self) -> Option<cri::ContainerState> {
        match self {
            Self::Creating => None,
            Self::Created | Self::Starting => Some(cri::ContainerState::ContainerCreated),
            Self::Running => Some(cri::ContainerState::ContainerRunning),
            Self::Exited | Self::Removing => Some(cri::ContainerState::ContainerExited),
        }
    }

    /// Whether its process has standard streams to attach to: from before its start on.
    pub(crate) fn has_streams(self) -> bool {
        match self {
            Self::Created | Self::Starting | Self::Running => true,
            Self::Creating | Self::Exited | Self::Removing => false,
        }
    }

    /// In one word, for people.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Exited => "exited",
            Self::Removing => "removing",
        }
    }

    fn is(self) -> &'static str {
        match self {
            Self::Creating => "is being created",
            Self::Created => "is created",
            Self::Starting => "is starting",
            Self::Running => "is running",
            Self::Exited => "has exited",
            Self::Removing => "is being removed",
        }
    }
}

impl ContainerEvent {
    fn verb(self) -> &'static str {
        match self {
            Self::Made => "created",
            Self::StartAsked | Self::Started | Self::StartFailed => "started",
            Self::Exited => "ended",
            Self::RemoveAsked | Self::RemoveFailed | Self::StillWaits | Self::StillRuns => "removed",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::ContainerEvent as E;
    use super::ContainerState::{Created, Creating, Exited, Removing, Running, Starting};

    #[test]
    fn every_pair_of_state_and_event() {
        let no = None;
        let events = [
            E::Made,
            E::StartAsked,
            E::Started,
            E::StartFailed,
            E::Exited,
            E::RemoveAsked,
            E::RemoveFailed,
            E::StillWaits,
            E::StillRuns,
        ];
        let gone = Some(Removing);
        #[rustfmt::skip]
        let table = [
            (Creating, [Some(Created), no, Some(Running), no, Some(Exited), no, no, no, no]),
            (Created, [Some(Created), Some(Starting), Some(Running), no, Some(Exited), gone, no, no, no]),
            (Starting, [Some(Starting), no, Some(Running), Some(Exited), Some(Exited), gone, no, no, no]),
            (Running, [Some(Running), no, Some(Running), no, Some(Exited), gone, no, no, no]),
            (Exited, [Some(Exited), no, Some(Exited), Some(Exited), Some(Exited), gone, no, no, no]),
            (Removing, [gone, no, gone, gone, gone, gone, Some(Exited), Some(Created), Some(Running)]),
        ];
        for (state, row) in table {
            for (event, after) in events.into_iter().zip(row) {
                assert_eq!(state.on(event).ok(), after, "{state:?} on {event:?}");
            }
        }
    }

    #[test]
    fn a_refusal_reads_as_a_sentence() {
        let refused = Running.on(E::StartAsked).unwrap_err();
        assert_eq!(refused.to_string(), "a container that is running cannot be started");
    }
}
