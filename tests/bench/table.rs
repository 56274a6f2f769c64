//! The figures, for people; and the floors.

use crate::drive::{CALLS, Figures};

/// Floors of the design: a bench that is asked to check fails below them.
const POD_UP_RATIO: f64 = 0.30;
/// See [`POD_UP_RATIO`].
const EXEC_RATIO: f64 = 0.25;
/// Runtime memory per pod, workload left out; see [`POD_UP_RATIO`].
const POD_KIB: u64 = 819;

/// Prints everything, with ratios when there is something to compare with.
pub(crate) fn print(figures: &Figures, against: Option<&Figures>) {
    match against {
        None => println!("{:24}{:>22}", "", figures.name),
        Some(other) => println!("{:24}{:>22}{:>24}{:>9}", "", figures.name, other.name, "ratio"),
    }
    for call in CALLS {
        let Some(mine) = figures.calls.get(call).filter(|samples| !samples.is_empty()) else { continue };
        let cell = |median: f64, p95: f64| format!("{median:8.2} ({p95:7.2}) ms");
        let theirs = against.and_then(|other| other.calls.get(call)).filter(|samples| !samples.is_empty());
        let (median, p95) = (mine.median(), mine.p95());
        match theirs {
            None => println!("{call:24}{:>22}", cell(median, p95)),
            Some(other) => {
                let ratio = median / other.median();
                println!(
                    "{call:24}{:>22}{:>24}{ratio:8.2}x",
                    cell(median, p95),
                    cell(other.median(), other.p95())
                );
            }
        }
    }
    if figures.pods == 0 {
        return;
    }
    println!("{:24}{:>22}", "", "median (p95)");
    let pods = figures.pods;
    row("pods up per second, 8 at a time", figures, against, |one| one.pods_per_second, "");
    row("CPU seconds per pod up", figures, against, |one| one.cpu_seconds_per_pod, "");
    row(&format!("KiB per pod, {pods} running"), figures, against, per_pod, "KiB");
    row("daemon", figures, against, |one| one.daemon_kib as f64, "KiB");
    for one in [Some(figures), against].into_iter().flatten() {
        for (name, weights) in &one.weights {
            let (Some(least), Some(most)) = (weights.first(), weights.last()) else { continue };
            let median = weights[weights.len() / 2];
            println!("PSS of {} {name}: {median} KiB ({least} to {most})", weights.len());
        }
    }
}

fn row(
    name: &str,
    figures: &Figures,
    against: Option<&Figures>,
    figure: impl Fn(&Figures) -> f64,
    unit: &str,
) {
    let mine = figure(figures);
    match against.map(&figure) {
        None => println!("{name:34}{mine:10.2} {unit}"),
        Some(theirs) => println!("{name:34}{mine:10.2} {unit:4}{theirs:18.2} {unit:4}{:8.2}x", mine / theirs),
    }
}

/// Everything that the runtime has besides its daemon, divided by the pods.
fn per_pod(figures: &Figures) -> f64 {
    let all: u64 = figures.weights.values().flatten().sum();
    all as f64 / f64::from(figures.pods)
}

/// Sentences about every floor that is missed; ratios need something to compare with.
pub(crate) fn missed_floors(figures: &Figures, against: Option<&Figures>) -> Vec<String> {
    let mut missed = Vec::new();
    let weight = per_pod(figures);
    // Not a number where there were no pods.
    if weight > POD_KIB as f64 {
        missed.push(format!("{weight:.0} KiB per pod, {POD_KIB} are allowed"));
    }
    let Some(other) = against else { return missed };
    for (call, allowed) in [("pod up", POD_UP_RATIO), ("ExecSync true", EXEC_RATIO)] {
        let (Some(mine), Some(theirs)) = (figures.calls.get(call), other.calls.get(call)) else { continue };
        let ratio = mine.median() / theirs.median();
        if ratio > allowed {
            missed.push(format!("{call} takes {ratio:.2} of the other's time, {allowed:.2} are allowed"));
        }
    }
    missed
}
