//! Who is connected: clients that say nothing, or take nothing, keep no other out.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::oneshot;

/// Connections at a time.
const MOST: usize = 16;

/// The connections. Where there are as many as may be, a new one takes the place of the one that has been idle for longest.
#[derive(Debug, Clone, Default)]
pub(super) struct Door {
    /// Held while one comes, goes, or becomes idle or busy.
    inside: Arc<Mutex<Inside>>,
}

#[derive(Debug, Default)]
struct Inside {
    /// Of the next one.
    number: u64,
    clients: Vec<Client>,
}

#[derive(Debug)]
struct Client {
    number: u64,
    /// Since it came, or since its last answer was there for it to take; none while it waits for one.
    idle_since: Option<Instant>,
    /// Dropped when it has to leave.
    _stay: oneshot::Sender<Infallible>,
}

/// One connection's stay; ends with this value.
#[derive(Debug)]
pub(super) struct Visit {
    door: Door,
    number: u64,
}

impl Door {
    /// Lets one in. It has to leave when the second value resolves.
    pub(super) fn enter(&self) -> (Visit, oneshot::Receiver<Infallible>) {
        let (stay, leave) = oneshot::channel();
        let mut inside = self.inside();
        if inside.clients.len() >= MOST {
            let idle = inside.clients.iter().enumerate().filter(|(_, client)| client.idle_since.is_some());
            let longest = idle.min_by_key(|(_, client)| client.idle_since).map_or(0, |(at, _)| at);
            // All wait for an answer: then it is the one that came first.
            inside.clients.remove(longest);
        }
        let number = inside.number;
        inside.number += 1;
        inside.clients.push(Client { number, idle_since: Some(Instant::now()), _stay: stay });
        drop(inside);
        (Visit { door: self.clone(), number }, leave)
    }

    /// A panic while it was held has left the list whole.
    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.inside.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Visit {
    /// It has asked for something.
    pub(super) fn is_busy(&self) {
        self.set(None);
    }

    /// Its answer is there.
    pub(super) fn is_idle(&self) {
        self.set(Some(Instant::now()));
    }

    fn set(&self, idle_since: Option<Instant>) {
        let mut inside = self.door.inside();
        if let Some(client) = inside.clients.iter_mut().find(|client| client.number == self.number) {
            client.idle_since = idle_since;
        }
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        self.door.inside().clients.retain(|client| client.number != self.number);
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::oneshot::error::TryRecvError;

    use super::*;

    fn must_leave(leave: &mut oneshot::Receiver<Infallible>) -> bool {
        leave.try_recv() == Err(TryRecvError::Closed)
    }

    #[test]
    fn the_one_that_was_idle_for_longest_makes_room() {
        let door = Door::default();
        let mut visits: Vec<_> = (0..MOST).map(|_| door.enter()).collect();
        visits[0].0.is_busy();
        visits[1].0.is_busy();
        visits[1].0.is_idle();
        let (_second, mut second_leave) = door.enter();
        let gone: Vec<_> = visits.iter_mut().map(|(_, leave)| must_leave(leave)).collect();
        assert_eq!(gone.iter().position(|gone| *gone), Some(2), "{gone:?}");
        assert_eq!(gone.iter().filter(|gone| **gone).count(), 1, "{gone:?}");
        assert!(!must_leave(&mut second_leave));
    }

    #[test]
    fn who_leaves_gives_the_place_back() {
        let door = Door::default();
        let mut visits: Vec<_> = (0..MOST).map(|_| door.enter()).collect();
        visits.pop();
        let _new = door.enter();
        assert!(!visits.iter_mut().any(|(_, leave)| must_leave(leave)));
    }

    #[test]
    fn of_those_that_all_wait_the_first_makes_room() {
        let door = Door::default();
        let mut visits: Vec<_> = (0..MOST).map(|_| door.enter()).collect();
        visits.iter().for_each(|(visit, _)| visit.is_busy());
        let _new = door.enter();
        assert!(must_leave(&mut visits[0].1) && !must_leave(&mut visits[1].1));
    }
}
