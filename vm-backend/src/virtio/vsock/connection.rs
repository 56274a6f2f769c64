//! What state a connection is in, and what each event does to it: no sockets, no queues, no clock.
//!
//! Either side can end each direction on its own. The guest says so with SHUTDOWN and its flags, a client with shutdown(2) or close(2);
//! what one of them says is passed on to the other. When both directions are over the guest answers the last SHUTDOWN with RST, or gets
//! one from here if the last SHUTDOWN was its own.

use std::ops::BitOr;

/// Which of its directions a side has ended: the flags of SHUTDOWN (VIRTIO 1.2 section 5.10.6.5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Ends(u8);

impl Ends {
    pub(super) const NONE: Self = Self(0);
    /// It receives no more.
    pub(super) const RECEIVE: Self = Self(1);
    /// It sends no more.
    pub(super) const SEND: Self = Self(2);
    pub(super) const BOTH: Self = Self(3);

    /// From the flags of a packet; unknown ones are ignored.
    pub(super) fn from_flags(flags: u32) -> Self {
        Self((flags & 3) as u8)
    }

    pub(super) fn flags(self) -> u32 {
        u32::from(self.0)
    }

    pub(super) fn has(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

impl BitOr for Ends {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum State {
    /// The guest was sent REQUEST and has not answered.
    Requesting,
    /// Bytes flow in each direction that nobody has ended: `told` is what the guest was told, `heard` what it said.
    Open { told: Ends, heard: Ends },
    /// The client is gone, the guest was told so and has yet to answer with RST.
    Leaving,
    /// The guest is gone, the client has yet to take the last bytes.
    Draining,
    /// Over.
    Gone,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// The guest accepted.
    Response,
    /// The guest wants nothing to do with the connection (any more).
    Reset,
    Shutdown(Ends),
    /// The guest sent bytes.
    Data,
    /// The client sends no more, and everything it sent is with the guest.
    ClientEnded,
    /// The client takes no more; what was kept for it is thrown away.
    ClientRefuses,
    /// The client has taken everything that was kept for it.
    Drained,
    /// The guest took too long over an answer, or over what a client left that is gone.
    Timeout,
    /// The guest sent what no guest may send.
    Violation,
}

/// Whether bytes of the guest wait for the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Backlog {
    Empty,
    Waiting,
}

/// What the guest is to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Tell {
    Nothing,
    Shutdown(Ends),
    Reset,
}

/// What is to be done with the client's socket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ClientStep {
    Nothing,
    /// Say OK: the stream begins.
    Answer,
    /// No more bytes come for it.
    EndOutput,
    /// No more bytes of it are taken.
    EndInput,
    Close,
}

/// The outcome of an event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Move {
    pub(super) state: State,
    pub(super) tell: Tell,
    pub(super) client: ClientStep,
}

impl Move {
    fn stay(state: State) -> Self {
        Self { state, tell: Tell::Nothing, client: ClientStep::Nothing }
    }

    /// The guest broke the protocol, or is too late.
    fn abort() -> Self {
        Self { state: State::Gone, tell: Tell::Reset, client: ClientStep::Close }
    }

    /// The guest is gone: the client gets what is left.
    fn without_guest(tell: Tell, backlog: Backlog) -> Self {
        match backlog {
            Backlog::Waiting => Self { state: State::Draining, tell, client: ClientStep::EndInput },
            Backlog::Empty => Self { state: State::Gone, tell, client: ClientStep::Close },
        }
    }
}

impl State {
    /// The state of a connection whose REQUEST is to be sent.
    pub(super) const NEW: Self = Self::Requesting;

    /// Bytes of the client may go to the guest.
    pub(super) fn takes_input(self) -> bool {
        matches!(self, Self::Open { told, heard } if !told.has(Ends::SEND) && !heard.has(Ends::RECEIVE))
    }

    /// Bytes of the guest may go to the client.
    pub(super) fn gives_output(self) -> bool {
        matches!(self, Self::Open { told, .. } if !told.has(Ends::RECEIVE)) || self == Self::Draining
    }

    /// The guest still knows the connection.
    pub(super) fn has_guest(self) -> bool {
        !matches!(self, Self::Draining | Self::Gone)
    }

    pub(super) fn on(self, event: Event, backlog: Backlog) -> Move {
        match self {
            Self::Requesting => Self::requesting(event),
            Self::Open { told, heard } => Self::open(told, heard, event, backlog),
            Self::Leaving => Self::leaving(event),
            Self::Draining => Self::draining(event),
            Self::Gone => Move::stay(self),
        }
    }

    fn requesting(event: Event) -> Move {
        match event {
            Event::Response => Move {
                state: Self::Open { told: Ends::NONE, heard: Ends::NONE },
                tell: Tell::Nothing,
                client: ClientStep::Answer,
            },
            Event::Reset => Move { state: Self::Gone, tell: Tell::Nothing, client: ClientStep::Close },
            Event::Shutdown(_) | Event::Data | Event::ClientRefuses | Event::Timeout | Event::Violation => {
                Move::abort()
            }
            Event::ClientEnded | Event::Drained => Move::stay(Self::Requesting),
        }
    }

    fn open(told: Ends, heard: Ends, event: Event, backlog: Backlog) -> Move {
        // What a client refuses is not kept for it.
        let backlog = if told.has(Ends::RECEIVE) { Backlog::Empty } else { backlog };
        match event {
            Event::Response | Event::Violation | Event::Timeout => Move::abort(),
            Event::Data if heard.has(Ends::SEND) => Move::abort(),
            Event::Data => Move::stay(Self::Open { told, heard }),
            Event::Reset => Move::without_guest(Tell::Nothing, backlog),
            Event::Shutdown(ends) => {
                let client = if ends.has(Ends::SEND) && backlog == Backlog::Empty {
                    ClientStep::EndOutput
                } else if ends.has(Ends::RECEIVE) {
                    ClientStep::EndInput
                } else {
                    ClientStep::Nothing
                };
                Self::ended(told, heard | ends, backlog, Tell::Nothing, client)
            }
            Event::ClientEnded => {
                let told = told | Ends::SEND;
                Self::ended(told, heard, backlog, Tell::Shutdown(told), ClientStep::Nothing)
            }
            Event::ClientRefuses if told.has(Ends::RECEIVE) => Move::stay(Self::Open { told, heard }),
            Event::ClientRefuses => {
                let told = told | Ends::RECEIVE;
                Self::ended(told, heard, Backlog::Empty, Tell::Shutdown(told), ClientStep::Nothing)
            }
            Event::Drained if heard.has(Ends::SEND) => {
                Self::ended(told, heard, Backlog::Empty, Tell::Nothing, ClientStep::EndOutput)
            }
            Event::Drained => Move::stay(Self::Open { told, heard }),
        }
    }

    /// Some direction ended: is that the end of the connection?
    fn ended(told: Ends, heard: Ends, backlog: Backlog, tell: Tell, client: ClientStep) -> Move {
        if heard == Ends::BOTH {
            return Move::without_guest(Tell::Reset, backlog);
        }
        let no_input = told.has(Ends::SEND) || heard.has(Ends::RECEIVE);
        let no_output = told.has(Ends::RECEIVE) || (heard.has(Ends::SEND) && backlog == Backlog::Empty);
        if no_input && no_output {
            return Move {
                state: Self::Leaving,
                tell: Tell::Shutdown(Ends::BOTH),
                client: ClientStep::Close,
            };
        }
        Move { state: Self::Open { told, heard }, tell, client }
    }

    fn leaving(event: Event) -> Move {
        let gone = |tell| Move { state: Self::Gone, tell, client: ClientStep::Nothing };
        match event {
            Event::Reset => gone(Tell::Nothing),
            // Both sides left at once, or the guest is confused, or it never answers.
            Event::Shutdown(Ends::BOTH) | Event::Response | Event::Timeout | Event::Violation => {
                gone(Tell::Reset)
            }
            // It was on the way.
            Event::Shutdown(_) | Event::Data => Move::stay(Self::Leaving),
            Event::ClientEnded | Event::ClientRefuses | Event::Drained => Move::stay(Self::Leaving),
        }
    }

    fn draining(event: Event) -> Move {
        match event {
            Event::Drained | Event::ClientRefuses => {
                Move { state: Self::Gone, tell: Tell::Nothing, client: ClientStep::Close }
            }
            _ => Move::stay(Self::Draining),
        }
    }
}

#[cfg(test)]
mod tests;
