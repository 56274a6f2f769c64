//! Memory and CPU time from /proc.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use anyhow::{Context, Result};
use hartpod_tests::process::{self, Process};

/// Names of a runtime's processes; all others that appear are workload.
const RUNTIMES: &[&str] = &["hartpod", "containerd-shim", "conmon", "pause", "crio"];

/// The processes that exist now.
#[derive(Debug)]
pub(crate) struct Baseline(BTreeSet<(i32, u64)>);

impl Baseline {
    pub(crate) fn now() -> Result<Self> {
        Ok(Self(process::all()?.into_iter().map(|one| (one.pid, one.start_time)).collect()))
    }

    /// PSS of every process of a runtime that appeared since, in KiB, by name.
    pub(crate) fn weights(&self) -> Result<BTreeMap<String, Vec<u64>>> {
        let mut weights: BTreeMap<String, Vec<u64>> = BTreeMap::new();
        for one in process::all()? {
            let is_new = !self.0.contains(&(one.pid, one.start_time));
            if is_new && is_runtime(&one) {
                // One that ended meanwhile weighs nothing.
                let Ok(pss) = process::pss_kib(one.pid) else { continue };
                weights.entry(one.name).or_default().push(pss);
            }
        }
        weights.values_mut().for_each(|all| all.sort_unstable());
        Ok(weights)
    }
}

fn is_runtime(one: &Process) -> bool {
    RUNTIMES.iter().any(|name| one.name.starts_with(name))
}

/// The most memory that a process has from now on.
#[derive(Debug)]
pub(crate) struct Peak {
    pid: i32,
    before: u64,
}

impl Peak {
    /// Forgets the process's peak so far.
    pub(crate) fn begin(pid: i32) -> Result<Self> {
        let path = format!("/proc/{pid}/clear_refs");
        // proc_pid_clear_refs(5): 5 resets the peak to what is resident now.
        fs::write(&path, "5").with_context(|| format!("write {path}"))?;
        Ok(Self { pid, before: resident(pid, "VmRSS:")? })
    }

    /// KiB over what was resident at first.
    pub(crate) fn above_kib(&self) -> Result<u64> {
        Ok(resident(self.pid, "VmHWM:")?.saturating_sub(self.before))
    }
}

fn resident(pid: i32, field: &str) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).with_context(|| format!("read {path}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix(field));
    let number = line.and_then(|line| line.split_whitespace().next()).and_then(|n| n.parse().ok());
    number.with_context(|| format!("no {field} in {path}"))
}

/// CPU seconds that the whole machine has spent.
pub(crate) fn machine_cpu_seconds() -> Result<f64> {
    let text = fs::read_to_string("/proc/stat").context("read /proc/stat")?;
    let numbers: Vec<f64> = text
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(1)
        .filter_map(|n| n.parse().ok())
        .collect();
    // user, nice, system, idle, iowait, irq, softirq, steal; in hundredths of a second on every Linux that matters here.
    let busy: f64 =
        numbers.iter().take(8).sum::<f64>() - numbers.get(3).unwrap_or(&0.0) - numbers.get(4).unwrap_or(&0.0);
    Ok(busy / 100.0)
}
