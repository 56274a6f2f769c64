//! Modification times of folders, which writing into them changes: set when all is written.

use rustix::fs::{Timespec, Timestamps};

use super::archive::Fault;
use super::tree::Tree;
use crate::file_error::At;

/// Bytes of folder names that are remembered while a layer is unpacked. A Debian system with everything has 10 MB of them.
pub(super) const MAX_NAMES: usize = 64 << 20;

#[derive(Default)]
pub(super) struct FolderTimes {
    seen: Vec<(Vec<u8>, (i64, u32))>,
    bytes: usize,
}

impl FolderTimes {
    pub(super) fn add(&mut self, path: Vec<u8>, mtime: (i64, u32)) -> Result<(), Fault> {
        self.bytes += path.len() + size_of::<(Vec<u8>, (i64, u32))>();
        if self.bytes > MAX_NAMES {
            return Err(Fault::TooManyNames { limit: MAX_NAMES });
        }
        self.seen.push((path, mtime));
        Ok(())
    }

    /// Sets them; the last entry of a folder counts. A folder that a later entry replaced is passed over.
    pub(super) fn apply(self, tree: &Tree) -> Result<(), Fault> {
        for (path, mtime) in self.seen {
            if let Some(fd) = tree.reopen(&path)? {
                rustix::fs::futimens(&fd, &timestamps(mtime)).at("set time of", tree.locate(&path))?;
            }
        }
        Ok(())
    }
}

/// Access and modification time.
pub(super) fn timestamps((seconds, nanos): (i64, u32)) -> Timestamps {
    let time = Timespec { tv_sec: seconds, tv_nsec: nanos.into() };
    Timestamps { last_access: time, last_modification: time }
}
