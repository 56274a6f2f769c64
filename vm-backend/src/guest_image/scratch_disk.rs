//! What a container's writable disk begins as: an empty ext4 file system in a sparse file, which is copied for each container.

use std::fs::File;
use std::path::Path;

use super::BuildError;
use super::file_error::At as _;
use super::tool;

pub(super) const PROGRAM: &str = "mkfs.ext4";

/// Size of a container's writable disk in bytes. It is a ceiling: only what is written takes space on the node.
pub const SCRATCH_BYTES: u64 = 10 << 30;

/// Makes the file system in the new file `image`.
///
/// - No journal: the disk dies with its container, and is never mounted after a crash.
/// - No checksums of metadata: the file lies on a file system of the node that has its own, and boards compute crc32c in software.
/// - Nothing lazy: else each guest's kernel would go on formatting, and fill the sparse file with zeros. To mke2fs a discarded file reads as
///   zeros, so it does not write them either.
pub(super) fn make(program: &Path, image: &Path) -> Result<(), BuildError> {
    let file = File::create_new(image).at("create", image)?;
    file.set_len(SCRATCH_BYTES).at("grow", image)?;
    let features = ["-O", "^has_journal,^metadata_csum,^resize_inode", "-m", "0"];
    let extended = ["-E", "lazy_itable_init=0,discard,root_owner=0:0"];
    let options = ["-q", "-F"].into_iter().chain(features).chain(extended).map(AsRef::as_ref);
    Ok(tool::run(program, options.chain([image.as_os_str()]))?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn the_scratch_disk_is_large_and_takes_nearly_nothing() {
        let Some(program) = tool::find(&[PROGRAM]) else { return eprintln!("skipped: needs {PROGRAM}") };
        let dir = tempfile::tempdir().unwrap();
        let image = dir.path().join("scratch.ext4");
        make(&program, &image).unwrap();
        let metadata = image.metadata().unwrap();
        assert_eq!(metadata.len(), SCRATCH_BYTES);
        assert!(metadata.blocks() * 512 < 8 << 20, "{} blocks", metadata.blocks());
        assert!(make(&program, &image).is_err(), "an image was written over");
    }
}
