//! The phases of a container, and which event leads from one to the next.

use hartpod_proto::pod::v1;

/// Where a container is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Its first process sets everything up.
    Creating,
    /// That process waits for the start.
    Created,
    /// It was let go; whether execve works is not known yet.
    Starting,
    /// Its command runs.
    Running,
    /// Init has ended; what is left in its leaf is killed and its output read to the end.
    Exiting,
    /// Nothing of it runs any more.
    Exited,
    /// It is being taken apart, and then forgotten. Late news of it no longer matters.
    Removing,
}

/// What happens to a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// Everything but the start is done.
    Ready,
    /// A start was asked for.
    Start,
    /// execve worked.
    Started,
    /// Setting up, or execve, failed.
    Failed,
    /// Init has ended.
    InitExited,
    /// The leaf is empty and the output is read, or both had their time.
    Settled,
    /// A removal was asked for.
    Remove,
}

/// An event that makes no sense in a phase.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("container is {}", phase.name())]
pub(crate) struct Refused {
    pub(crate) phase: Phase,
    pub(crate) event: Event,
}

impl Phase {
    /// It has a process that uses something.
    pub(crate) fn is_alive(self) -> bool {
        matches!(self, Self::Created | Self::Starting | Self::Running)
    }

    /// The phase after `event`.
    pub(crate) fn on(self, event: Event) -> Result<Self, Refused> {
        match (self, event) {
            (Self::Creating, Event::Ready) => Ok(Self::Created),
            (Self::Created, Event::Start) => Ok(Self::Starting),
            (Self::Starting, Event::Started) => Ok(Self::Running),
            (Self::Created | Self::Running, Event::InitExited) | (Self::Starting, Event::Failed) => {
                Ok(Self::Exiting)
            }
            (Self::Exiting, Event::Settled) => Ok(Self::Exited),
            // A container that was never made leaves nothing to look at.
            (Self::Creating, Event::Failed) | (_, Event::Remove) => Ok(Self::Removing),
            (
                Self::Removing,
                Event::Ready | Event::Started | Event::Failed | Event::InitExited | Event::Settled,
            ) => Ok(Self::Removing),
            _ => Err(Refused { phase: self, event }),
        }
    }

    /// Whether an exec may begin.
    pub(crate) fn is_running(self) -> bool {
        self == Self::Running
    }

    /// What the node agent is told; nothing while there is nothing to tell.
    pub(crate) fn published(self) -> Option<v1::Phase> {
        match self {
            Self::Creating | Self::Removing => None,
            Self::Created | Self::Starting => Some(v1::Phase::Created),
            Self::Running | Self::Exiting => Some(v1::Phase::Running),
            Self::Exited => Some(v1::Phase::Exited),
        }
    }

    /// For messages: `container is running`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Creating => "being created",
            Self::Created => "created and not started",
            Self::Starting => "being started",
            Self::Running => "running",
            Self::Exiting => "exiting",
            Self::Exited => "exited",
            Self::Removing => "being removed",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every pair: rows are phases, columns events; `-` is refused.
    #[test]
    fn every_pair_of_phase_and_event() {
        use Event::{Failed, InitExited, Ready, Remove, Settled, Start, Started};
        use Phase::{Created, Creating, Exited, Exiting, Removing, Running, Starting};
        const EVENTS: [Event; 7] = [Ready, Start, Started, Failed, InitExited, Settled, Remove];
        let no = None;
        #[rustfmt::skip]
        let table = [
            //         Ready           Start           Started         Failed          InitExited      Settled         Remove
            (Creating, [Some(Created),  no,             no,             Some(Removing), no,             no,             Some(Removing)]),
            (Created,  [no,             Some(Starting), no,             no,             Some(Exiting),  no,             Some(Removing)]),
            (Starting, [no,             no,             Some(Running),  Some(Exiting),  no,             no,             Some(Removing)]),
            (Running,  [no,             no,             no,             no,             Some(Exiting),  no,             Some(Removing)]),
            (Exiting,  [no,             no,             no,             no,             no,             Some(Exited),   Some(Removing)]),
            (Exited,   [no,             no,             no,             no,             no,             no,             Some(Removing)]),
            (Removing, [Some(Removing), no,             Some(Removing), Some(Removing), Some(Removing), Some(Removing), Some(Removing)]),
        ];
        for (phase, row) in table {
            for (event, expected) in EVENTS.into_iter().zip(row) {
                assert_eq!(phase.on(event), expected.ok_or(Refused { phase, event }), "{phase:?} {event:?}");
            }
        }
    }

    #[test]
    fn refusals_say_what_the_container_is() {
        assert_eq!(Phase::Exited.on(Event::Start).unwrap_err().to_string(), "container is exited");
    }
}
