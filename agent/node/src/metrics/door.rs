//! Who is connected: clients that say nothing, or take nothing, keep no other out.

use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

/// Connections at a time.
const MOST: usize = 16;
/// For who comes to say something; a scrape's request is in its first packet.
const TO_ASK: Duration = Duration::from_secs(1);
/// For who has an answer to take it, some megabytes.
const TO_READ: Duration = Duration::from_secs(10);

/// The connections. Where there are as many as may be, a new one takes the place of another, see [`Client::worth`].
#[derive(Debug, Clone, Default)]
pub(super) struct Door {
    /// Held while one comes, goes, asks, or has its answer.
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
    state: State,
    since: Instant,
    /// Dropped when it has to leave.
    _stay: oneshot::Sender<Infallible>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// It never asked for anything.
    Silent,
    /// It waits for an answer.
    Asks,
    /// Its last answer is there for it to take; how much of that it took is not known.
    HasAnswer,
}

impl Client {
    /// The lowest leaves first, of equal ones who has been that for longest: who comes and says nothing, who had the time to read an answer, and only then who may
    /// yet ask, reads, or waits.
    fn worth(&self, now: Instant) -> u8 {
        let age = now.saturating_duration_since(self.since);
        match self.state {
            State::Silent if age > TO_ASK => 0,
            State::HasAnswer if age > TO_READ => 1,
            State::Silent => 2,
            State::HasAnswer => 3,
            State::Asks => 4,
        }
    }
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
        let ((stay, leave), now) = (oneshot::channel(), Instant::now());
        let mut inside = self.inside();
        if inside.clients.len() >= MOST {
            let clients = inside.clients.iter().enumerate();
            let least = clients.min_by_key(|(_, client)| (client.worth(now), client.since));
            let least = least.map_or(0, |(at, _)| at);
            inside.clients.remove(least);
        }
        let number = inside.number;
        inside.number += 1;
        inside.clients.push(Client { number, state: State::Silent, since: now, _stay: stay });
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
    pub(super) fn asks(&self) {
        self.set(State::Asks);
    }

    /// Its answer is there.
    pub(super) fn has_answer(&self) {
        self.set(State::HasAnswer);
    }

    fn set(&self, state: State) {
        let mut inside = self.door.inside();
        if let Some(client) = inside.clients.iter_mut().find(|client| client.number == self.number) {
            (client.state, client.since) = (state, Instant::now());
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

    /// As if it had come, asked or been answered that much earlier.
    fn earlier(visit: &Visit, by: Duration) {
        let mut inside = visit.door.inside();
        let client = inside.clients.iter_mut().find(|client| client.number == visit.number).unwrap();
        client.since = client.since.checked_sub(by).unwrap();
    }

    /// Which of them had to leave.
    fn gone(visits: &mut [(Visit, oneshot::Receiver<Infallible>)]) -> Vec<usize> {
        let gone =
            visits.iter_mut().enumerate().filter_map(|(at, (_, leave))| must_leave(leave).then_some(at));
        gone.collect()
    }

    #[test]
    fn who_reads_slowly_stays_as_long_as_there_are_silent_ones() {
        let door = Door::default();
        let mut visits: Vec<_> = (0..MOST).map(|_| door.enter()).collect();
        for (visit, _) in &visits[..MOST - 1] {
            visit.asks();
            visit.has_answer();
            earlier(visit, TO_READ / 2);
        }
        let mut new = vec![door.enter()];
        assert_eq!(gone(&mut visits), [MOST - 1], "the silent one, which came last");
        // It asked at once, and reads; who reads longest has had its time.
        new[0].0.asks();
        new[0].0.has_answer();
        earlier(&visits[3].0, TO_READ);
        let _newer = door.enter();
        assert_eq!(gone(&mut visits), [3, MOST - 1]);
        // A new one has a moment to ask before it is silent.
        earlier(&visits[5].0, TO_READ);
        let _newest = door.enter();
        assert_eq!((gone(&mut visits), gone(&mut new)), (vec![3, 5, MOST - 1], vec![]));
    }

    #[test]
    fn the_one_that_was_silent_for_longest_makes_room() {
        let door = Door::default();
        let mut visits: Vec<_> = (0..MOST).map(|_| door.enter()).collect();
        visits[0].0.asks();
        visits[1].0.asks();
        visits[1].0.has_answer();
        let (_second, mut second_leave) = door.enter();
        assert_eq!(gone(&mut visits), [2]);
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
        visits.iter().for_each(|(visit, _)| visit.asks());
        let _new = door.enter();
        assert!(must_leave(&mut visits[0].1) && !must_leave(&mut visits[1].1));
    }
}
