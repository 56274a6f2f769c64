//! How fast a guest may tell: its news cost the daemon work, and it may have any number of them.

use std::time::Duration;

use tokio::time::Instant;

/// Units that may be used at once after a while of rest: a guest full of containers has no more to tell when all of them come or go.
const BURST: u32 = 100;
/// Between two units after that.
const UNIT: Duration = Duration::from_millis(10);
/// Bytes of a message that are one unit more.
const BYTES: usize = 4 << 10;

/// Holds one guest's messages to so many units in a time.
#[derive(Debug)]
pub(super) struct Pace {
    /// When everything that was used is paid for.
    paid: Instant,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Self { paid: now }
    }

    /// Counts a message; until when the next one has to wait.
    fn count(&mut self, now: Instant, bytes: usize) -> Instant {
        let units = u32::try_from(1 + bytes / BYTES).unwrap_or(u32::MAX);
        self.paid = self.paid.max(now) + UNIT.saturating_mul(units);
        self.paid - UNIT * BURST
    }

    /// Counts a message, and waits before the next one if need be.
    pub(super) async fn keep(&mut self, bytes: usize) {
        let until = self.count(Instant::now(), bytes);
        tokio::time::sleep_until(until).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_free_and_more_is_not() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        for _ in 0..BURST {
            assert!(pace.count(now, 60) <= now);
        }
        assert_eq!(pace.count(now, 60), now + UNIT);
        assert_eq!(pace.count(now, 60), now + 2 * UNIT);
        let later = now + 10 * UNIT * BURST;
        assert!(pace.count(later, 60) <= later);
    }

    #[test]
    fn large_messages_count_more() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        assert_eq!(pace.count(now, 99 * BYTES), now);
        assert_eq!(pace.count(now, 256 << 10), now + 65 * UNIT);
    }
}
