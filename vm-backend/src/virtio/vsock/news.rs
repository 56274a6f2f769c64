//! When the guest hears that its packets were taken.
//!
//! It need not know at once: all that it does then is to free their memory. An interrupt costs it several exits, and an answer to its packet
//! is often on the way, whose interrupt makes it look at all queues.

use std::time::{Duration, Instant};

/// How long the guest may be left without word of packets that were taken.
const DELAY: Duration = Duration::from_millis(10);

/// Descriptors of packets that the guest was not told of since they were taken.
#[derive(Debug)]
pub(super) struct News {
    descriptors: usize,
    /// As many are told of at once, so that the guest's ring does not run full.
    enough: usize,
    due: Option<Instant>,
}

impl News {
    /// For a queue of this size.
    pub(super) fn new(queue_size: u16) -> Self {
        Self { descriptors: 0, enough: usize::from(queue_size / 4), due: None }
    }

    /// A packet of so many descriptors was taken.
    pub(super) fn add(&mut self, descriptors: usize, now: Instant) {
        self.descriptors += descriptors;
        self.due.get_or_insert(now + DELAY);
    }

    /// When the guest must be told, if something else does not tell it before.
    pub(super) fn due(&self) -> Option<Instant> {
        self.due
    }

    /// Whether it must be told now.
    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.descriptors >= self.enough.max(1) || self.due.is_some_and(|due| due <= now)
    }

    /// It has been told.
    pub(super) fn told(&mut self) {
        self.descriptors = 0;
        self.due = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_is_told_after_a_while_or_when_its_ring_fills_up() {
        let start = Instant::now();
        let mut news = News::new(128);
        assert!(!news.is_due(start + DELAY));
        news.add(2, start);
        news.add(2, start + DELAY / 2);
        assert!(!news.is_due(start + DELAY / 2));
        assert_eq!(news.due(), Some(start + DELAY));
        assert!(news.is_due(start + DELAY));
        news.told();
        assert_eq!(news.due(), None);
        news.add(31, start);
        assert!(!news.is_due(start));
        news.add(1, start);
        assert!(news.is_due(start));
    }

    #[test]
    fn a_tiny_ring_is_told_of_at_once() {
        let mut news = News::new(1);
        assert!(!news.is_due(Instant::now()));
        news.add(1, Instant::now());
        assert!(news.is_due(Instant::now()));
    }
}
