//! As whom files are made, and what a process may not do for a moment.

use nix::unistd::{Gid, Uid, setfsgid, setfsuid};
use rustix::io::Errno;
use rustix::thread::{CapabilitySet, capabilities, set_capabilities};

/// What this thread makes belongs to somebody else, until it is dropped. (The ids of the file system are a thread's own in Linux.)
#[derive(Debug)]
pub(super) struct As(());

impl As {
    /// # Errors
    /// EINVAL for an id that nobody has.
    pub(super) fn user(uid: u32, gid: u32) -> Result<Self, Errno> {
        if uid == u32::MAX || gid == u32::MAX {
            return Err(Errno::INVAL);
        }
        setfsgid(Gid::from_raw(gid));
        setfsuid(Uid::from_raw(uid));
        Ok(Self(()))
    }
}

impl Drop for As {
    fn drop(&mut self) {
        setfsuid(Uid::from_raw(0));
        setfsgid(Gid::from_raw(0));
    }
}

/// Does something without the right to keep the set-user and set-group bits of what is changed, so that the kernel takes them off.
pub(super) fn killing_privileges<T>(
    wanted: bool,
    act: impl FnOnce() -> Result<T, Errno>,
) -> Result<T, Errno> {
    if !wanted {
        return act();
    }
    let before = capabilities(None)?;
    let mut without = before;
    without.effective.remove(CapabilitySet::FSETID);
    set_capabilities(None, without)?;
    let done = act();
    // It gives back what is permitted, which cannot fail.
    set_capabilities(None, before)?;
    done
}

/// A number for an inode whose own does not fit; the same for the same (SplitMix64, Vigna).
pub(super) fn mixed(device: (u32, u32), inode: u64) -> u64 {
    let mut state = inode ^ (u64::from(device.0) << 32 | u64::from(device.1)).rotate_left(17);
    state = (state ^ state >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    state = (state ^ state >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    state ^ state >> 31
}
