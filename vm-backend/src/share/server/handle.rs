//! Files and folders that a guest holds open.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;

use super::inode::Volume;
use super::places::{Place, Places};

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
    _place: Place,
}

/// What a handle is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    Folder,
    Read,
    Write,
}

/// All of them.
#[derive(Debug)]
pub(super) struct Handles {
    table: Mutex<(HashMap<u64, Arc<Handle>>, u64)>,
    places: Places,
}

impl Handles {
    pub(super) fn new(most: usize) -> Self {
        Self { table: Mutex::new((HashMap::new(), 1)), places: Places::new(most) }
    }

    /// # Errors
    /// ENFILE where there are too many, ESTALE where the volume is gone.
    pub(super) fn insert(&self, file: OwnedFd, volume: &Arc<Volume>, wanted: Use) -> Result<u64, Errno> {
        let handle = Handle {
            file,
            volume: volume.clone(),
            writable: wanted == Use::Write,
            reading: Mutex::default(),
            is_folder: wanted == Use::Folder,
            _place: self.places.take()?,
        };
        let mut table = self.table();
        if let Err(gone) = handle.volume.is_there() {
            // It is closed with nothing locked.
            drop(table);
            return Err(gone);
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
        self.places.taken()
    }

    fn table(&self) -> MutexGuard<'_, (HashMap<u64, Arc<Handle>>, u64)> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
