//! What happens to containers and sandboxes, told to whoever listens (GetContainerEvents; the kubelet's evented PLEG).

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::broadcast;

use crate::clock;
use crate::pod::PodSnapshot;

/// Events that a listener may be behind; then it is told so, and has to list everything and to begin anew.
const BEHIND: usize = 1024;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Happened {
    Created,
    Started,
    Stopped,
    Deleted,
}

/// It happened to one container or sandbox.
#[derive(Debug, Clone)]
pub(crate) struct Event {
    /// Of the container or the sandbox.
    pub(crate) id: String,
    pub(crate) happened: Happened,
    /// Nanoseconds since the Unix epoch; no two events have the same, and later ones have more.
    pub(crate) at: i64,
    /// The pod as it is after the event.
    pub(crate) pod: Arc<PodSnapshot>,
}

/// Passes events on.
#[derive(Debug)]
pub(crate) struct Events {
    sender: broadcast::Sender<Event>,
    /// When the last event was; held while one is sent, so that their order is that of their times.
    last: Mutex<i64>,
}

impl Default for Events {
    fn default() -> Self {
        Self { sender: broadcast::Sender::new(BEHIND), last: Mutex::default() }
    }
}

impl Events {
    /// Tells all listeners; never waits for one.
    pub(crate) fn tell(&self, id: String, happened: Happened, pod: &Arc<PodSnapshot>) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let at = clock::now().max(*last + 1);
        *last = at;
        // Nobody may be listening.
        let _ = self.sender.send(Event { id, happened, at, pod: pod.clone() });
    }

    /// All events from now on.
    pub(crate) fn listen(&self) -> broadcast::Receiver<Event> {
        self.sender.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::{SandboxState, test_pod};

    #[test]
    fn times_only_grow_and_who_is_too_slow_is_told() {
        let (events, pod) = (Events::default(), Arc::new(test_pod("ab", SandboxState::Ready, &[])));
        events.tell("x".into(), Happened::Created, &pod);
        let (mut quick, mut slow) = (events.listen(), events.listen());
        let mut last = 0;
        for number in 0..=BEHIND {
            events.tell(number.to_string(), Happened::Started, &pod);
            let event = quick.try_recv().unwrap();
            assert!(event.at > last && event.id == number.to_string());
            last = event.at;
        }
        assert!(matches!(slow.try_recv(), Err(broadcast::error::TryRecvError::Lagged(1))));
    }
}
