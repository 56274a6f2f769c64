//! A container's disk in a guest: first the image's layers, the bottom first, then those of images that it mounts, and the last partition is what it
//! writes to.

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::errno::Errno;
use crate::failure::Failure;
use crate::mount;
use crate::pod::private_root::{CONTAINERS, LAYERS};
use crate::sys::mount_attr::{self, MountAttr, Reach};
use crate::virtio_slot::{Slot, SlotError};

use super::mount_plan::MOUNT_ATTR_RDONLY;
use super::rootfs::Parts;

/// How long the disk and its partitions may take to appear.
const DISK_WAIT: Duration = Duration::from_secs(10);

/// A disk whose first partitions are the image's layers (EROFS, the bottom first), the next ones those of images that are mounted (EROFS), and
/// whose last one the container writes to (ext4).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DiskRoot {
    /// Where the host has put it.
    pub slot: Slot,
    /// Number of layers.
    pub layers: u32,
    /// Number of layers of images that are mounted.
    pub volume_layers: u32,
}

/// The file systems of a disk, mounted but not attached, in the order of its partitions.
#[derive(Debug)]
pub struct DiskMounts {
    mounts: Vec<OwnedFd>,
    layers: usize,
}

/// Binds the slot and mounts what is on its disk. Call it in the guest's first mount namespace, where its devices are, in a process that may block
/// as long as the host's disks do, and outside of the container's cgroup, which may not open devices (the kernel that reads partitions for it
/// included).
///
/// # Errors
/// The slot is empty, or the disk is not as `root` says.
pub fn open_disk(root: &DiskRoot) -> Result<DiskMounts, Failure> {
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
    let all = root.layers.saturating_add(root.volume_layers);
    let layers = (1..=all).map(|number| {
        let device = disk.partition(number, DISK_WAIT).map_err(absent)?;
        layer(&device).map_err(|errno| Failure::RootFs { what: format!("mount layer {number}"), errno })
    });
    let mut mounts = layers.collect::<Result<Vec<_>, _>>()?;
    let device = disk.partition(all + 1, DISK_WAIT).map_err(absent)?;
    let scratch = mount::new("ext4", &text(device), &[]);
    let failed = |errno| Failure::RootFs { what: "mount the writable partition".into(), errno };
    mounts.push(scratch.map_err(failed)?);
    Ok(DiskMounts { mounts, layers: root.layers as usize })
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
    /// What [`open_disk`] made of `root` in another process.
    #[must_use]
    pub fn from_fds(root: &DiskRoot, fds: Vec<OwnedFd>) -> Self {
        Self { mounts: fds, layers: root.layers as usize }
    }

    /// To be handed to another process.
    pub fn fds(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.mounts.iter().map(AsFd::as_fd)
    }

    /// Number of layers.
    pub(crate) fn layers(&self) -> usize {
        self.layers
    }

    /// Attaches everything in this process's own copy of the agent's mount namespace, with which it goes.
    pub(crate) fn attach(&self) -> Result<Parts, Failure> {
        let failed = |what: &str| {
            let what = what.to_owned();
            move |errno| Failure::RootFs { what, errno }
        };
        let (scratch, layers) =
            self.mounts.split_last().ok_or_else(|| failed("find the disk")(Errno::NODEV))?;
        let mut folders = Vec::with_capacity(layers.len());
        for (number, layer) in (1..).zip(layers) {
            let folder = layer_folder(number);
            attach(layer, &folder).map_err(failed("attach a layer"))?;
            folders.push(folder);
        }
        attach(scratch, CONTAINERS).map_err(failed("attach the writable partition"))?;
        // What follows is of images that are mounted, which find it by its number.
        folders.truncate(self.layers);
        Ok(Parts { layers: folders, scratch: CONTAINERS.to_owned() })
    }
}

/// Where the file system of a partition is attached.
pub(super) fn layer_folder(partition: u32) -> String {
    format!("{LAYERS}/{partition}")
}

fn attach(mount: &OwnedFd, folder: &str) -> Result<(), Errno> {
    // The folder is the agent's, and all its containers use the same.
    match fs::create_dir(folder) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(error.into()),
        _ => {}
    }
    let flags = rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC;
    mount::attach(mount, rustix::fs::open(folder, flags, rustix::fs::Mode::empty())?)
}
