//! Who the process becomes: user, groups, capabilities.

use rustix::process::{Gid, Uid};
use rustix::thread::{
    CapabilitySet, CapabilitySets as KernelSets, clear_ambient_capability_set,
    configure_capability_in_ambient_set, remove_capability_from_bounding_set, set_capabilities,
    set_keep_capabilities, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
};

use super::capability::{Bits, CapabilitySets};
use crate::errno::Errno;
use crate::failure::Failure;
use crate::request::ResolvedUser;

/// What this process may pass on.
pub(crate) fn own_permitted() -> Result<Bits, Errno> {
    Ok(rustix::thread::capabilities(None)?.permitted.bits())
}

/// Becomes the user with exactly these capabilities. After it, nothing that needs rights can be done.
pub(crate) fn assume(user: &ResolvedUser, capabilities: CapabilitySets) -> Result<(), Failure> {
    let step =
        |step: &'static str| move |e: rustix::io::Errno| Failure::Step { step: step.into(), errno: e.into() };
    // Dropping from the bounding set needs CAP_SETPCAP, so it comes first.
    drop_bounding(capabilities.bounding).map_err(step("drop bounding capabilities"))?;
    set_keep_capabilities(true).map_err(step("keep capabilities"))?;
    let groups: Vec<Gid> = user.additional_gids.iter().copied().map(Gid::from_raw).collect();
    set_thread_groups(&groups).map_err(step("set additional groups"))?;
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    set_thread_res_gid(gid, gid, gid).map_err(step("set group id"))?;
    set_thread_res_uid(uid, uid, uid).map_err(step("set user id"))?;
    set_keep_capabilities(false).map_err(step("no longer keep capabilities"))?;
    let sets = KernelSets {
        effective: CapabilitySet::from_bits_retain(capabilities.effective),
        permitted: CapabilitySet::from_bits_retain(capabilities.permitted),
        inheritable: CapabilitySet::from_bits_retain(capabilities.inheritable),
    };
    set_capabilities(None, sets).map_err(step("set capabilities"))?;
    clear_ambient_capability_set().map_err(step("clear ambient capabilities"))?;
    for bit in each(capabilities.ambient) {
        configure_capability_in_ambient_set(bit, true).map_err(step("set ambient capabilities"))?;
    }
    Ok(())
}

fn each(bits: Bits) -> impl Iterator<Item = CapabilitySet> {
    (0..u64::BITS).map(|n| 1 << n).filter(move |bit| bits & bit != 0).map(CapabilitySet::from_bits_retain)
}

/// Capabilities end at a number that the kernel says EINVAL to.
fn drop_bounding(keep: Bits) -> rustix::io::Result<()> {
    for bit in each(!keep) {
        match remove_capability_from_bounding_set(bit) {
            Err(rustix::io::Errno::INVAL) if bit.bits() > 1 << LAST_CERTAIN => return Ok(()),
            other => other?,
        }
    }
    Ok(())
}

/// CAP_CHECKPOINT_RESTORE, which every kernel that we support has (Linux 5.9).
const LAST_CERTAIN: u32 = 40;
