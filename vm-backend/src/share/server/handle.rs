//! Files and folders that a guest holds open.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;

use super::inode::Volume;

/// Open files and folders at a time.
pub const MAX_HANDLES: usize = 16 << 10;

/// An open file or folder.
#[derive(Debug)]
pub(super) struct Handle {
    pub(super) file: OwnedFd,
    pub(super) volume: Arc<Volume>,
    pub(super) writable: bool,
    /// A folder's position is one for all readers: held while it is read.
    pub(super) reading: Mutex<()>,
    pub(super) is_folder: bool,
}

/// All of them.
#[derive(Debug)]
pub(super) struct Handles {
    table: Mutex<(HashMap<u64, Arc<Handle>>, u64)>,
    most: usize,
}

impl Handles {
    pub(super) fn new(most: usize) -> Self {
        Self { table: Mutex::new((HashMap::new(), 1)), most }
    }

    /// # Errors
    /// ENFILE where there are too many, ESTALE where the volume is gone.
    pub(super) fn insert(&self, handle: Handle) -> Result<u64, Errno> {
        let mut table = self.table();
        handle.volume.is_there()?;
        if table.0.len() >= self.most {
            return Err(Errno::NFILE);
        }
        let number = table.1;
        table.1 += 1;
        table.0.insert(number, Arc::new(handle));
        Ok(number)
    }

    /// # Errors
    /// EBADF.
    pub(super) fn get(&self, number: u64) -> Result<Arc<Handle>, Errno> {
        self.table().0.get(&number).cloned().ok_or(Errno::BADF)
    }

    /// # Errors
    /// EBADF.
    pub(super) fn remove(&self, number: u64) -> Result<Arc<Handle>, Errno> {
        self.table().0.remove(&number).ok_or(Errno::BADF)
    }

    /// Closes those of a volume, or all.
    #[must_use]
    pub(super) fn drop_of(&self, volume: Option<u64>) -> Vec<Arc<Handle>> {
        let mut table = self.table();
        let goes = |handle: &Handle| volume.is_none_or(|number| handle.volume.number == number);
        let gone: Vec<u64> = table.0.iter().filter(|(_, h)| goes(h)).map(|(number, _)| *number).collect();
        gone.iter().filter_map(|number| table.0.remove(number)).collect()
    }

    pub(super) fn count(&self) -> usize {
        self.table().0.len()
    }

    fn table(&self) -> MutexGuard<'_, (HashMap<u64, Arc<Handle>>, u64)> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
