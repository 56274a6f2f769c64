//! The volumes of a guest: one virtio-fs device, mounted once.

use std::fs;
use std::io;

use rustix::mount::{MountFlags, mount};

use crate::errno::Errno;
use crate::failure::Failure;
use crate::virtio_slot::{Slot, SlotError};

/// What the VMM calls the device.
const TAG: &str = "hartpod";
/// Where specs find volumes, by their numbers (pod.proto).
const FOLDER: &str = "/run/hartpod/volumes";

/// Binds the device in `slot` and mounts it, if it is not. Call it in the guest's first mount namespace, in a process that may block.
///
/// # Errors
/// The slot is empty, or the guest's kernel has no virtiofs.
pub fn mount_volumes(slot: Slot) -> Result<(), Failure> {
    let failed = |errno| Failure::Step { step: "mount the guest's volumes".into(), errno };
    if is_mounted().map_err(|error| failed(error.into()))? {
        return Ok(());
    }
    slot.bind().map_err(|error| {
        let errno = match &error {
            SlotError::Driver { source, .. } => Errno::from_raw(source.raw_os_error().unwrap_or(libc::EIO)),
            SlotError::Empty { .. } | SlotError::Missing { .. } => Errno::NODEV,
        };
        Failure::Step { step: format!("bind the device of volumes: {error}"), errno }
    })?;
    fs::create_dir_all(FOLDER).map_err(|error| failed(error.into()))?;
    // No device of a volume is one of the guest's. Two that mount it at once mount the same.
    mount(TAG, FOLDER, "virtiofs", MountFlags::NODEV, None).map_err(|errno| failed(errno.into()))
}

fn is_mounted() -> io::Result<bool> {
    let table = fs::read_to_string("/proc/self/mounts")?;
    Ok(table.lines().any(|line| line.split(' ').nth(1) == Some(FOLDER)))
}
