//! CPU time per time, over a window that does not depend on who asks how often.

use std::time::{Duration, Instant};

/// The shortest window that is told once there is one of that length.
pub(crate) const SPAN: Duration = Duration::from_secs(10);
/// Two readings closer than this say nothing: a scheduler's tick or two would be all of the rate.
const CLOSE: Duration = Duration::from_millis(100);

#[derive(Debug, Clone, Copy)]
struct Point {
    at: Instant,
    usage_ns: u64,
}

/// What a rate is made of: two readings, at least [`SPAN`] apart.
#[derive(Debug, Default)]
pub(crate) struct Window {
    older: Option<Point>,
    newer: Option<Point>,
    rate: Option<u64>,
}

impl Window {
    /// Billionths of a core in use: over 10 to 20 s, or since the first reading if that is less long ago. `age` is that of what is read: what is young has a rate
    /// from its first moment on.
    pub(crate) fn add(&mut self, at: Instant, usage_ns: u64, age: Duration) -> Option<u64> {
        let now = Point { at, usage_ns };
        let Some(newer) = self.newer.filter(|p| p.usage_ns <= usage_ns) else {
            // The first, or a counter that began anew.
            let young = (CLOSE..SPAN).contains(&age).then(|| at.checked_sub(age)).flatten();
            let begin = young.map(|at| Point { at, usage_ns: 0 });
            *self = Self { older: begin, newer: Some(now), rate: None };
            self.rate = begin.and_then(|begin| rate(begin, now));
            return self.rate;
        };
        let is_full = at.saturating_duration_since(newer.at) >= SPAN;
        let base = if is_full { newer } else { self.older.unwrap_or(newer) };
        if is_full {
            *self = Self { older: Some(newer), newer: Some(now), rate: self.rate };
        }
        self.rate = rate(base, now).or(self.rate);
        self.rate
    }
}

fn rate(from: Point, to: Point) -> Option<u64> {
    let elapsed = to.at.saturating_duration_since(from.at);
    if elapsed < CLOSE {
        return None;
    }
    let used = u128::from(to.usage_ns.saturating_sub(from.usage_ns));
    u64::try_from(used * 1_000_000_000 / elapsed.as_nanos()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HALF: u64 = 500_000_000;
    const OLD: Duration = Duration::from_secs(3600);

    #[test]
    fn half_a_core_is_half_a_core_however_often_it_is_asked_for() {
        let begin = Instant::now();
        for step in [1, 3, 10, 25] {
            let mut window = Window::default();
            assert_eq!(window.add(begin, 7, OLD), None, "one reading of something old has no rate");
            for second in (step..100).step_by(usize::try_from(step).unwrap()) {
                let at = begin + Duration::from_secs(second);
                assert_eq!(window.add(at, 7 + second * HALF, OLD), Some(HALF), "{second} of {step}");
            }
        }
    }

    #[test]
    fn a_burst_is_over_after_the_window() {
        let begin = Instant::now();
        let mut window = Window::default();
        window.add(begin, 0, OLD);
        assert_eq!(window.add(begin + SPAN, 10 * 1_000_000_000, OLD), Some(1_000_000_000));
        assert_eq!(window.add(begin + SPAN * 3 / 2, 10 * 1_000_000_000, OLD), Some(666_666_666));
        assert_eq!(window.add(begin + SPAN * 2, 10 * 1_000_000_000, OLD), Some(0));
    }

    #[test]
    fn what_is_young_has_a_rate_at_once() {
        let mut window = Window::default();
        assert_eq!(window.add(Instant::now(), 1_000_000_000, Duration::from_secs(2)), Some(HALF));
        assert_eq!(Window::default().add(Instant::now(), 1, Duration::from_millis(1)), None);
    }

    #[test]
    fn a_counter_that_begins_anew_has_no_rate_until_it_is_read_again() {
        let begin = Instant::now();
        let mut window = Window::default();
        window.add(begin, 1_000_000_000, OLD);
        assert_eq!(window.add(begin + SPAN, 5, OLD), None);
        assert_eq!(window.add(begin + SPAN * 2, 5 + 10 * HALF, OLD), Some(HALF));
    }

    #[test]
    fn readings_at_one_moment_repeat_the_rate() {
        let begin = Instant::now();
        let mut window = Window::default();
        window.add(begin, 0, OLD);
        assert_eq!(window.add(begin, 0, OLD), None);
        assert_eq!(window.add(begin + SPAN, 10 * HALF, OLD), Some(HALF));
        assert_eq!(window.add(begin + SPAN, 10 * HALF, OLD), Some(HALF));
    }
}
