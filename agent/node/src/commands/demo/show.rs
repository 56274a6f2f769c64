//! What the demo prints: one aligned line for each step, and what the pod said in between.

use std::time::{Duration, Instant};

pub(super) use super::super::units::{bytes, time};

/// Columns: name of the step, what happened, how long it took.
const NAME: usize = 10;
const WHAT: usize = 54;

/// Times the steps and prints them.
#[derive(Debug)]
pub(super) struct Show {
    since: Instant,
    silent: bool,
}

impl Show {
    pub(super) fn new() -> Self {
        Self { since: Instant::now(), silent: false }
    }

    /// Nothing more to tell: something failed, and that is what is to be read.
    pub(super) fn fall_silent(&mut self) {
        self.silent = true;
    }

    /// The next step's time starts now; for work that is no step.
    pub(super) fn restart(&mut self) {
        self.since = Instant::now();
    }

    /// One step with the time since the last one.
    pub(super) fn step(&mut self, name: &str, what: &str) {
        self.print(&line(name, what, Some(self.since.elapsed())));
        self.restart();
    }

    /// Something to know that took no time.
    pub(super) fn fact(&mut self, name: &str, what: &str) {
        self.print(&line(name, what, None));
        self.restart();
    }

    fn print(&self, text: &str) {
        if !self.silent {
            println!("{text}");
        }
    }

    /// What the pod wrote.
    pub(super) fn quote(&mut self, text: &str) {
        for line in text.lines() {
            self.print(&format!("  {:NAME$} | {line}", ""));
        }
        self.restart();
    }
}

fn line(name: &str, what: &str, took: Option<Duration>) -> String {
    let took = took.map(time).unwrap_or_default();
    format!("  {name:NAME$} {what:WHAT$} {took:>7}").trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_columns_stand_below_each_other() {
        let a = line("pod", "ready", Some(Duration::from_millis(3)));
        let b = line("container", "running", Some(Duration::from_millis(1200)));
        assert_eq!(a, "  pod        ready                                                   3.0 ms");
        assert_eq!((a.len(), a.find("ready")), (b.len(), b.find("running")));
        assert_eq!(line("", "what", None), "             what");
    }
}
