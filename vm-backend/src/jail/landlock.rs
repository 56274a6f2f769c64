//! Landlock (Documentation/userspace-api/landlock.rst of Linux): a second lock, by the kernel's own rules, on files, TCP, abstract sockets and
//! signals. Everything that a kernel can deny is denied, and nothing excepted.

use super::{At as _, JailError, sys};

/// `struct landlock_ruleset_attr`. Kernels take a shorter one, and a longer one whose rest is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub(super) struct Ruleset {
    /// LANDLOCK_ACCESS_FS_*
    pub(super) files: u64,
    /// LANDLOCK_ACCESS_NET_*
    pub(super) net: u64,
    /// LANDLOCK_SCOPE_*
    pub(super) scoped: u64,
}

/// The version of Landlock that this kernel has; `None`: it has none, or it was not switched on (`lsm=`).
#[must_use]
pub fn abi() -> Option<u32> {
    sys::landlock_abi().ok().filter(|abi| *abi > 0)
}

/// Denies this thread, and those that it starts, all that can be denied.
pub(super) fn deny_all() -> Result<(), JailError> {
    let Some(abi) = abi() else { return Ok(()) };
    let ruleset = sys::landlock_create_ruleset(&everything(abi)).at("make a Landlock ruleset")?;
    sys::landlock_restrict_self(&ruleset).at("restrict this process by Landlock")
}

/// Denies what has nothing to do with files: of those this process is to use some that it does not have yet.
pub(super) fn deny_all_but_files() -> Result<(), JailError> {
    let Some(abi) = abi() else { return Ok(()) };
    let ruleset = Ruleset { files: 0, ..everything(abi) };
    // A ruleset about nothing is an error.
    if ruleset.net == 0 && ruleset.scoped == 0 {
        return Ok(());
    }
    let ruleset = sys::landlock_create_ruleset(&ruleset).at("make a Landlock ruleset")?;
    sys::landlock_restrict_self(&ruleset).at("restrict this process by Landlock")
}

/// All that a version knows.
fn everything(abi: u32) -> Ruleset {
    let files = match abi {
        // From EXECUTE to MAKE_SYM.
        1 => 13,
        // REFER
        2 => 14,
        // TRUNCATE
        3 | 4 => 15,
        // IOCTL_DEV
        _ => 16,
    };
    // BIND_TCP and CONNECT_TCP
    let net = if abi >= 4 { 2 } else { 0 };
    // ABSTRACT_UNIX_SOCKET and SIGNAL
    let scoped = if abi >= 6 { 2 } else { 0 };
    let lowest = |bits: u32| (1 << bits) - 1;
    Ruleset { files: lowest(files), net: lowest(net), scoped: lowest(scoped) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers of include/uapi/linux/landlock.h.
    #[test]
    fn a_version_denies_what_it_knows_and_no_more() {
        assert_eq!(everything(1), Ruleset { files: 0x1fff, net: 0, scoped: 0 });
        assert_eq!(everything(3), Ruleset { files: 0x7fff, net: 0, scoped: 0 });
        assert_eq!(everything(4), Ruleset { files: 0x7fff, net: 3, scoped: 0 });
        assert_eq!(everything(5), Ruleset { files: 0xffff, net: 3, scoped: 0 });
        assert_eq!(everything(6), Ruleset { files: 0xffff, net: 3, scoped: 3 });
        assert_eq!(everything(99), everything(6));
    }

    #[test]
    fn this_kernel_takes_what_its_version_knows() {
        if let Some(abi) = abi() {
            sys::landlock_create_ruleset(&everything(abi)).unwrap();
        }
    }
}
