//! Deadlines, one per host port.

use std::collections::{BTreeSet, HashMap};
use std::time::Instant;

#[derive(Debug, Default)]
pub(super) struct Timers {
    by_time: BTreeSet<(Instant, u32)>,
    by_port: HashMap<u32, Instant>,
}

impl Timers {
    /// Sets the deadline of `port`, instead of an earlier one.
    pub(super) fn set(&mut self, port: u32, at: Instant) {
        self.cancel(port);
        self.by_port.insert(port, at);
        self.by_time.insert((at, port));
    }

    pub(super) fn cancel(&mut self, port: u32) {
        if let Some(at) = self.by_port.remove(&port) {
            self.by_time.remove(&(at, port));
        }
    }

    /// The earliest deadline.
    pub(super) fn next(&self) -> Option<Instant> {
        self.by_time.first().map(|(at, _)| *at)
    }

    /// Takes out a port whose deadline is over.
    pub(super) fn expired(&mut self, now: Instant) -> Option<u32> {
        let (at, port) = *self.by_time.first().filter(|(at, _)| *at <= now)?;
        self.by_time.remove(&(at, port));
        self.by_port.remove(&port);
        Some(port)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn deadlines_come_in_their_order_and_a_new_one_replaces_the_old() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut timers = Timers::default();
        timers.set(1, at(3));
        timers.set(2, at(2));
        timers.set(3, at(1));
        timers.set(3, at(4));
        timers.cancel(2);
        assert_eq!(timers.next(), Some(at(3)));
        assert_eq!(timers.expired(at(2)), None);
        assert_eq!(timers.expired(at(9)), Some(1));
        assert_eq!(timers.expired(at(9)), Some(3));
        assert_eq!((timers.expired(at(9)), timers.next()), (None, None));
    }
}
