//! What of the volumes a guest knows: a node for each file or folder that it has looked up and not forgotten.

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{AtFlags, FileType, Statx, StatxFlags, statx};
use rustix::io::Errno;

use super::super::fuse::ROOT;
use super::places::{Place, Places};

/// Nodes at a time: each is a descriptor, and pins an inode of the host's. A guest's kernel forgets what nothing in it uses, for it may cache
/// no names, so these are files and folders that are in use.
pub const MAX_NODES: usize = 64 << 10;

/// A volume, as nodes know it.
#[derive(Debug)]
pub(super) struct Volume {
    pub(super) number: u64,
    pub(super) read_only: bool,
    /// Set before its nodes and handles are dropped, and looked at with their tables locked: what a request that is under way finds of it is
    /// not kept.
    gone: AtomicBool,
}

impl Volume {
    pub(super) fn new(number: u64, read_only: bool) -> Self {
        Self { number, read_only, gone: AtomicBool::new(false) }
    }

    pub(super) fn set_gone(&self) {
        self.gone.store(true, Ordering::Release);
    }

    /// # Errors
    /// ESTALE once it is gone.
    pub(super) fn is_there(&self) -> Result<(), Errno> {
        if self.gone.load(Ordering::Acquire) { Err(Errno::STALE) } else { Ok(()) }
    }
}

/// What makes two lookups the same node: the mount too, for the same file may be writable by one mount and not by the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    volume: u64,
    mount: u64,
    device: (u32, u32),
    inode: u64,
}

/// One node.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) id: u64,
    pub(super) volume: Arc<Volume>,
    pub(super) kind: FileType,
    /// Opened with O_PATH: good for nothing but to name it.
    fd: OwnedFd,
    key: Key,
    _place: Place,
}

impl AsFd for Node {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Node {
    /// Its number among the open files of this process.
    pub(super) fn number(&self) -> i32 {
        self.fd.as_raw_fd()
    }

    /// What the host says of it now.
    ///
    /// # Errors
    /// Those of statx(2).
    pub(super) fn look(&self) -> Result<Statx, Errno> {
        look(self.as_fd())
    }
}

/// What FUSE tells of a file, and what a node is found by.
pub(super) fn look(fd: BorrowedFd<'_>) -> Result<Statx, Errno> {
    statx(fd, c"", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS | StatxFlags::MNT_ID)
}

/// All nodes.
#[derive(Debug)]
pub(super) struct Nodes {
    table: Mutex<Table>,
    places: Places,
}

#[derive(Debug)]
struct Table {
    by_id: HashMap<u64, Known>,
    by_key: HashMap<Key, u64>,
    next: u64,
}

#[derive(Debug)]
struct Known {
    node: Arc<Node>,
    /// How often the guest was told of it, and one for the root of a volume.
    lookups: u64,
    pinned: bool,
}

impl Nodes {
    pub(super) fn new(most: usize) -> Self {
        let table = Table { by_id: HashMap::new(), by_key: HashMap::new(), next: ROOT + 1 };
        Self { table: Mutex::new(table), places: Places::new(most) }
    }

    pub(super) fn get(&self, id: u64) -> Result<Arc<Node>, Errno> {
        self.table().by_id.get(&id).map(|known| known.node.clone()).ok_or(Errno::STALE)
    }

    /// The node of what `fd` was opened for, with O_PATH; the guest is told of it once more.
    ///
    /// # Errors
    /// ENFILE where there are too many, and those of statx(2).
    pub(super) fn learn(&self, fd: OwnedFd, volume: &Arc<Volume>) -> Result<(Arc<Node>, Statx), Errno> {
        let told = look(fd.as_fd())?;
        Ok((self.insert(fd, &told, volume, false)?, told))
    }

    /// As [`learn`](Self::learn), for the root of a volume, which was looked at: it stays until the volume goes.
    ///
    /// # Errors
    /// ENFILE where there are too many.
    pub(super) fn pin(&self, (fd, told): (OwnedFd, Statx), volume: &Arc<Volume>) -> Result<Arc<Node>, Errno> {
        self.insert(fd, &told, volume, true)
    }

    fn insert(
        &self,
        fd: OwnedFd,
        told: &Statx,
        volume: &Arc<Volume>,
        pinned: bool,
    ) -> Result<Arc<Node>, Errno> {
        let key = Key {
            volume: volume.number,
            mount: told.stx_mnt_id,
            device: (told.stx_dev_major, told.stx_dev_minor),
            inode: told.stx_ino,
        };
        let mut table = self.table();
        volume.is_there()?;
        if let Some(id) = table.by_key.get(&key).copied() {
            if let Some(known) = table.by_id.get_mut(&id) {
                known.lookups = known.lookups.saturating_add(1);
                let node = known.node.clone();
                drop(table);
                return Ok(node);
            }
        }
        let place = self.places.take()?;
        let id = table.next;
        table.next += 1;
        let kind = FileType::from_raw_mode(told.stx_mode.into());
        let node = Arc::new(Node { id, volume: volume.clone(), kind, fd, key, _place: place });
        table.by_key.insert(key, id);
        table.by_id.insert(id, Known { node: node.clone(), lookups: 1, pinned });
        Ok(node)
    }

    /// One more word of a node that is known.
    pub(super) fn tell_again(&self, id: u64) -> Result<(), Errno> {
        let mut table = self.table();
        let known = table.by_id.get_mut(&id).ok_or(Errno::STALE)?;
        known.lookups = known.lookups.saturating_add(1);
        Ok(())
    }

    /// The guest has forgotten so many words. What is returned is the last of the node's: closing it may take time.
    #[must_use]
    pub(super) fn forget(&self, id: u64, count: u64) -> Option<Arc<Node>> {
        let mut table = self.table();
        let known = table.by_id.get_mut(&id)?;
        let least = u64::from(known.pinned);
        known.lookups = known.lookups.saturating_sub(count).max(least);
        if known.lookups > 0 {
            return None;
        }
        let known = table.by_id.remove(&id)?;
        table.by_key.remove(&known.node.key);
        Some(known.node)
    }

    /// Forgets what is not `kept`.
    #[must_use]
    pub(super) fn drop_all(&self, mut goes: impl FnMut(&Node, bool) -> bool) -> Vec<Arc<Node>> {
        let mut table = self.table();
        let gone: Vec<u64> = table
            .by_id
            .values()
            .filter(|known| goes(&known.node, known.pinned))
            .map(|known| known.node.id)
            .collect();
        let mut nodes = Vec::with_capacity(gone.len());
        for id in gone {
            if let Some(known) = table.by_id.remove(&id) {
                table.by_key.remove(&known.node.key);
                nodes.push(known.node);
            }
        }
        nodes
    }

    /// A guest that begins anew knows the roots of volumes, once.
    pub(super) fn begin_anew(&self) -> Vec<Arc<Node>> {
        let gone = self.drop_all(|_, pinned| !pinned);
        for known in self.table().by_id.values_mut() {
            known.lookups = 1;
        }
        gone
    }

    pub(super) fn count(&self) -> usize {
        self.places.taken()
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
