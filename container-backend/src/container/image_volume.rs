//! Images as volumes: their layers put together, read-only, and mounted from a folder of them on.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use rustix::mount::{UnmountFlags, unmount};

use super::disk::layer_folder;
use super::mount_plan::{MountKind, MountPlan};
use super::mounts::Collected;
use super::root::{PointKind, Root, kind_of};
use super::rootfs::{Overlays, mount_layers};
use crate::errno::Errno;
use crate::failure::Failure;
use crate::mount;
use crate::pod::private_root::{EMPTY, LAYERS, ROOTFS};
use crate::request::{VolumeImage, VolumeLayers};

/// An image, by where its layers are in this process's own copy of the agent's mount namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ImageLayers {
    name: String,
    /// The bottom layer first.
    pub(crate) folders: Vec<String>,
}

impl ImageLayers {
    pub(crate) fn of(image: &VolumeImage) -> Self {
        let folders = match &image.layers {
            VolumeLayers::Folders(names) => names.iter().map(|name| format!("{LAYERS}/{name}")).collect(),
            VolumeLayers::Partitions(numbers) => numbers.iter().copied().map(layer_folder).collect(),
        };
        Self { name: image.name.clone(), folders }
    }
}

/// Makes what the image mounts of the plan show. Call it before the root file system is mounted, and once the layers are attached: overlays have
/// its place for a moment, since kernels before 6.15 copy no part of a mount that is attached nowhere.
pub(crate) fn make_all(
    plan: &[MountPlan],
    images: &[ImageLayers],
    overlays: Overlays<'_>,
    in_user_namespace: bool,
    collected: &mut Collected,
) -> Result<(), Failure> {
    for (number, mount) in plan.iter().enumerate() {
        if let MountKind::Image { image, sub_path } = &mount.kind {
            let failed = |(what, errno): (String, Errno)| Failure::ImageVolume {
                image: image.clone(),
                destination: mount.destination.clone(),
                what,
                errno,
            };
            let layers = images.iter().find(|layers| layers.name == *image);
            let layers = layers.ok_or_else(|| failed(("find its layers".into(), Errno::NOENT)))?;
            let alone = !in_user_namespace && overlays.label.is_none();
            collected.put(number, make(layers, sub_path, overlays, alone).map_err(failed)?);
        }
    }
    Ok(())
}

/// A copy of a folder of the image. The error says what was tried.
///
/// A layer that may stand `alone` is shown as it is in the store. Not in a user namespace, where read-only would be the mount alone: an overlay of layers is
/// so in itself.
fn make(
    layers: &ImageLayers,
    sub_path: &Path,
    overlays: Overlays<'_>,
    alone: bool,
) -> Result<OwnedFd, (String, Errno)> {
    match &layers.folders[..] {
        [] => folder_of(EMPTY, sub_path),
        [layer] if alone => folder_of(layer, sub_path),
        several => {
            let below = Root::open(ROOTFS).map_err(|errno| (format!("open {ROOTFS}"), errno))?;
            let mut top_first: Vec<String> = several.iter().rev().cloned().collect();
            // One layer by itself has the store's label. In an overlay, which takes no less than two, it has the container's.
            if top_first.len() == 1 {
                top_first.push(EMPTY.to_owned());
            }
            mount_layers(&top_first, None, overlays).map_err(|failure| match failure {
                Failure::RootFs { what, errno } => (what, errno),
                other => (other.to_string(), Errno::INVAL),
            })?;
            let copied = folder_of(ROOTFS, sub_path);
            clear(&below).map_err(|errno| ("take the overlay away".to_owned(), errno))?;
            copied
        }
    }
}

fn folder_of(place: &str, sub_path: &Path) -> Result<OwnedFd, (String, Errno)> {
    let what = || match sub_path.as_os_str().is_empty() {
        true => "mount it".to_owned(),
        false => format!("sub path {sub_path:?}"),
    };
    let folder = Root::open(place).and_then(|root| root.resolve(&Path::new("/").join(sub_path)));
    let folder = folder.map_err(|errno| (what(), errno))?;
    // As containerd: what an image volume shows is a folder (KEP-4639, non-goals).
    match kind_of(folder.as_fd()) {
        Ok(PointKind::Folder) => {}
        Ok(PointKind::File) => return Err((what(), Errno::NOTDIR)),
        Err(errno) => return Err((what(), errno)),
    }
    mount::clone_at(folder.as_fd(), "", false).map_err(|errno| (what(), errno))
}

/// Takes from [`ROOTFS`] what was mounted since `below` was opened.
fn clear(below: &Root) -> Result<(), Errno> {
    while !below.is_same_mount(&Root::open(ROOTFS)?)? {
        unmount(ROOTFS, UnmountFlags::DETACH)?;
    }
    Ok(())
}
