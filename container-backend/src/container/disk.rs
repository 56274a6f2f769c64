//! A container's disk in a guest: partitions 1 to n are the image's layers, the bottom first, partition n + 1 is what it writes to.

use std::fs;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::errno::Errno;
use crate::failure::Failure;
use crate::mount;
use crate::pod::private_root::{CONTAINERS, LAYERS};
use crate::request::DiskRoot;
use crate::sys::mount_attr::{self, MountAttr, Reach};
use crate::virtio_slot::SlotError;

use super::mount_plan::MOUNT_ATTR_RDONLY;
use super::rootfs::Parts;

/// How long the disk and its partitions may take to appear.
const DISK_WAIT: Duration = Duration::from_secs(10);

/// The file systems of a disk, mounted but not attached.
#[derive(Debug)]
pub(crate) struct DiskMounts {
    /// The bottom layer first.
    layers: Vec<OwnedFd>,
    scratch: OwnedFd,
}

/// Binds the slot and mounts what is on its disk. Call it in the guest's first mount namespace, where its devices are; it may block as long as the
/// host's disks do.
pub(crate) fn open(root: &DiskRoot) -> Result<DiskMounts, Failure> {
    let slot = root.slot;
    let absent = |error: SlotError| {
        let errno = match &error {
            SlotError::Empty { .. } => Errno::NODEV,
            SlotError::Driver { source, .. } => Errno::from_raw(source.raw_os_error().unwrap_or(libc::EIO)),
            SlotError::Missing { .. } => Errno::from_raw(libc::ETIMEDOUT),
        };
        Failure::RootFs { what: error.to_string(), errno }
    };
    slot.bind().map_err(absent)?;
    let disk = slot.disk(DISK_WAIT).map_err(absent)?;
    let layers = (1..=root.layers).map(|number| {
        let device = disk.partition(number, DISK_WAIT).map_err(absent)?;
        layer(&device).map_err(|errno| Failure::RootFs { what: format!("mount layer {number}"), errno })
    });
    let layers = layers.collect::<Result<_, _>>()?;
    let device = disk.partition(root.layers + 1, DISK_WAIT).map_err(absent)?;
    let scratch = mount::new("ext4", &text(device), &[]);
    let scratch =
        scratch.map_err(|errno| Failure::RootFs { what: "mount the writable partition".into(), errno })?;
    Ok(DiskMounts { layers, scratch })
}

fn text(device: PathBuf) -> String {
    device.into_os_string().to_string_lossy().into_owned()
}

fn layer(device: &Path) -> Result<OwnedFd, Errno> {
    let layer = mount::new("erofs", &text(device.to_owned()), &[("ro", None)])?;
    let read_only = MountAttr { set: MOUNT_ATTR_RDONLY, ..MountAttr::default() };
    mount_attr::set(layer.as_fd(), Reach::One, &read_only)?;
    Ok(layer)
}

impl DiskMounts {
    /// Attaches everything in this process's own copy of the agent's mount namespace, with which it goes.
    pub(crate) fn attach(self) -> Result<Parts, Failure> {
        let failed = |what: &str| {
            let what = what.to_owned();
            move |errno| Failure::RootFs { what, errno }
        };
        let mut layers = Vec::with_capacity(self.layers.len());
        for (number, layer) in (1..).zip(self.layers) {
            let folder = format!("{LAYERS}/{number}");
            attach(layer, &folder).map_err(failed("attach a layer"))?;
            layers.push(folder);
        }
        attach(self.scratch, CONTAINERS).map_err(failed("attach the writable partition"))?;
        Ok(Parts { layers, scratch: CONTAINERS.to_owned() })
    }
}

fn attach(mount: OwnedFd, folder: &str) -> Result<(), Errno> {
    // The folder is the agent's, and all its containers use the same.
    match fs::create_dir(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(error.into()),
        _ => {}
    }
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
    mount::attach(mount, rustix::fs::open(folder, flags, rustix::fs::Mode::empty())?)
}
