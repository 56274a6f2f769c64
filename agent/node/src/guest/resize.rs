//! Another size for a guest that runs: within what it booted with.

use hartpod_proto::cri::v1 as cri;
use oci_spec::runtime::{LinuxCpu, LinuxMemory, LinuxResources};
use serde::{Deserialize, Serialize};

use crate::config::Vm;

/// What the guest's agent has in the pod's cgroup besides the containers, in MiB.
const AGENT_MIB: u64 = 8;

/// What a guest booted with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ceiling {
    pub(crate) memory_mib: u32,
    pub(crate) vcpus: u32,
}

/// Limits of a pod; none: unlimited.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct PodLimits {
    /// Bytes.
    pub(crate) memory: Option<u64>,
    /// Microseconds of CPU time, and of which period.
    pub(crate) quota: Option<(u64, u64)>,
}

impl PodLimits {
    pub(crate) fn of(resources: Option<&cri::LinuxContainerResources>) -> Self {
        let positive = |value: i64| u64::try_from(value).ok().filter(|value| *value > 0);
        Self {
            memory: resources.and_then(|r| positive(r.memory_limit_in_bytes)),
            quota: resources.and_then(|r| positive(r.cpu_quota).zip(positive(r.cpu_period))),
        }
    }
}

/// Whether limits that are not named are lifted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Lift {
    Yes,
    No,
}

/// A guest cannot become as large.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NoRoom {
    #[error(
        "the guest booted with {ceiling} MiB of memory, and {needed} MiB are needed for these limits: a guest with room to grow needs \
         vm.resize_headroom_percent at its start"
    )]
    Memory { needed: u64, ceiling: u32 },
    #[error(
        "the guest booted with {ceiling} vCPUs, and {needed} are needed for these limits: a guest with room to grow needs \
         vm.resize_headroom_percent at its start"
    )]
    Cpus { needed: u64, ceiling: u32 },
    #[error("the guest was started by a version of hartpod that did not record how large it is")]
    Unknown,
}

/// A guest's new size.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Resize {
    /// What the guest may use, in MiB.
    pub(crate) memory_mib: u64,
    pub(crate) inside: LinuxResources,
}

/// Plans the new size of a guest on a node with so many CPUs, more than which are of no use.
pub(crate) fn resize(
    config: &Vm,
    ceiling: Ceiling,
    asked: Option<&cri::LinuxContainerResources>,
    cpus: u64,
) -> Result<Resize, NoRoom> {
    let limits = PodLimits::of(asked);
    let memory_mib = match limits.memory {
        Some(bytes) => room_for(config, ceiling, bytes)?,
        None => ceiling.memory_mib.into(),
    };
    if let Some((quota, period)) = limits.quota {
        let needed = quota.div_ceil(period).min(cpus);
        if needed > ceiling.vcpus.into() {
            return Err(NoRoom::Cpus { needed, ceiling: ceiling.vcpus });
        }
    }
    Ok(Resize { memory_mib, inside: inside(limits.memory, limits.quota, Lift::Yes) })
}

/// What a guest needs for containers with so many bytes, in MiB, if it has that.
pub(crate) fn room_for(config: &Vm, ceiling: Ceiling, bytes: u64) -> Result<u64, NoRoom> {
    let needed = bytes.div_ceil(1 << 20).saturating_add(config.guest_base_mib);
    if needed > ceiling.memory_mib.into() {
        return Err(NoRoom::Memory { needed, ceiling: ceiling.memory_mib });
    }
    Ok(needed)
}

/// Limits of the pod's cgroup in its guest.
pub(super) fn inside(memory: Option<u64>, quota: Option<(u64, u64)>, lift: Lift) -> LinuxResources {
    let signed = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
    let unnamed = (lift == Lift::Yes).then_some(-1);
    let mut limits = (LinuxMemory::default(), LinuxCpu::default());
    limits.0.set_limit(memory.map(|bytes| signed(bytes.saturating_add(AGENT_MIB << 20))).or(unnamed));
    limits.1.set_quota(quota.map(|(quota, _)| signed(quota)).or(unnamed));
    limits.1.set_period(quota.map(|(_, period)| period));
    let mut resources = LinuxResources::default();
    // The spec's own defaults have device rules, which are not the pod's business.
    resources.set_devices(None);
    resources.set_memory(Some(limits.0));
    resources.set_cpu(Some(limits.1));
    resources
}

#[cfg(test)]
mod tests {
    use super::*;

    const CEILING: Ceiling = Ceiling { memory_mib: 328, vcpus: 2 };

    fn asked(mib: i64, quota: i64) -> cri::LinuxContainerResources {
        cri::LinuxContainerResources {
            memory_limit_in_bytes: mib << 20,
            cpu_quota: quota,
            cpu_period: 100_000,
            ..Default::default()
        }
    }

    #[test]
    fn a_guest_becomes_as_large_as_it_booted_and_no_larger() {
        let resized = |mib, quota, cpus| resize(&Vm::default(), CEILING, Some(&asked(mib, quota)), cpus);
        for (mib, quota, expected) in [(100, 50_000, 228), (200, 200_000, 328), (0, 0, 328)] {
            assert_eq!(resized(mib, quota, 8).unwrap().memory_mib, expected);
        }
        assert_eq!(resized(201, 0, 8), Err(NoRoom::Memory { needed: 329, ceiling: 328 }));
        assert_eq!(resized(100, 200_001, 8), Err(NoRoom::Cpus { needed: 3, ceiling: 2 }));
        assert!(resized(100, 300_000, 2).is_ok(), "the node has no more");
        assert!(resized(i64::MAX >> 20, 0, 8).is_err());
    }

    #[test]
    fn what_has_no_limit_any_more_is_lifted_inside() {
        let resized = resize(&Vm::default(), CEILING, Some(&asked(100, 50_000)), 8).unwrap().inside;
        let numbers = |r: &LinuxResources| {
            let (memory, cpu) = (r.memory().as_ref().unwrap(), r.cpu().as_ref().unwrap());
            (memory.limit(), cpu.quota(), cpu.period())
        };
        assert_eq!(numbers(&resized), (Some(108 << 20), Some(50_000), Some(100_000)));
        let lifted = resize(&Vm::default(), CEILING, None, 8).unwrap().inside;
        assert_eq!(numbers(&lifted), (Some(-1), Some(-1), None));
    }
}
