//! How large a pod's guest is, and what its kernel is told.
//!
//! Memory and vCPUs are ceilings: memory is taken page by page as the guest touches it. The pod's limits are the kubelet's sums over those of its
//! containers that have one (`LinuxPodSandboxConfig.resources`). Where another has none, the kubelet leaves the pod's cgroup without a limit
//! (`ResourceConfigForPod` in pkg/kubelet/cm/helpers_linux.go): such a guest is not smaller than the node's default.

use hartpod_container::cgroup::{Bound, Bounds};
use hartpod_proto::cri::v1 as cri;
use oci_spec::runtime::LinuxResources;

use super::resize::{Ceiling, Lift, PodLimits, inside};
use crate::config::Vm;
use crate::validate::InvalidRequest;

/// As the VMM has it (`hartpod_vm::arch::riscv64::layout`).
pub(crate) const MAX_MEMORY_MIB: u64 = hartpod_vm::arch::riscv64::layout::MAX_MEMORY_MIB as u64;
pub(crate) const MAX_VCPUS: u64 = hartpod_vm::arch::riscv64::layout::MAX_VCPUS as u64;

const MEMORY: &str = "io.hartpod.vm.memory-mib";
const VCPUS: &str = "io.hartpod.vm.vcpus";
const ARGUMENTS: &str = "io.hartpod.vm.kernel-arguments";
/// Annotations of pods that change their guest, where the operator allows it.
pub(crate) const ANNOTATIONS: [&str; 3] = [MEMORY, VCPUS, ARGUMENTS];
/// What begins like this and is none of them is a mistake.
const PREFIX: &str = "io.hartpod.vm.";

/// RAM comes in whole huge pages. Hardly more than what was asked for: the rest would be taken from what the VMM has in the pod's cgroup.
const MEMORY_STEP_MIB: u64 = 2;
/// Bytes of kernel arguments; with our own they fit the kernel's 1023.
const MAX_ARGUMENTS: usize = 400;

/// A guest to be started.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct GuestPlan {
    /// What it boots with.
    pub(crate) ceiling: Ceiling,
    /// What it may use of that to begin with.
    pub(crate) memory_mib: u32,
    /// Limits of the pod inside, where it boots with more than the pod is to have.
    pub(crate) inside: Option<LinuxResources>,
    /// After our own.
    pub(crate) kernel_arguments: String,
    /// Odd but handled.
    pub(crate) warning: Option<String>,
}

/// Plans the guest of a pod, whose cgroup has these bounds, on a node with so many CPUs: more vCPUs than that are of no use.
pub(crate) fn plan(
    config: &Vm,
    sandbox: &cri::PodSandboxConfig,
    bounds: Bounds,
    cpus: u64,
) -> Result<GuestPlan, InvalidRequest> {
    let asked = Annotations::read(config, sandbox)?;
    let resources = sandbox.linux.as_ref().and_then(|linux| linux.resources.as_ref());
    let limits = PodLimits::of(resources);
    // A size that an annotation names is all that there will be, and who has no limit grows without being asked.
    let room = |named: bool, bound: Bound| {
        if named || bound == Bound::Unlimited { 100 } else { 100 + config.resize_headroom_percent }
    };
    let memory_room = room(asked.memory_mib.is_some() || limits.memory.is_none(), bounds.memory);
    let cpu_room = room(asked.vcpus.is_some() || limits.quota.is_none(), bounds.cpu);
    let memory = asked.memory_mib.unwrap_or_else(|| memory_mib(config, &limits, bounds.memory));
    let vcpus = asked.vcpus.unwrap_or_else(|| vcpus(config, &limits, bounds.cpu, cpu_room)).min(cpus.max(1));
    let narrow = |value: u64, most: u64| u32::try_from(value.min(most)).unwrap_or(u32::MAX);
    let mib = |value: u64| narrow(value.next_multiple_of(MEMORY_STEP_MIB), MAX_MEMORY_MIB);
    let larger = (memory_room > 100, cpu_room > 100);
    Ok(GuestPlan {
        ceiling: Ceiling {
            memory_mib: mib(memory.saturating_mul(memory_room) / 100),
            vcpus: narrow(vcpus, MAX_VCPUS),
        },
        memory_mib: mib(memory),
        inside: (larger.0 || larger.1).then(|| {
            let PodLimits { memory, quota } = limits;
            inside(memory.filter(|_| larger.0), quota.filter(|_| larger.1), Lift::No)
        }),
        kernel_arguments: asked.kernel_arguments,
        warning: overhead_warning(config, sandbox),
    })
}

fn memory_mib(config: &Vm, limits: &PodLimits, bound: Bound) -> u64 {
    let needed = limits.memory.map(|bytes| bytes.div_ceil(1 << 20).saturating_add(config.guest_base_mib));
    at_least_default(needed, config.default_memory_mib, bound)
}

fn vcpus(config: &Vm, limits: &PodLimits, bound: Bound, room_percent: u64) -> u64 {
    let needed = limits
        .quota
        .map(|(quota, period)| quota.saturating_mul(room_percent).div_ceil(period.saturating_mul(100)));
    at_least_default(needed, config.default_vcpus, bound).max(1)
}

/// What the limits come to; the default where there are none, and at least that where there are none of some containers.
fn at_least_default(needed: Option<u64>, default: u64, bound: Bound) -> u64 {
    match (needed, bound) {
        (None, _) => default,
        (Some(needed), Bound::Unlimited) => needed.max(default),
        (Some(needed), Bound::Limited | Bound::Unknown) => needed,
    }
}

/// The RuntimeClass says what a pod costs besides its containers; the scheduler and the pod's cgroup go by it.
fn overhead_warning(config: &Vm, sandbox: &cri::PodSandboxConfig) -> Option<String> {
    let overhead = sandbox.linux.as_ref().and_then(|linux| linux.overhead.as_ref());
    let declared = overhead.map_or(0, |o| u64::try_from(o.memory_limit_in_bytes).unwrap_or(0)) >> 20;
    let needed = config.guest_base_mib + config.overhead_mib;
    (declared < needed).then(|| {
        format!(
            "the pod's RuntimeClass declares an overhead of {declared} MiB of memory, a guest needs {needed} MiB: set \
             overhead.podFixed.memory"
        )
    })
}

/// What the pod's annotations say of its guest.
#[derive(Debug, Default)]
struct Annotations {
    memory_mib: Option<u64>,
    vcpus: Option<u64>,
    kernel_arguments: String,
}

impl Annotations {
    fn read(config: &Vm, sandbox: &cri::PodSandboxConfig) -> Result<Self, InvalidRequest> {
        let mut found = Self::default();
        for (name, value) in sandbox.annotations.iter().filter(|(name, _)| name.starts_with(PREFIX)) {
            let refuse = |problem: String| InvalidRequest {
                field: format!("config.annotations[{:?}]", name.chars().take(64).collect::<String>()),
                problem,
            };
            if !ANNOTATIONS.contains(&name.as_str()) {
                return Err(refuse(format!("is not known: there is {}", ANNOTATIONS.join(", "))));
            }
            if !config.allowed_annotations.contains(name) {
                return Err(refuse("is not among vm.allowed_annotations of this node".to_owned()));
            }
            let number = |least, most| match value.trim().parse::<u64>() {
                Ok(number) if (least..=most).contains(&number) => Ok(Some(number)),
                _ => Err(refuse(format!("{value:?} is not a number from {least} to {most}"))),
            };
            match name.as_str() {
                MEMORY => found.memory_mib = number(config.guest_base_mib, MAX_MEMORY_MIB)?,
                VCPUS => found.vcpus = number(1, MAX_VCPUS)?,
                _ if value.len() > MAX_ARGUMENTS => {
                    return Err(refuse(format!("has more than {MAX_ARGUMENTS} bytes")));
                }
                _ if !value.bytes().all(|byte| (0x20..0x7f).contains(&byte)) => {
                    return Err(refuse("has bytes that are not printable".to_owned()));
                }
                _ => value.trim().clone_into(&mut found.kernel_arguments),
            }
        }
        Ok(found)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(limit_mib: i64, quota: i64) -> cri::PodSandboxConfig {
        let resources = cri::LinuxContainerResources {
            memory_limit_in_bytes: limit_mib << 20,
            cpu_quota: quota,
            cpu_period: 100_000,
            ..Default::default()
        };
        let linux = cri::LinuxPodSandboxConfig { resources: Some(resources), ..Default::default() };
        cri::PodSandboxConfig { linux: Some(linux), ..Default::default() }
    }

    fn annotated(name: &str, value: &str) -> cri::PodSandboxConfig {
        let annotations = [(name.to_owned(), value.to_owned())].into();
        cri::PodSandboxConfig { annotations, ..Default::default() }
    }

    #[test]
    fn limits_and_what_the_guest_needs_itself_make_its_size() {
        for (limit, quota, cpus, expected) in [
            (0, 0, 8, (2048, 2)),
            (100, 0, 8, (228, 2)),
            (101, 0, 8, (230, 2)),
            (128, 150_000, 8, (256, 2)),
            (128, 50_000, 8, (256, 1)),
            (-1, 800_000, 4, (2048, 4)),
            (i64::MAX >> 20, 0, 8, (1 << 20, 2)),
        ] {
            let plan = plan(&Vm::default(), &pod(limit, quota), Bounds::default(), cpus).unwrap();
            assert_eq!((plan.memory_mib, plan.ceiling.vcpus), expected, "{limit} MiB, quota {quota}");
        }
    }

    #[test]
    fn a_container_without_a_limit_beside_one_with_makes_the_guest_no_smaller() {
        let planned = |limit, quota, bound| {
            let bounds = Bounds { memory: bound, cpu: bound };
            let plan = plan(&Vm::default(), &pod(limit, quota), bounds, 8).unwrap();
            (plan.memory_mib, plan.ceiling.vcpus)
        };
        assert_eq!(planned(100, 50_000, Bound::Unlimited), (2048, 2));
        assert_eq!(planned(4096, 400_000, Bound::Unlimited), (4224, 4));
        assert_eq!(planned(100, 50_000, Bound::Limited), (228, 1));
    }

    #[test]
    fn headroom_is_booted_with_and_kept_from_the_pod() {
        let roomy = Vm { resize_headroom_percent: 50, ..Vm::default() };
        let planned = |limit, quota, bound, cpus| {
            let bounds = Bounds { memory: bound, cpu: bound };
            plan(&roomy, &pod(limit, quota), bounds, cpus).unwrap()
        };
        let limited = planned(100, 150_000, Bound::Limited, 8);
        assert_eq!((limited.memory_mib, limited.ceiling), (228, Ceiling { memory_mib: 342, vcpus: 3 }));
        let inside = limited.inside.unwrap();
        assert_eq!(inside.memory().as_ref().unwrap().limit(), Some((100 + 8) << 20));
        assert_eq!(inside.cpu().as_ref().unwrap().quota(), Some(150_000));
        assert_eq!(planned(100, 150_000, Bound::Limited, 2).ceiling.vcpus, 2, "no more than the node has");
        let unlimited = planned(0, 0, Bound::Unlimited, 8);
        assert_eq!(
            (unlimited.memory_mib, unlimited.ceiling.memory_mib, unlimited.inside),
            (2048, 2048, None)
        );
        let plain = plan(&Vm::default(), &pod(100, 150_000), Bounds::default(), 8).unwrap();
        assert_eq!((plain.ceiling, plain.inside), (Ceiling { memory_mib: 228, vcpus: 2 }, None));
    }

    #[test]
    fn an_overhead_that_does_not_cover_a_guest_is_told() {
        let mut config = pod(0, 0);
        assert!(
            plan(&Vm::default(), &config, Bounds::default(), 2)
                .unwrap()
                .warning
                .unwrap()
                .contains("overhead of 0 MiB")
        );
        let overhead =
            cri::LinuxContainerResources { memory_limit_in_bytes: 160 << 20, ..Default::default() };
        config.linux.as_mut().unwrap().overhead = Some(overhead);
        assert_eq!(plan(&Vm::default(), &config, Bounds::default(), 2).unwrap().warning, None);
    }

    #[test]
    fn annotations_count_where_the_operator_allows_them() {
        let allowing = Vm { allowed_annotations: ANNOTATIONS.map(str::to_owned).into(), ..Vm::default() };
        let planned = |name, value| plan(&allowing, &annotated(name, value), Bounds::default(), 8).unwrap();
        assert_eq!(planned(MEMORY, "301").memory_mib, 302);
        assert_eq!(planned(VCPUS, "3").ceiling.vcpus, 3);
        assert_eq!(planned(ARGUMENTS, " debug ").kernel_arguments, "debug");
        let refusal = |config: &Vm, name, value| {
            plan(config, &annotated(name, value), Bounds::default(), 8).unwrap_err().to_string()
        };
        for (config, name, value, problem) in [
            (&Vm::default(), VCPUS, "3", "is not among vm.allowed_annotations of this node"),
            (&allowing, VCPUS, "0", "\"0\" is not a number from 1 to 64"),
            (&allowing, MEMORY, "10", "\"10\" is not a number from 128 to 1048576"),
            (&allowing, ARGUMENTS, "a\nb", "has bytes that are not printable"),
            (&allowing, "io.hartpod.vm.cpus", "3", "is not known: there is io.hartpod.vm.memory-mib"),
        ] {
            let refusal = refusal(config, name, value);
            assert!(refusal.starts_with(&format!("config.annotations[{name:?}]: {problem}")), "{refusal}");
        }
        plan(&Vm::default(), &annotated("example.com/other", "x"), Bounds::default(), 8).unwrap();
    }
}
