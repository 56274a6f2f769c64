//! The series of guests: what their VMMs count, under names of hartpod's own.

use std::fmt::Write as _;
use std::sync::Arc;

use hartpod_vm::counts::{Counts, DeviceCounts};
use tokio::task::JoinSet;

use super::text::{head, label};
use crate::guest::{VmmUse, counts};
use crate::node::Node;
use crate::pod::{PodInfo, PodSnapshot};
use crate::stats::ReadError;

/// The names that there are only with guests.
#[cfg(test)]
pub(super) const NAMES: &str = "hartpod_guest_vmm_stale hartpod_guest_vcpus hartpod_guest_vcpu_seconds_total \
    hartpod_guest_memory_bytes hartpod_guest_memory_resident_bytes hartpod_guest_exits_total \
    hartpod_guest_device_notifications_total hartpod_guest_device_interrupts_total \
    hartpod_guest_device_requests_total hartpod_guest_device_bytes_total \
    hartpod_guest_balloon_reclaimed_bytes_total";

/// What is known of one.
#[derive(Debug)]
struct Guest {
    pod: Arc<PodSnapshot>,
    /// As the VMM says; none where it did not.
    counts: Option<Counts>,
    vmm: VmmUse,
}

/// Asks all guests at once, and tells what they do.
pub(super) async fn guests(node: &Arc<Node>) -> Result<String, ReadError> {
    let snapshots = node.registry.pods().into_iter().map(|pod| pod.snapshot());
    let guests = snapshots.filter(|pod| pod.state.is_up() && pod.info.is_guest());
    let mut asked = JoinSet::new();
    for pod in guests {
        let Some(agent) = pod.agent.clone() else { continue };
        asked.spawn(async move { (counts(&agent).await, agent, pod) });
    }
    if asked.is_empty() {
        return Ok(String::new());
    }
    let mut answers = asked.join_all().await;
    answers.sort_by(|(.., one), (.., other)| one.info.id.cmp(&other.info.id));
    // One thread for all of them.
    let told = tokio::task::spawn_blocking(move || {
        let guests = answers.into_iter().map(|(counts, agent, pod)| Guest {
            vmm: VmmUse::of_blocking(&agent),
            counts,
            pod,
        });
        render(&guests.collect::<Vec<_>>())
    });
    Ok(told.await?)
}

/// One family, its lines as they come.
struct Family {
    name: &'static str,
    kind: &'static str,
    help: &'static str,
    lines: String,
}

impl Family {
    fn new((name, kind, help): (&'static str, &'static str, &'static str)) -> Self {
        Self { name, kind, help, lines: String::new() }
    }

    fn add(&mut self, labels: &str, value: impl std::fmt::Display) {
        // Writing to a String cannot fail.
        let _ = writeln!(self.lines, "{}{{{labels}}} {value}", self.name);
    }
}

#[rustfmt::skip]
const FAMILIES: [(&str, &str, &str); 11] = [
    ("hartpod_guest_vmm_stale", "gauge", "1: the VMM did not answer, and what it counts is not told."),
    ("hartpod_guest_vcpus", "gauge", "vCPUs that the guest booted with."),
    ("hartpod_guest_vcpu_seconds_total", "counter", "CPU time of the threads of the guest's vCPUs."),
    ("hartpod_guest_memory_bytes", "gauge", "Memory that the guest booted with."),
    ("hartpod_guest_memory_resident_bytes", "gauge", "Memory of the VMM alone: guest memory that is present, and a MiB or two."),
    ("hartpod_guest_exits_total", "counter", "How often vCPUs left the guest for the VMM; what KVM answers itself is not counted."),
    ("hartpod_guest_device_notifications_total", "counter", "Notifications by drivers in the guest."),
    ("hartpod_guest_device_interrupts_total", "counter", "Interrupts of drivers in the guest."),
    ("hartpod_guest_device_requests_total", "counter", "Chains of buffers that devices took from the guest."),
    ("hartpod_guest_device_bytes_total", "counter", "Bytes of the buffers that devices read and wrote."),
    ("hartpod_guest_balloon_reclaimed_bytes_total", "counter", "Bytes of memory that the guest gave back."),
];

// Nanoseconds of less than a hundred days are exact.
#[allow(clippy::cast_precision_loss)]
fn render(guests: &[Guest]) -> String {
    let mut families = FAMILIES.map(Family::new);
    let [stale, vcpus, time, memory, resident, exits, kicks, interrupts, requests, bytes, reclaimed] =
        &mut families;
    for Guest { pod, counts, vmm: used } in guests {
        let labels = labels(&pod.info);
        stale.add(&labels, u8::from(counts.is_none()));
        if let Some(ceiling) = pod.info.guest.as_ref().and_then(|guest| guest.ceiling) {
            vcpus.add(&labels, ceiling.vcpus);
            memory.add(&labels, u64::from(ceiling.memory_mib) << 20);
        }
        if let Some(nanos) = used.vcpu_nanos {
            time.add(&labels, nanos as f64 * 1e-9);
        }
        if let Some(own) = used.resident_bytes {
            resident.add(&labels, own);
        }
        let Some(counts) = counts else { continue };
        for (reason, count) in reasons(counts) {
            exits.add(&format!("{labels}reason=\"{reason}\""), count);
        }
        for (device, counts) in devices(counts) {
            let labels = format!("{labels}device=\"{device}\"");
            kicks.add(&labels, counts.kicks);
            interrupts.add(&labels, counts.interrupts);
            requests.add(&labels, counts.requests);
            if device != "balloon" {
                bytes.add(&format!("{labels},direction=\"from_guest\""), counts.from_guest);
                bytes.add(&format!("{labels},direction=\"to_guest\""), counts.to_guest);
            }
        }
        reclaimed.add(&labels, counts.balloon.from_guest);
    }
    let mut text = String::new();
    for family in families.iter().filter(|family| !family.lines.is_empty()) {
        head(&mut text, family.name, family.kind, family.help);
        text.push_str(&family.lines);
    }
    text
}

fn labels(info: &PodInfo) -> String {
    let mut labels = String::new();
    let name = &info.name;
    for (key, value) in
        [("namespace", name.namespace.as_str()), ("pod", &name.name), ("sandbox", info.id.as_str())]
    {
        label(&mut labels, key, value);
    }
    labels
}

fn reasons(counts: &Counts) -> [(&'static str, u64); 5] {
    let exits = &counts.exits;
    [
        ("mmio_read", exits.mmio_read),
        ("mmio_write", exits.mmio_write),
        ("sbi", exits.sbi),
        ("csr", exits.csr),
        ("interrupted", exits.interrupted),
    ]
}

fn devices(counts: &Counts) -> [(&'static str, &DeviceCounts); 5] {
    [
        ("vsock", &counts.vsock),
        ("net", &counts.net),
        ("balloon", &counts.balloon),
        ("block", &counts.block),
        ("fs", &counts.fs),
    ]
}

#[cfg(test)]
mod tests {
    use hartpod_vm::counts::Exits;

    use super::*;
    use crate::pod::{SandboxState, test_pod};

    #[test]
    fn what_a_vmm_counts_is_told_by_guest() {
        let pod = Arc::new(test_pod("ab", SandboxState::Ready, &[]));
        let counts = Counts {
            exits: Exits { sbi: 5, ..Exits::default() },
            vsock: DeviceCounts { from_guest: u64::MAX, ..DeviceCounts::default() },
            balloon: DeviceCounts { from_guest: 4096, ..DeviceCounts::default() },
            ..Counts::default()
        };
        let vmm = VmmUse { vcpu_nanos: Some(1_500_000_000), resident_bytes: Some(7) };
        let silent = Guest { pod: pod.clone(), counts: None, vmm: VmmUse::default() };
        let text = render(&[Guest { pod: pod.clone(), counts: Some(counts), vmm }, silent]);
        let labels = labels(&pod.info);
        for expected in [
            "# TYPE hartpod_guest_exits_total counter".to_owned(),
            format!("hartpod_guest_exits_total{{{labels}reason=\"sbi\"}} 5"),
            format!("hartpod_guest_vcpu_seconds_total{{{labels}}} 1.5"),
            format!(
                "hartpod_guest_device_bytes_total{{{labels}device=\"vsock\",direction=\"from_guest\"}} {}",
                u64::MAX
            ),
            format!("hartpod_guest_balloon_reclaimed_bytes_total{{{labels}}} 4096"),
            format!("hartpod_guest_vmm_stale{{{labels}}} 0"),
            format!("hartpod_guest_vmm_stale{{{labels}}} 1"),
        ] {
            assert!(text.lines().any(|line| line == expected), "no {expected} in {text}");
        }
        assert_eq!(
            text.matches("reason=\"sbi\"").count(),
            1,
            "a VMM that says nothing has no counts: {text}"
        );
        assert!(render(&[]).is_empty());
    }

    #[test]
    fn every_name_is_in_the_list() {
        assert_eq!(FAMILIES.map(|(name, _, _)| name).join(" "), NAMES);
    }
}
