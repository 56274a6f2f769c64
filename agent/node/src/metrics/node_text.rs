//! What is told of pods and of the daemon's process under names of hartpod's own, in Prometheus' text format.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::labels;
use super::series::Value;
use super::text::{head, label, number};
use crate::node::Node;
use crate::pod::{PodSnapshot, SandboxState};
use crate::stats::PodReading;

/// Kernel ticks of a second as /proc shows times (USER_HZ).
const TICKS: f64 = 100.0;

/// The names that depend on which pods there are.
#[cfg(test)]
pub(super) const NAMES: &str =
    "hartpod_pods hartpod_pod_overhead_memory_bytes hartpod_pod_overhead_cpu_seconds_total hartpod_pod_stale";

/// How many pods there are of each state and kind.
pub(super) fn states<'a>(pods: impl Iterator<Item = &'a PodSnapshot>) -> String {
    let mut counts: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for pod in pods {
        *counts.entry((state(pod.state), kind(pod.info.is_guest()))).or_default() += 1;
    }
    let mut text = String::new();
    head(&mut text, "hartpod_pods", "gauge", "Pods by state and kind.");
    for ((state, kind), count) in counts {
        let _ = writeln!(text, "hartpod_pods{{state=\"{state}\",kind=\"{kind}\"}} {count}");
    }
    text
}

/// What pods cost besides their workload, and guests that did not answer.
pub(super) fn overheads(node: &Node, pods: &[PodReading]) -> String {
    let mut memory = String::new();
    let mut cpu = String::new();
    let mut stale = String::new();
    for read in pods {
        let (id, is_guest) = (read.pod.info.id.as_str(), read.pod.info.is_guest());
        let [_, cgroup, _, _, namespace, name] = &labels::of_pod(node, &read.pod);
        let mut labels = String::new();
        for (key, value) in [("namespace", &**namespace), ("pod", name), ("id", cgroup), ("sandbox", id)] {
            label(&mut labels, key, value);
        }
        // Writing to a String cannot fail, here and below.
        let _ = write!(labels, "kind=\"{}\"", kind(is_guest));
        let overhead = read.overhead;
        if let Some(bytes) = overhead.memory_bytes {
            let _ = writeln!(memory, "hartpod_pod_overhead_memory_bytes{{{labels}}} {bytes}");
        }
        if let Some(time) = overhead.cpu_ns {
            let _ = write!(cpu, "hartpod_pod_overhead_cpu_seconds_total{{{labels}}} ");
            number(&mut cpu, Value::Nanoseconds(time));
            cpu.push('\n');
        }
        let is_stale = is_guest && read.inside.is_none();
        let _ = writeln!(stale, "hartpod_pod_stale{{{labels}}} {}", u8::from(is_stale));
    }
    let mut text = String::new();
    for (name, kind, help, lines) in [
        (
            "hartpod_pod_overhead_memory_bytes",
            "gauge",
            "Memory of the pod's agent, or of its guest and VMM without what is used inside.",
            memory,
        ),
        (
            "hartpod_pod_overhead_cpu_seconds_total",
            "counter",
            "CPU time of the pod's agent, or of its VMM without what is used inside.",
            cpu,
        ),
        (
            "hartpod_pod_stale",
            "gauge",
            "1: the guest did not answer, and what is told of its containers is old.",
            stale,
        ),
    ] {
        if !lines.is_empty() {
            head(&mut text, name, kind, help);
            text.push_str(&lines);
        }
    }
    text
}

/// When all of this began to be read: an answer may be that to another's question.
pub(super) fn read_at(began_at: i64) -> String {
    const NAME: &str = "hartpod_metrics_read_timestamp_seconds";
    let mut text = String::new();
    head(&mut text, NAME, "gauge", "When these numbers began to be read, since the Unix epoch.");
    text.push_str(NAME);
    text.push(' ');
    number(&mut text, Value::Nanoseconds(u64::try_from(began_at).unwrap_or_default()));
    text.push('\n');
    text
}

/// The daemon itself, by the names that every exporter has.
pub(super) fn process_blocking() -> String {
    let mut text = String::new();
    head(&mut text, "hartpod_build_info", "gauge", "Which hartpod this is.");
    let _ = writeln!(text, "hartpod_build_info{{version=\"{}\"}} 1", env!("CARGO_PKG_VERSION"));
    if let Some(bytes) = resident_bytes() {
        head(&mut text, "process_resident_memory_bytes", "gauge", "Resident memory of the daemon.");
        let _ = writeln!(text, "process_resident_memory_bytes {bytes}");
    }
    if let Some(seconds) = cpu_seconds() {
        head(&mut text, "process_cpu_seconds_total", "counter", "CPU time of the daemon.");
        let _ = writeln!(text, "process_cpu_seconds_total {seconds}");
    }
    if let Some(files) = hartpod_container::cgroup::open_files(std::process::id()) {
        head(&mut text, "process_open_fds", "gauge", "Open files of the daemon.");
        let _ = writeln!(text, "process_open_fds {files}");
    }
    text
}

fn resident_bytes() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
    Some(pages * rustix::param::page_size() as u64)
}

/// proc_pid_stat(5): fields 14 and 15, counted behind the name, which may have anything in it.
fn cpu_seconds() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let (_, fields) = stat.rsplit_once(") ")?;
    let mut ticks = fields.split(' ').skip(11).map(str::parse::<u32>);
    Some(f64::from(ticks.next()?.ok()?.saturating_add(ticks.next()?.ok()?)) / TICKS)
}

fn kind(is_guest: bool) -> &'static str {
    if is_guest { "vm" } else { "container" }
}

fn state(state: SandboxState) -> &'static str {
    match state {
        SandboxState::Starting => "starting",
        SandboxState::Ready => "ready",
        SandboxState::Silent => "silent",
        SandboxState::NotReady => "not_ready",
        SandboxState::Stopping => "stopping",
        SandboxState::Stopped => "stopped",
        SandboxState::Removing => "removing",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::test_pod;

    #[test]
    fn pods_are_counted_by_state_and_kind() {
        let pods = [
            test_pod("ab", SandboxState::Ready, &[]),
            test_pod("cd", SandboxState::Ready, &[]),
            test_pod("ef", SandboxState::NotReady, &[]),
        ];
        let text = states(pods.iter());
        assert!(text.contains("hartpod_pods{state=\"ready\",kind=\"container\"} 2\n"), "{text}");
        assert!(text.contains("hartpod_pods{state=\"not_ready\",kind=\"container\"} 1\n"), "{text}");
    }

    #[test]
    fn the_time_of_reading_is_told_in_seconds() {
        let text = read_at(1_500_000_000);
        assert!(text.ends_with("\nhartpod_metrics_read_timestamp_seconds 1.5\n"), "{text}");
    }

    #[test]
    fn the_daemon_tells_of_itself() {
        let text = process_blocking();
        for name in [
            "hartpod_build_info",
            "process_resident_memory_bytes",
            "process_cpu_seconds_total",
            "process_open_fds",
        ] {
            let value =
                text.lines().find(|l| l.starts_with(name)).and_then(|l| l.rsplit(' ').next()).unwrap();
            assert!(value.parse::<f64>().unwrap() >= 0.0, "{text}");
        }
        assert!(resident_bytes().unwrap() > 1 << 20);
    }
}
