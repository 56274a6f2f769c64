//! Who the process is, and what it may: nobody, and nothing.

use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::thread::{
    CapabilitiesSecureBits, CapabilitySet, CapabilitySets, Gid, Uid, clear_ambient_capability_set,
    set_capabilities, set_capabilities_secure_bits, set_no_new_privs, set_thread_groups, set_thread_res_gid,
    set_thread_res_uid,
};

use super::{At as _, JailError, sys};

/// Stays root by its number, so that what root may do by that alone is left, and keeps these capabilities and no way to get others.
pub(super) fn keep_only(kept: CapabilitySet) -> Result<(), JailError> {
    sys::empty_bounding_set_but(kept).at("cut the bounding set of capabilities")?;
    clear_ambient_capability_set().at("clear the ambient capabilities")?;
    lock_securebits()?;
    set_thread_groups(&[]).at("give up supplementary groups")?;
    let none = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: kept, permitted: kept, inheritable: none })
        .at("give up capabilities")?;
    set_no_new_privs(true).at("set no_new_privs")?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable).at("make the process not dumpable")
}

/// Root is nobody special from here on, so capabilities outlast a change of ids and are given up by name.
fn lock_securebits() -> Result<(), JailError> {
    let bits = CapabilitiesSecureBits::NO_ROOT
        | CapabilitiesSecureBits::NO_ROOT_LOCKED
        | CapabilitiesSecureBits::NO_SETUID_FIXUP
        | CapabilitiesSecureBits::NO_SETUID_FIXUP_LOCKED
        | CapabilitiesSecureBits::KEEP_CAPS_LOCKED
        | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE
        | CapabilitiesSecureBits::NO_CAP_AMBIENT_RAISE_LOCKED;
    set_capabilities_secure_bits(bits).at("lock the securebits")
}

/// Becomes `user`, gives up every capability and all ways to get one again.
///
/// Ids are a thread's own in Linux; there is one thread, and later ones inherit.
pub(super) fn give_up(user: Option<u32>) -> Result<(), JailError> {
    sys::empty_bounding_set_but(CapabilitySet::empty()).at("empty the bounding set of capabilities")?;
    clear_ambient_capability_set().at("clear the ambient capabilities")?;
    // While there is the capability for it.
    lock_securebits()?;
    set_thread_groups(&[]).at("give up supplementary groups")?;
    let id = user.unwrap_or(0);
    let (uid, gid) = (Uid::from_raw(id), Gid::from_raw(id));
    set_thread_res_gid(gid, gid, gid).at("set the group")?;
    set_thread_res_uid(uid, uid, uid).at("set the user")?;
    let none = CapabilitySet::empty();
    set_capabilities(None, CapabilitySets { effective: none, permitted: none, inheritable: none })
        .at("give up all capabilities")?;
    set_no_new_privs(true).at("set no_new_privs")?;
    // Its files in /proc belong to root then, and nobody of its user may trace it.
    set_dumpable_behavior(DumpableBehavior::NotDumpable).at("make the process not dumpable")
}
