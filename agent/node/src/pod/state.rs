//! The states of a pod sandbox and what moves it between them.

/// Where a sandbox is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SandboxState {
    /// Being brought up; nobody was told its id.
    Starting,
    /// Its agent runs and takes containers.
    Ready,
    /// Its agent runs and does not answer: it has not said a word to this daemon yet, or its guest hangs. What became of its containers is not
    /// known. It is ready again as soon as the agent answers.
    Silent,
    /// It cannot take containers and still holds resources: the agent is gone, or a stop failed.
    NotReady,
    /// Its resources are being given back.
    Stopping,
    /// Nothing of it is left but records and writable layers.
    Stopped,
    /// Records and writable layers are being deleted.
    Removing,
}

/// What happens to a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SandboxEvent {
    /// Everything that a ready pod has is there.
    Up,
    /// Bringing it up failed, and so did giving back what was made.
    UpFailed,
    /// The pod agent ended or cannot be reached any more.
    AgentLost,
    /// An agent that an earlier daemon started, or the guest that it is in, does not answer.
    AgentSilent,
    /// It answers after all.
    AgentHeard,
    StopAsked,
    StopDone,
    StopFailed,
    RemoveAsked,
    RemoveFailed,
}

/// The event does not fit the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a sandbox that is {} cannot be {}", state.adjective(), event.verb())]
pub(crate) struct Refused {
    pub(crate) state: SandboxState,
    pub(crate) event: SandboxEvent,
}

impl SandboxState {
    /// Its agent runs, whether or not it answers.
    pub(crate) fn is_up(self) -> bool {
        matches!(self, Self::Ready | Self::Silent)
    }

    /// The state after `event`, or why it cannot happen now.
    pub(crate) fn on(self, event: SandboxEvent) -> Result<Self, Refused> {
        use SandboxEvent as E;
        use SandboxState as S;
        match (self, event) {
            (S::Starting, E::Up) => Ok(S::Ready),
            (S::Starting, E::UpFailed) => Ok(S::NotReady),
            // Whoever brings it up finds out by itself.
            (S::Starting, E::AgentLost) => Ok(S::Starting),
            (S::Ready | S::Silent | S::NotReady, E::AgentLost) => Ok(S::NotReady),
            (S::Ready | S::Silent, E::AgentSilent) => Ok(S::Silent),
            (S::Ready | S::Silent, E::AgentHeard) => Ok(S::Ready),
            // Its word comes too late to make a difference.
            (S::NotReady | S::Stopping | S::Stopped | S::Removing, E::AgentSilent | E::AgentHeard) => {
                Ok(self)
            }
            (S::Ready | S::Silent | S::NotReady | S::Stopping, E::StopAsked) => Ok(S::Stopping),
            (S::Stopping, E::AgentLost) => Ok(S::Stopping),
            (S::Stopping, E::StopDone) => Ok(S::Stopped),
            (S::Stopping, E::StopFailed) => Ok(S::NotReady),
            (S::Stopped, E::StopAsked | E::AgentLost) => Ok(S::Stopped),
            (S::Stopped | S::Removing, E::RemoveAsked) => Ok(S::Removing),
            (S::Removing, E::StopAsked | E::AgentLost) => Ok(S::Removing),
            (S::Removing, E::RemoveFailed) => Ok(S::Stopped),
            (state, event) => Err(Refused { state, event }),
        }
    }

    /// As it reads in a sentence.
    pub(crate) fn adjective(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Silent | Self::NotReady => "not ready",
            Self::Stopping => "stopping",
            Self::Stopped => "stopped",
            Self::Removing => "being removed",
        }
    }
}

impl SandboxEvent {
    fn verb(self) -> &'static str {
        match self {
            Self::Up | Self::UpFailed => "brought up",
            Self::AgentLost => "left by its agent",
            Self::AgentSilent | Self::AgentHeard => "taken over",
            Self::StopAsked | Self::StopDone | Self::StopFailed => "stopped",
            Self::RemoveAsked | Self::RemoveFailed => "removed",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::SandboxEvent::{
        AgentHeard, AgentLost, AgentSilent, RemoveAsked, RemoveFailed, StopAsked, StopDone, StopFailed, Up,
        UpFailed,
    };
    use super::SandboxState::{NotReady, Ready, Removing, Silent, Starting, Stopped, Stopping};

    /// Every pair: rows are states, columns events.
    #[test]
    fn every_pair_of_state_and_event() {
        let no = None;
        let bringing_up = [Up, UpFailed];
        let agent = [AgentLost, AgentSilent, AgentHeard];
        let stop = [StopAsked, StopDone, StopFailed];
        let removal = [RemoveAsked, RemoveFailed];
        #[rustfmt::skip]
        let table = [
            (Starting, [Some(Ready), Some(NotReady)], [Some(Starting), no, no], [no, no, no], [no, no]),
            (Ready, [no, no], [Some(NotReady), Some(Silent), Some(Ready)], [Some(Stopping), no, no], [no, no]),
            (Silent, [no, no], [Some(NotReady), Some(Silent), Some(Ready)], [Some(Stopping), no, no], [no, no]),
            (NotReady, [no, no], [Some(NotReady), Some(NotReady), Some(NotReady)], [Some(Stopping), no, no], [no, no]),
            (Stopping, [no, no], [Some(Stopping), Some(Stopping), Some(Stopping)], [Some(Stopping), Some(Stopped), Some(NotReady)], [no, no]),
            (Stopped, [no, no], [Some(Stopped), Some(Stopped), Some(Stopped)], [Some(Stopped), no, no], [Some(Removing), no]),
            (Removing, [no, no], [Some(Removing), Some(Removing), Some(Removing)], [Some(Removing), no, no], [Some(Removing), Some(Stopped)]),
        ];
        for (state, on_bringing_up, on_agent, on_stop, on_removal) in table {
            let events = bringing_up.into_iter().chain(agent).chain(stop).chain(removal);
            let after = on_bringing_up.into_iter().chain(on_agent).chain(on_stop).chain(on_removal);
            for (event, after) in events.zip(after) {
                assert_eq!(state.on(event).ok(), after, "{state:?} on {event:?}");
            }
        }
    }

    #[test]
    fn a_refusal_reads_as_a_sentence() {
        let refused = Starting.on(StopAsked).unwrap_err();
        assert_eq!(refused.to_string(), "a sandbox that is starting cannot be stopped");
    }
}
