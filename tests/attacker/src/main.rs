//! `attacker SECONDS TARGET-BACKWARDS`: looks at every process that shows in /proc, traces it as soon as it appears and tries to
//! reach what is not the container's: files of the node, memory of the pod agent, its open files.
//!
//! It is given a path of the node backwards, so that only this process's memory holds it the right way round. It prints a line
//! `reached: ..` for everything that it should not have been able to do, and counts of what it tried.
//!
//! `attacker pose SECONDS` poses as the agent of a guest instead.

#![forbid(unsafe_code)]

mod look;
mod pose;
mod trace;

use std::collections::{BTreeMap, BTreeSet};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// What came of the attack so far.
#[derive(Debug, Default)]
struct Report {
    seen: u64,
    traced: u64,
    files: u64,
    bytes: u64,
    /// Caught between its clone and its execve, with nothing yet that makes it the container's own.
    caught_early: u64,
    mount_namespaces: BTreeSet<String>,
    reached: BTreeSet<String>,
}

fn main() -> ExitCode {
    let mut args = std::env::args().skip(1).peekable();
    if args.next_if_eq("pose").is_some() {
        let seconds = args.next().and_then(|text| text.parse().ok()).unwrap_or_default();
        pose::as_agent(Duration::from_secs(seconds));
        return ExitCode::SUCCESS;
    }
    let (Some(Ok(seconds)), Some(backwards)) = (args.next().map(|text| text.parse()), args.next()) else {
        eprintln!("usage: attacker SECONDS TARGET-BACKWARDS");
        return ExitCode::from(2);
    };
    let target: String = backwards.chars().rev().collect();
    let mut report = Report::default();
    let mut known: BTreeMap<i32, u64> = BTreeMap::new();
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end {
        for pid in look::pids() {
            // A process is attacked twice: when it appears, and once more after a while, as something else perhaps.
            let times = known.entry(pid).or_default();
            *times += 1;
            if *times == 1 || *times == 50 {
                report.seen += 1;
                attack(pid, &target, &mut report);
            }
        }
        let alive: BTreeSet<i32> = look::pids().collect();
        known.retain(|pid, _| alive.contains(pid));
    }
    for line in &report.reached {
        println!("reached: {line}");
    }
    for namespace in &report.mount_namespaces {
        println!("mount namespace: {namespace}");
    }
    println!("seen: {}", report.seen);
    println!("traced: {}", report.traced);
    println!("caught before their execve: {}", report.caught_early);
    println!("open files looked at: {}", report.files);
    println!("bytes of memory read: {}", report.bytes);
    ExitCode::SUCCESS
}

fn attack(pid: i32, target: &str, report: &mut Report) {
    let traced = trace::Traced::start(pid);
    report.traced += u64::from(traced.is_some());
    look::at(pid, target, report);
    drop(traced);
}
