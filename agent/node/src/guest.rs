//! What is different about a pod in a guest: its size, the user of its VMM, the disks of its containers.

mod control;
mod disk;
mod log;
mod oom;
mod plan;
mod told;
mod users;

pub(crate) use control::{ControlError, VmmControl};
pub(crate) use disk::{DiskError, Place, fill, take_back};
pub(crate) use log::{GuestLog, LogError, LogTokens, last_lines};
pub(crate) use oom::set_score;
pub(crate) use plan::{ANNOTATIONS, GuestPlan, MAX_MEMORY_MIB, MAX_VCPUS, plan};
pub(crate) use told::{cut, to_host_time};
pub(crate) use users::{NoUser, VmmUser, VmmUsers};

/// Slots of a guest in all.
pub(crate) use hartpod_vm::arch::riscv64::layout::MAX_SLOTS as SLOTS;
/// The first slot for disks of a VMM: vsock, network and balloon come before.
pub(crate) use hartpod_vm::boot::FIXED_SLOTS as FIRST_DISK;

/// The first slot for a container: the disk of modules comes before.
pub(crate) const FIRST_CONTAINER: u32 = FIRST_DISK + 1;

/// What never changes of a guest.
#[derive(Debug)]
pub(crate) struct GuestInfo {
    pub(crate) plan: GuestPlan,
    /// Held for as long as the pod is known.
    pub(crate) user: VmmUser,
}

/// The lowest slot for a container's disk that is not among `taken`.
pub(crate) fn free_slot(taken: impl Iterator<Item = u32>) -> Option<u32> {
    let taken: std::collections::BTreeSet<u32> = taken.collect();
    (FIRST_CONTAINER..SLOTS).find(|slot| !taken.contains(slot))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_used_again_and_run_out() {
        assert_eq!(free_slot([].into_iter()), Some(4));
        assert_eq!(free_slot([4, 6].into_iter()), Some(5));
        assert_eq!(free_slot(4..32), None);
    }
}
