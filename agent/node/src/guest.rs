//! What is different about a pod in a guest: its size, the user of its VMM, the disks of its containers.

mod control;
mod disk;
mod disk_images;
mod log;
mod oom;
mod plan;
mod resize;
mod series;
mod told;
mod users;
mod volumes;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, Ordering};

pub(crate) use control::{ControlError, VmmControl};
pub(crate) use disk::{DiskError, Place, SCRATCH_FILE, fill, take_back};
pub(crate) use disk_images::DiskImages;
pub(crate) use log::{GuestLog, LogError, LogTokens, last_lines};
pub(crate) use oom::set_score;
pub(crate) use plan::{ANNOTATIONS, GuestPlan, MAX_MEMORY_MIB, MAX_VCPUS, plan};
pub(crate) use resize::{Ceiling, NoRoom, resize, room_for};
pub(crate) use series::{VmmUse, counts};
pub(crate) use told::{cut, to_host_time};
pub(crate) use users::{NoUser, VmmUser, VmmUsers};
pub(crate) use volumes::{
    VolumeError, release as release_volumes, share as share_volumes, take_from_volumes,
};

/// Slots of a guest in all.
pub(crate) use hartpod_vm::arch::riscv64::layout::MAX_SLOTS as SLOTS;
/// The first slot for disks of a VMM: vsock, network and balloon come before.
pub(crate) use hartpod_vm::boot::FIXED_SLOTS as FIRST_DISK;

/// The first slot for a container: the disk of modules comes before.
pub(crate) const FIRST_CONTAINER: u32 = FIRST_DISK + 1;
/// The last slot is for volumes; a VMM has room for their queues in that one alone.
pub(crate) const VOLUMES_SLOT: u32 = SLOTS - 1;
/// Containers of a guest at a time.
pub(crate) const MAX_CONTAINERS: u32 = VOLUMES_SLOT - FIRST_CONTAINER;

/// What never changes of a guest.
#[derive(Debug)]
pub(crate) struct GuestInfo {
    /// Not known to a daemon that found the pod: its size was for the VMM to know.
    pub(crate) plan: Option<GuestPlan>,
    /// What it booted with; not known of one that an older version started.
    pub(crate) ceiling: Option<Ceiling>,
    /// Held for as long as the pod is known.
    pub(crate) user: VmmUser,
    /// Warnings of it that were told.
    warned: AtomicU32,
}

/// Warnings of a guest that are told: it may have any number of them.
const MAX_WARNED: u32 = 32;

impl GuestInfo {
    /// One to be started.
    pub(crate) fn planned(plan: GuestPlan, user: VmmUser) -> Self {
        Self { ceiling: Some(plan.ceiling), plan: Some(plan), user, warned: AtomicU32::new(0) }
    }

    /// One that an earlier daemon started.
    pub(crate) fn found(ceiling: Option<Ceiling>, user: VmmUser) -> Self {
        Self { plan: None, ceiling, user, warned: AtomicU32::new(0) }
    }

    /// Whether one more warning of it is told.
    pub(crate) fn may_warn(&self) -> bool {
        self.warned.fetch_add(1, Ordering::Relaxed) < MAX_WARNED
    }
}

/// The lowest slot for a container's disk that is not among `taken`; one that the guest may hold only when there is no other.
pub(crate) fn free_slot(taken: impl Iterator<Item = u32>, held: &BTreeSet<u32>) -> Option<u32> {
    let taken: BTreeSet<u32> = taken.collect();
    let free = || (FIRST_CONTAINER..VOLUMES_SLOT).filter(|slot| !taken.contains(slot));
    free().find(|slot| !held.contains(slot)).or_else(|| free().next())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_used_again_and_run_out() {
        let slot =
            |taken: &[u32], held: &[u32]| free_slot(taken.iter().copied(), &held.iter().copied().collect());
        assert_eq!(slot(&[], &[]), Some(4));
        assert_eq!(slot(&[4, 6], &[]), Some(5));
        assert_eq!(free_slot(4..31, &BTreeSet::new()), None);
        // It may have let go meanwhile: that is found out when nothing else is left.
        assert_eq!(slot(&[5], &[4]), Some(6));
        assert_eq!(free_slot(5..31, &BTreeSet::from([4])), Some(4));
    }
}
