//! Unpacks and checks one layer, in one pass.

use std::collections::BTreeSet;
use std::io::{BufReader, Read};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::archive::{Archive, Fault};
use super::dir_times::FolderTimes;
use super::entries::{BUFFER, Unpacker};
use super::error::LayerError;
use super::file_list::{FileList, ListedKind};
use super::source::{LayerStream, StreamFacts};
use super::tree::Tree;
use crate::digest::Digest;
use crate::file_error::FileError;

/// What a file takes on disk is counted in blocks of so many bytes.
pub(super) const DISK_BLOCK: u64 = 4096;

/// What one layer may take.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Limits {
    /// Bytes of the unpacked archive.
    pub(crate) bytes: u64,
    /// Entries, and folders made for them.
    pub(crate) entries: u64,
}

/// Where a layer goes.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    /// An empty folder.
    pub(crate) folder: PathBuf,
    /// The file list; must not exist.
    pub(crate) list: PathBuf,
}

/// What the store remembers of an unpacked layer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct LayerFacts {
    /// On disk, in blocks, the file list included.
    pub(crate) bytes: u64,
    /// Files, folders, links; the file list included.
    pub(crate) inodes: u64,
    /// The layer hides everything below it.
    pub(crate) opaque_root: bool,
    /// Folders that the archive did not list. Their attributes are those of the layers below.
    pub(crate) implied_folders: u64,
    /// Devices that were not made.
    pub(crate) skipped_devices: u64,
    /// Extended attributes that were not set.
    pub(crate) skipped_xattrs: u64,
}

/// Unpacks a layer and checks it. On an error the target holds garbage, which is the caller's to remove.
pub(crate) fn unpack_blocking(
    source: Box<dyn Read + Send>,
    from: PathBuf,
    facts: StreamFacts,
    limits: Limits,
    target: &Target,
) -> Result<LayerFacts, LayerError> {
    let layer = facts.digest.clone();
    let to_file_error = |source| LayerError::File { layer: layer.clone(), source };
    let tree = Tree::open(&target.folder).map_err(to_file_error)?;
    let list = FileList::create(&target.list).map_err(to_file_error)?;
    let stream = LayerStream::open(source, from, facts, limits.bytes)?;
    let mut unpacker = Unpacker {
        archive: Archive::new(BufReader::with_capacity(BUFFER, stream), limits.entries),
        tree,
        list,
        times: FolderTimes::default(),
        implied: BTreeSet::new(),
        implied_bytes: 0,
        facts: LayerFacts { bytes: DISK_BLOCK, inodes: 1, ..LayerFacts::default() },
        max_inodes: limits.entries,
        buffer: vec![0; BUFFER],
    };
    let unpacked = unpacker.all();
    let Unpacker { archive, tree, list, times, implied, mut facts, .. } = unpacker;
    let stream = archive.into_stream().into_inner();
    if let Err(fault) = unpacked {
        return Err(explain(fault, stream, layer, limits.bytes));
    }
    stream.finish()?;
    let complete = || -> Result<u64, Fault> {
        times.apply(&tree)?;
        Ok(write_implied(list, &implied)?)
    };
    let list_bytes = complete().map_err(|fault| match fault {
        Fault::File(source) => to_file_error(source),
        _ => LayerError::Archive { layer: layer.clone(), problem: "times of folders" },
    })?;
    facts.implied_folders = implied.len() as u64;
    facts.add(list_bytes);
    Ok(facts)
}

/// Says which layer it was, and whether it is the promised bytes that are wrong or the bytes themselves.
fn explain(fault: Fault, stream: LayerStream, layer: Digest, max_bytes: u64) -> LayerError {
    match fault {
        Fault::Stream(error) => stream.failed(error),
        Fault::Archive(problem) => stream.rather_wrong(LayerError::Archive { layer, problem }),
        Fault::Entry { path, problem } => LayerError::Entry { layer, path, problem },
        Fault::TooLarge => LayerError::TooLarge { layer, limit: max_bytes },
        Fault::TooManyEntries { limit } => LayerError::TooManyEntries { layer, limit },
        Fault::TooManyNames { limit } => LayerError::TooManyNames { layer, limit },
        Fault::File(source) => LayerError::File { layer, source },
    }
}

fn write_implied(mut list: FileList, implied: &BTreeSet<Vec<u8>>) -> Result<u64, FileError> {
    for path in implied {
        list.add(path, ListedKind::Implied)?;
    }
    list.finish()
}

impl LayerFacts {
    pub(crate) fn add(&mut self, bytes: u64) {
        self.bytes += bytes.div_ceil(DISK_BLOCK) * DISK_BLOCK;
        self.inodes += 1;
    }
}

#[cfg(test)]
mod tests;
