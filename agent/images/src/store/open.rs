//! Opening the store: reads the records, and removes what a crash left half done.

use std::collections::{HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::File;
use std::path::{Path, PathBuf};

use oci_spec::image::ImageConfiguration;
use rustix::fs::FlockOperation;
use tracing::{info, warn};

use super::OpenError;
use super::layer_table::LayerTable;
use super::paths::Paths;
use super::record::{Record, RecordError};
use crate::digest::Digest;
use crate::file_error::{At, FileError};

/// The ending of a record that could not be read and was set aside.
pub(super) const SET_ASIDE: &str = "unreadable";

/// What was found.
pub(super) struct Found {
    pub(super) table: LayerTable,
    pub(super) records: Vec<(Record, ImageConfiguration)>,
    pub(super) lock: File,
}

/// Blocks: reads every record and deletes leftovers.
pub(super) fn open_blocking(root: &Path) -> Result<Found, OpenError> {
    let paths = Paths::create_blocking(root)?;
    let lock = lock(root)?;
    empty(&paths.tmp)?;
    let (mut records, set_aside) = read_records(&paths)?;
    records.retain(|(record, _)| is_complete(&paths, record));
    give_tags_to_the_latest(&mut records);
    if set_aside == 0 {
        let used: HashSet<&str> =
            records.iter().flat_map(|(record, _)| record.on_disk()).map(|(layer, _)| layer.hex()).collect();
        sweep(&paths.layers, |name| !used.contains(name))?;
        for (folder, ending) in [(&paths.lists, ".zst"), (&paths.erofs, ".erofs")] {
            sweep(folder, |name| !name.strip_suffix(ending).is_some_and(|hex| used.contains(hex)))?;
        }
    } else {
        warn!(set_aside, "layers without an image are kept: they may belong to an unreadable record");
    }
    Ok(Found { table: LayerTable::new(paths), records, lock })
}

fn lock(root: &Path) -> Result<File, OpenError> {
    let path = root.join("lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path).at("open", &path)?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(OpenError::InUse { root: root.to_owned() }),
        Err(error) => Err(Err::<(), _>(error)
            .at("lock", &path)
            .map_or_else(OpenError::File, |()| OpenError::InUse { root: root.to_owned() })),
    }
}

/// The records that can be read, and how many cannot.
fn read_records(paths: &Paths) -> Result<(Vec<(Record, ImageConfiguration)>, usize), FileError> {
    let mut records = Vec::new();
    let mut set_aside = 0;
    for path in entries(&paths.images)? {
        match path.extension().and_then(OsStr::to_str) {
            Some("json") => match Record::read_blocking(&path) {
                Ok(record) => records.push(record),
                Err(RecordError::File(error)) if error.source.raw_os_error() != Some(libc::EISDIR) => {
                    return Err(error);
                }
                Err(error) => {
                    let aside = path.with_extension(SET_ASIDE);
                    warn!(path = %path.display(), %error, "an image's record is unreadable, set aside");
                    std::fs::rename(&path, &aside).at("rename to", &aside)?;
                    set_aside += 1;
                }
            },
            Some(SET_ASIDE) => set_aside += 1,
            _ => std::fs::remove_file(&path).at("remove", &path)?,
        }
    }
    Ok((records, set_aside))
}

/// An image without all of its layers is none: it can be pulled again.
fn is_complete(paths: &Paths, record: &Record) -> bool {
    let missing = record.on_disk().find(|(layer, _)| !paths.layer(layer).is_dir());
    let Some((missing, _)) = missing else { return true };
    warn!(image = %record.id, layer = %missing, "a layer is missing, the image is dropped");
    let path = paths.record(&record.id);
    if let Err(error) = std::fs::remove_file(&path) {
        warn!(path = %path.display(), %error, "the record of an incomplete image could not be removed");
    }
    false
}

/// A crash while a tag moved leaves it with both images.
fn give_tags_to_the_latest(records: &mut [(Record, ImageConfiguration)]) {
    records.sort_by_key(|(record, _)| record.updated);
    let mut owners: HashMap<String, Digest> = HashMap::new();
    for (record, _) in records.iter() {
        for tag in &record.tags {
            owners.insert(tag.clone(), record.id.clone());
        }
    }
    for (record, _) in records.iter_mut() {
        record.tags.retain(|tag| owners.get(tag) == Some(&record.id));
    }
}

/// Removes the entries that the store made and nobody needs.
fn sweep(folder: &Path, is_unused: impl Fn(&str) -> bool) -> Result<(), FileError> {
    for path in entries(folder)? {
        let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
        if is_unused(name) {
            info!(path = %path.display(), "removing what no image uses");
            remove(&path)?;
        }
    }
    Ok(())
}

fn empty(folder: &Path) -> Result<(), FileError> {
    entries(folder)?.iter().try_for_each(|path| remove(path))
}

fn remove(path: &Path) -> Result<(), FileError> {
    let is_folder = std::fs::symlink_metadata(path).at("stat", path)?.is_dir();
    match is_folder {
        true => std::fs::remove_dir_all(path).at("remove", path),
        false => std::fs::remove_file(path).at("remove", path),
    }
}

fn entries(folder: &Path) -> Result<Vec<PathBuf>, FileError> {
    let listing = std::fs::read_dir(folder).at("list", folder)?;
    listing.map(|entry| entry.map(|entry| entry.path()).at("list", folder)).collect()
}
