//! Every state with every event.

use super::*;

const ALL_ENDS: [Ends; 4] = [Ends::NONE, Ends::RECEIVE, Ends::SEND, Ends::BOTH];

fn open(told: Ends, heard: Ends) -> State {
    State::Open { told, heard }
}

fn to(state: State, tell: Tell, client: ClientStep) -> Move {
    Move { state, tell, client }
}

fn all_states() -> Vec<State> {
    let mut states = vec![State::Requesting, State::Leaving, State::Draining, State::Gone];
    for told in ALL_ENDS {
        states.extend(ALL_ENDS.map(|heard| open(told, heard)));
    }
    states
}

fn all_events() -> Vec<Event> {
    let mut events = vec![Event::Response, Event::Reset, Event::Data, Event::ClientEnded];
    events.extend([Event::ClientRefuses, Event::Drained, Event::Timeout, Event::Violation]);
    events.extend(ALL_ENDS.map(Event::Shutdown));
    events
}

#[test]
fn moves_are_those_of_the_table() {
    use Backlog::{Empty, Waiting};
    use ClientStep::{Answer, Close, EndInput, EndOutput, Nothing};
    use State::{Draining, Gone, Leaving, Requesting};
    const N: Ends = Ends::NONE;
    const R: Ends = Ends::RECEIVE;
    const S: Ends = Ends::SEND;
    const B: Ends = Ends::BOTH;
    let both = Tell::Shutdown(B);
    let table = [
        // The guest answers, or does not.
        (Requesting, Event::Response, Empty, to(open(N, N), Tell::Nothing, Answer)),
        (Requesting, Event::Reset, Empty, to(Gone, Tell::Nothing, Close)),
        (Requesting, Event::Timeout, Empty, to(Gone, Tell::Reset, Close)),
        (Requesting, Event::Data, Empty, to(Gone, Tell::Reset, Close)),
        (Requesting, Event::Shutdown(B), Empty, to(Gone, Tell::Reset, Close)),
        (Requesting, Event::ClientRefuses, Empty, to(Gone, Tell::Reset, Close)),
        (Requesting, Event::ClientEnded, Empty, to(Requesting, Tell::Nothing, Nothing)),
        // Bytes flow.
        (open(N, N), Event::Data, Waiting, to(open(N, N), Tell::Nothing, Nothing)),
        (open(S, N), Event::Data, Empty, to(open(S, N), Tell::Nothing, Nothing)),
        (open(N, S), Event::Data, Empty, to(Gone, Tell::Reset, Close)),
        (open(N, N), Event::Response, Empty, to(Gone, Tell::Reset, Close)),
        (open(N, N), Event::Violation, Waiting, to(Gone, Tell::Reset, Close)),
        (open(R, N), Event::Timeout, Empty, to(Gone, Tell::Reset, Close)),
        (Leaving, Event::Violation, Empty, to(Gone, Tell::Reset, Nothing)),
        (open(N, N), Event::Drained, Empty, to(open(N, N), Tell::Nothing, Nothing)),
        // The client ends its direction, the guest answers and leaves.
        (open(N, N), Event::ClientEnded, Empty, to(open(S, N), Tell::Shutdown(S), Nothing)),
        (open(S, N), Event::Shutdown(B), Empty, to(Gone, Tell::Reset, Close)),
        (open(S, N), Event::Shutdown(B), Waiting, to(Draining, Tell::Reset, EndInput)),
        (open(S, N), Event::Shutdown(S), Empty, to(Leaving, both, Close)),
        (open(S, N), Event::Shutdown(S), Waiting, to(open(S, S), Tell::Nothing, Nothing)),
        (open(S, S), Event::Drained, Empty, to(Leaving, both, Close)),
        // The guest ends its direction, the client goes on.
        (open(N, N), Event::Shutdown(S), Empty, to(open(N, S), Tell::Nothing, EndOutput)),
        (open(N, N), Event::Shutdown(S), Waiting, to(open(N, S), Tell::Nothing, Nothing)),
        (open(N, S), Event::Drained, Empty, to(open(N, S), Tell::Nothing, EndOutput)),
        (open(N, S), Event::ClientEnded, Empty, to(Leaving, both, Close)),
        (open(N, S), Event::ClientEnded, Waiting, to(open(S, S), Tell::Shutdown(S), Nothing)),
        (open(N, S), Event::Shutdown(R), Empty, to(Gone, Tell::Reset, Close)),
        // The guest reads no more.
        (open(N, N), Event::Shutdown(R), Empty, to(open(N, R), Tell::Nothing, EndInput)),
        (open(N, R), Event::ClientRefuses, Empty, to(Leaving, both, Close)),
        // The client closes.
        (open(N, N), Event::ClientRefuses, Waiting, to(open(R, N), Tell::Shutdown(R), Nothing)),
        (open(R, N), Event::ClientRefuses, Empty, to(open(R, N), Tell::Nothing, Nothing)),
        (open(R, N), Event::ClientEnded, Empty, to(Leaving, both, Close)),
        (Leaving, Event::Reset, Empty, to(Gone, Tell::Nothing, Nothing)),
        (Leaving, Event::Shutdown(B), Empty, to(Gone, Tell::Reset, Nothing)),
        (Leaving, Event::Shutdown(S), Empty, to(Leaving, Tell::Nothing, Nothing)),
        (Leaving, Event::Data, Empty, to(Leaving, Tell::Nothing, Nothing)),
        (Leaving, Event::Timeout, Empty, to(Gone, Tell::Reset, Nothing)),
        // The guest closes, or resets.
        (open(N, N), Event::Shutdown(B), Empty, to(Gone, Tell::Reset, Close)),
        (open(N, N), Event::Shutdown(B), Waiting, to(Draining, Tell::Reset, EndInput)),
        (open(N, N), Event::Reset, Empty, to(Gone, Tell::Nothing, Close)),
        (open(N, N), Event::Reset, Waiting, to(Draining, Tell::Nothing, EndInput)),
        (Draining, Event::Drained, Empty, to(Gone, Tell::Nothing, Close)),
        (Draining, Event::ClientRefuses, Empty, to(Gone, Tell::Nothing, Close)),
        (Draining, Event::Data, Waiting, to(Draining, Tell::Nothing, Nothing)),
    ];
    for (state, event, backlog, expected) in table {
        assert_eq!(state.on(event, backlog), expected, "{state:?} on {event:?}, backlog {backlog:?}");
    }
}

/// What must hold for every pair, whether or not the table names it.
#[test]
fn no_move_opens_what_was_ended_or_leaves_someone_untold() {
    for (state, event, backlog) in all_states().into_iter().flat_map(|state| {
        all_events().into_iter().flat_map(move |event| {
            [Backlog::Empty, Backlog::Waiting].map(move |backlog| (state, event, backlog))
        })
    }) {
        let next = state.on(event, backlog);
        let what = format!("{state:?} on {event:?}, backlog {backlog:?}: {next:?}");
        if state != State::Requesting {
            assert!(state.takes_input() || !next.state.takes_input(), "{what}");
            assert!(state.gives_output() || !next.state.gives_output(), "{what}");
        }
        if state == State::Gone {
            assert_eq!(next, to(State::Gone, Tell::Nothing, ClientStep::Nothing), "{what}");
        }
        // A connection that the guest knows ends for it by its own reset or by one from here.
        if state.has_guest() && !next.state.has_guest() {
            assert!(event == Event::Reset || next.tell == Tell::Reset, "{what}");
        }
        // Nothing is kept for a client whose socket is closed, and a socket is not forgotten open.
        let closed = matches!(next.state, State::Leaving | State::Gone);
        let was_closed = matches!(state, State::Leaving | State::Gone);
        assert_eq!(next.client == ClientStep::Close, closed && !was_closed, "{what}");
    }
}

#[test]
fn flags_are_those_of_the_standard() {
    assert_eq!(Ends::from_flags(1), Ends::RECEIVE);
    assert_eq!(Ends::from_flags(2), Ends::SEND);
    assert_eq!(Ends::from_flags(0xffff_fff0), Ends::NONE);
    assert_eq!((Ends::RECEIVE | Ends::SEND).flags(), 3);
}
