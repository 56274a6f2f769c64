//! Resource limits, soft and hard. What bounds the rest is the VMM's cgroup.

use rustix::process::{Resource, Rlimit, setrlimit};

use super::{At as _, JailError};

/// Sets them. `threads` is what the user of this VMM, and so the VMM, may have: with all of them there is no place for a process.
///
/// Not limited: file sizes. Log files grow by what the guest writes and scratch disks to their size, both through descriptors whose files the
/// host's quotas and the kubelet's evictions look after; a limit would be one number for all of them, and end the process at the first that
/// reaches it. Not the address space either: the guest's RAM is in it.
pub(super) fn set(threads: u32) -> Result<(), JailError> {
    let limits = [
        // A core would hold the guest's memory.
        (Resource::Core, 0),
        (Resource::Memlock, 0),
        // Of POSIX queues, which are files in a namespace that has none.
        (Resource::Msgqueue, 0),
        (Resource::Nproc, threads.into()),
        (Resource::Nice, 0),
        (Resource::Rtprio, 0),
    ];
    for (resource, limit) in limits {
        let limit = Rlimit { current: Some(limit), maximum: Some(limit) };
        setrlimit(resource, limit).at("set a resource limit")?;
    }
    Ok(())
}
