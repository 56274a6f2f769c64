//! What a pod costs besides its workload.

use hartpod_container::cgroup::Sample;

/// Its agent, or its guest's kernel and VMM: what is used on this host without what is used inside.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Overhead {
    pub(crate) memory_bytes: Option<u64>,
    pub(crate) cpu_ns: Option<u64>,
}

impl Overhead {
    /// `own` is of the leaf of agent or VMM. `inside` is what a guest counts; a pod on this host has nothing inside.
    pub(super) fn new(own: &Sample, inside: Option<&Sample>, is_guest: bool) -> Self {
        let (memory, cpu) = match (inside, is_guest) {
            (Some(inside), _) => (inside.memory.usage, inside.cpu.usage_ns),
            (None, true) => (None, None),
            (None, false) => (Some(0), Some(0)),
        };
        let less = |all: Option<u64>, part: Option<u64>| Some(all?.saturating_sub(part?));
        Self { memory_bytes: less(own.memory.usage, memory), cpu_ns: less(own.cpu.usage_ns, cpu) }
    }
}

#[cfg(test)]
mod tests {
    use hartpod_container::cgroup::{CpuSample, MemorySample};

    use super::*;

    fn used(memory: u64, nanos: u64) -> Sample {
        Sample {
            memory: MemorySample { usage: Some(memory), ..Default::default() },
            cpu: CpuSample { usage_ns: Some(nanos), ..Default::default() },
            ..Default::default()
        }
    }

    #[test]
    fn a_guests_overhead_is_what_is_not_used_inside() {
        let of_agent = Overhead::new(&used(300, 2000), None, false);
        assert_eq!(of_agent, Overhead { memory_bytes: Some(300), cpu_ns: Some(2000) });
        let of_guest = Overhead::new(&used(1000, 3000), Some(&used(400, 500)), true);
        assert_eq!(of_guest, Overhead { memory_bytes: Some(600), cpu_ns: Some(2500) });
        let silent = Overhead::new(&used(1000, 3000), None, true);
        assert_eq!(silent, Overhead::default(), "a guest that says nothing has none");
    }
}
