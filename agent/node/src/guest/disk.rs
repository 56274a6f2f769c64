//! The disk of a container in a guest: the image's layers as EROFS files, and a file of its own to write to.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hartpod_images::LayerFileError;
use hartpod_proto::ContainerId;
use hartpod_vm::guest_image::{GuestImage, OpenError};
use hartpod_vm::launcher::Control;
use hartpod_vm::virtio::blk::BlockExtent;
use rustix::fs::{SeekFrom, copy_file_range, ftruncate, ioctl_ficlone, seek};
use rustix::io::Errno;

use super::{ControlError, DiskImages, VmmControl, release_volumes};
use crate::node::Node;

/// In the folder of the container's writable layer.
pub(crate) const SCRATCH_FILE: &str = "scratch.ext4";
/// Layers of an image that a disk has room for: its partition table has 128 entries, and one is the container's own file.
const MAX_LAYERS: usize = 127;

/// For the VMM to take a disk out: it does not wait for the guest.
const EMPTY: Duration = Duration::from_secs(3);

/// A container has no disk.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DiskError {
    #[error("the image, with those that are mounted, has {0} layers: in a guest {MAX_LAYERS} are possible")]
    Layers(usize),
    #[error(transparent)]
    LayerFile(#[from] LayerFileError),
    #[error("the guest's image")]
    GuestImage(#[source] OpenError),
    #[error("{what} {}", path.display())]
    File { what: &'static str, path: PathBuf, source: io::Error },
    #[error("put the disk into slot {slot} of the guest")]
    Fill { slot: u32, source: ControlError },
    #[error("work of the daemon broke off")]
    BrokenOff(#[source] tokio::task::JoinError),
}

/// A container's part of a guest.
#[derive(Debug, Clone)]
pub(crate) struct Place {
    pub(crate) vmm: VmmControl,
    pub(crate) container: ContainerId,
    pub(crate) slot: u32,
}

fn fail<E: Into<io::Error>>(what: &'static str, path: &Path) -> impl FnOnce(E) -> DiskError {
    let path = path.to_owned();
    move |source| DiskError::File { what, path, source: source.into() }
}

/// Fills a slot of the guest with the container's disk. The folder of the container's writable layer exists.
pub(crate) async fn fill(node: &Node, place: Place, images: &DiskImages) -> Result<(), DiskError> {
    if images.partitions.len() > MAX_LAYERS {
        return Err(DiskError::Layers(images.partitions.len()));
    }
    let layers = images.files(node).await?;
    let (root, scratch) =
        (node.layout.root.clone(), node.layout.scratch(&place.container).join(SCRATCH_FILE));
    let made = tokio::task::spawn_blocking(move || disk_blocking(&root, &layers, &scratch)).await;
    let disk = made.map_err(DiskError::BrokenOff)??;
    let slot = place.slot;
    let fill = move |control: &Control| {
        let filled = control.fill(slot, &disk);
        // What an earlier daemon left there half made; the VMM refuses if it is in use.
        filled.or_else(|refusal| match control.empty(slot) {
            Ok(()) => control.fill(slot, &disk),
            Err(_) => Err(refusal),
        })
    };
    place.vmm.ask(Control::PATIENCE, fill).await.map_err(|source| DiskError::Fill { slot, source })
}

/// The files that the disk is made of: the layers, and the one to write to.
fn disk_blocking(root: &Path, layers: &[PathBuf], scratch: &Path) -> Result<Vec<BlockExtent>, DiskError> {
    let image = GuestImage::current(root).map_err(DiskError::GuestImage)?;
    let scratch = copy_sparse(&image.scratch(), scratch)?;
    let layer = |path: &PathBuf| {
        let file = File::open(path).map_err(fail("open", path))?;
        Ok::<_, DiskError>(BlockExtent { file: file.into(), read_only: true })
    };
    let mut disk = layers.iter().map(layer).collect::<Result<Vec<_>, _>>()?;
    disk.push(BlockExtent { file: scratch.into(), read_only: false });
    Ok(disk)
}

/// Takes what the guest has let go of: the container's disk, its log, and its volumes. Done before, or never there, is fine.
pub(crate) async fn take_back(
    vmm: &VmmControl,
    container: ContainerId,
    slot: u32,
) -> Result<(), ControlError> {
    let id = container.clone();
    let take = move |control: &Control| {
        control.empty(slot)?;
        control.end_log(id.as_str())
    };
    vmm.ask(EMPTY, take).await?;
    release_volumes(vmm, &container, EMPTY).await;
    Ok(())
}

/// A copy that takes no more room than its source has data, or none at all where the file system shares blocks.
fn copy_sparse(from: &Path, to: &Path) -> Result<File, DiskError> {
    let source = File::open(from).map_err(fail("open", from))?;
    let copy = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(to);
    let copy = copy.map_err(fail("make", to))?;
    match ioctl_ficlone(&copy, &source) {
        Ok(()) => Ok(copy),
        Err(_) => copy_data(&source, &copy).map(|()| copy).map_err(fail("copy to", to)),
    }
}

fn copy_data(source: &File, copy: &File) -> Result<(), Errno> {
    let length = rustix::fs::fstat(source)?.st_size.try_into().unwrap_or(0);
    ftruncate(copy, length)?;
    let mut at = 0;
    loop {
        at = match seek(source, SeekFrom::Data(at)) {
            // Nothing but a hole up to the end.
            Err(Errno::NXIO) => return Ok(()),
            other => other?,
        };
        let end = seek(source, SeekFrom::Hole(at))?;
        while at < end {
            let (mut from, mut to) = (at, at);
            let length = usize::try_from(end - at).unwrap_or(usize::MAX);
            let copied = copy_file_range(source, Some(&mut from), copy, Some(&mut to), length)?;
            if copied == 0 {
                return Err(Errno::IO);
            }
            at += copied as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{FileExt as _, MetadataExt as _};

    use super::*;

    #[test]
    fn a_copy_has_the_same_bytes_and_the_same_holes() {
        let dir = tempfile::tempdir().unwrap();
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        let file = File::create(&from).unwrap();
        file.write_all_at(b"begin", 0).unwrap();
        file.write_all_at(b"middle", 5 << 20).unwrap();
        file.set_len(64 << 20).unwrap();
        let copy = copy_sparse(&from, &to).unwrap();
        assert_eq!(std::fs::read(&from).unwrap(), std::fs::read(&to).unwrap());
        let taken = |file: &File| file.metadata().unwrap().blocks();
        assert!(taken(&copy) <= taken(&file) + 64, "{} blocks, of {}", taken(&copy), taken(&file));
        assert!(copy_sparse(&from, &to).is_err(), "a file that exists is somebody's");
    }
}
