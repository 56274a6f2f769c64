//! How long the steps of an operation took, for a line in the log.

use std::fmt;
use std::time::{Duration, Instant};

/// A stopwatch that is read after each step.
#[derive(Debug)]
pub(crate) struct Laps {
    last: Instant,
    laps: Vec<(&'static str, Duration)>,
}

impl Laps {
    pub(crate) fn start() -> Self {
        Self { last: Instant::now(), laps: Vec::new() }
    }

    /// The step `what` is done.
    pub(crate) fn note(&mut self, what: &'static str) {
        let now = Instant::now();
        self.laps.push((what, now - self.last));
        self.last = now;
    }
}

impl fmt::Display for Laps {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (what, took)) in self.laps.iter().enumerate() {
            let separator = if i == 0 { "" } else { ", " };
            write!(f, "{separator}{what} {:.1} ms", took.as_secs_f64() * 1000.0)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn laps_read_as_a_list() {
        let laps = Laps {
            last: Instant::now(),
            laps: vec![("netns", Duration::from_micros(1500)), ("agent", Duration::from_millis(20))],
        };
        assert_eq!(laps.to_string(), "netns 1.5 ms, agent 20.0 ms");
    }
}
