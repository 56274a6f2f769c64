//! Unpacking: entries of a hostile archive become a folder.
//!
//! Devices are passed over and counted: old images carry `/dev/null` and the like, a container gets a /dev of its own, and a
//! device node in a layer is of use to an attacker only. `.wh.` names become overlayfs whiteouts and opaque folders (OCI
//! layer.md, "Whiteouts"); what a layer removes and what it adds are independent of the order of its entries.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufReader, Read, Write};
use std::path::Path;

use rustix::fs::{AtFlags, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;

use super::archive::{Archive, Entry, Fault, Kind};
use super::dir_times::{FolderTimes, MAX_NAMES, timestamps};
use super::entry_path::{EntryPath, join};
use super::error::EntryProblem;
use super::file_list::{FileList, ListedKind};
use super::source::LayerStream;
use super::tree::{Found, Tree};
use super::unpack::{DISK_BLOCK, LayerFacts};
use super::xattrs;
use crate::digest::{Algorithm, Hasher};
use crate::file_error::At;

mod links;
mod whiteouts;

/// Unpacked bytes that are read and written at a time.
pub(super) const BUFFER: usize = 128 << 10;
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE_WHITEOUT: &[u8] = b".wh..wh..opq";
/// Bookkeeping of AUFS, which found its way into old images.
const AUFS: &[u8] = b".wh..wh.";

/// Writes the entries of one archive.
pub(super) struct Unpacker {
    pub(super) archive: Archive<BufReader<LayerStream>>,
    pub(super) tree: Tree,
    pub(super) list: FileList,
    pub(super) times: FolderTimes,
    pub(super) implied: BTreeSet<Vec<u8>>,
    pub(super) implied_bytes: usize,
    pub(super) facts: LayerFacts,
    pub(super) max_inodes: u64,
    pub(super) buffer: Vec<u8>,
}

impl Unpacker {
    pub(super) fn all(&mut self) -> Result<(), Fault> {
        while let Some(entry) = self.archive.next_entry()? {
            self.one(&entry)?;
            self.note_implied()?;
        }
        Ok(())
    }

    fn one(&mut self, entry: &Entry) -> Result<(), Fault> {
        let path = EntryPath::parse(&entry.path).map_err(|problem| Fault::entry(&entry.path, problem))?;
        let Some((dir, name)) = path.split() else { return self.root(entry) };
        if path.as_bytes().split(|&b| b == b'/').any(|part| part.starts_with(AUFS)) && name != OPAQUE_WHITEOUT
        {
            return Ok(());
        }
        if name == OPAQUE_WHITEOUT {
            return self.opaque(dir, entry);
        }
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            return self.whiteout(dir, hidden, entry);
        }
        match entry.kind {
            Kind::File => self.file(dir, name, entry),
            Kind::Folder => self.make_folder(dir, name, entry),
            Kind::Symlink => self.symlink(dir, name, entry),
            Kind::HardLink => self.hard_link(dir, name, entry),
            Kind::Fifo => self.fifo(dir, name, entry),
            Kind::Device => {
                self.facts.skipped_devices += 1;
                Ok(())
            }
        }
    }

    /// Folders that were made on the way count as entries: one long name makes up to 256 of them.
    fn note_implied(&mut self) -> Result<(), Fault> {
        for path in self.tree.implied.drain(..) {
            self.facts.add(DISK_BLOCK);
            self.implied_bytes += path.len() + size_of::<Vec<u8>>();
            self.implied.insert(path);
        }
        for path in std::mem::take(&mut self.tree.replaced) {
            self.facts.add(DISK_BLOCK);
            self.listed_replacement(&path)?;
        }
        if self.facts.inodes > self.max_inodes {
            return Err(Fault::TooManyEntries { limit: self.max_inodes });
        }
        match self.implied_bytes > MAX_NAMES {
            true => Err(Fault::TooManyNames { limit: MAX_NAMES }),
            false => Ok(()),
        }
    }

    /// A folder that the archive removed and then used without listing it.
    fn listed_replacement(&mut self, path: &[u8]) -> Result<(), Fault> {
        self.list.add(path, ListedKind::Folder { mode: 0o755, uid: 0, gid: 0 })?;
        Ok(self.list.add(path, ListedKind::Opaque)?)
    }

    fn root(&mut self, entry: &Entry) -> Result<(), Fault> {
        if entry.kind != Kind::Folder {
            return Err(Fault::entry(&entry.path, EntryProblem::NoName));
        }
        let at = self.tree.locate(b"");
        let root = self.tree.root();
        rustix::fs::fchown(root, uid(entry), gid(entry)).at("set owner of", &at)?;
        rustix::fs::fchmod(root, mode(entry)).at("set mode of", &at)?;
        self.listed_folder(Vec::new(), entry)
    }

    fn make_folder(&mut self, dir: &[u8], name: &[u8], entry: &Entry) -> Result<(), Fault> {
        let folder = self.tree.folder(dir, &entry.path)?;
        let path = join(&folder.path, name);
        let at = self.tree.locate(&path);
        let found = self.tree.found(&folder, name)?;
        if matches!(found, Found::Other | Found::Whiteout) {
            self.tree.remove(&folder, name)?;
        }
        if found != Found::Folder {
            rustix::fs::mkdirat(&folder, name, Mode::RWXU).at("make folder", &at)?;
            self.facts.add(DISK_BLOCK);
        }
        if found == Found::Whiteout {
            // Removed and made anew by one layer: nothing of the lower layers' folder shows.
            self.tree.set_opaque(&path)?;
            self.list.add(&path, ListedKind::Opaque)?;
        }
        rustix::fs::chownat(&folder, name, uid(entry), gid(entry), AtFlags::SYMLINK_NOFOLLOW)
            .at("set owner of", &at)?;
        rustix::fs::chmodat(&folder, name, mode(entry), AtFlags::empty()).at("set mode of", &at)?;
        if !entry.xattrs.is_empty() {
            if let Some(fd) = self.tree.reopen(&path)? {
                self.facts.skipped_xattrs += xattrs::set(&self.tree, &folder, name, &fd, &entry.xattrs)?;
            }
        }
        self.implied.remove(&path);
        self.listed_folder(path, entry)
    }

    fn listed_folder(&mut self, path: Vec<u8>, entry: &Entry) -> Result<(), Fault> {
        let Entry { mode, uid, gid, .. } = *entry;
        self.list.add(&path, ListedKind::Folder { mode, uid, gid })?;
        self.times.add(path, entry.mtime)
    }

    fn file(&mut self, dir: &[u8], name: &[u8], entry: &Entry) -> Result<(), Fault> {
        let read_ahead = self.archive.stream().buffer().len() as u64;
        if entry.size > self.archive.stream().get_ref().allowance() + read_ahead {
            return Err(Fault::TooLarge);
        }
        let folder = self.tree.folder(dir, &entry.path)?;
        let path = join(&folder.path, name);
        let at = self.tree.locate(&path);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let create = || rustix::fs::openat(&folder, name, flags, Mode::RUSR | Mode::WUSR);
        let file = match create() {
            Err(Errno::EXIST) => {
                self.tree.remove(&folder, name)?;
                create()
            }
            other => other,
        };
        let mut file = File::from(file.at("create", &at)?);
        let sha256 = self.copy(entry, &mut file, &at)?;
        // In this order: a change of owner clears setuid bits and capabilities.
        rustix::fs::fchown(&file, uid(entry), gid(entry)).at("set owner of", &at)?;
        rustix::fs::fchmod(&file, mode(entry)).at("set mode of", &at)?;
        self.facts.skipped_xattrs += xattrs::set(&self.tree, &folder, name, &file, &entry.xattrs)?;
        rustix::fs::futimens(&file, &timestamps(entry.mtime)).at("set time of", &at)?;
        self.facts.add(entry.size);
        let Entry { mode, uid, gid, size, .. } = *entry;
        Ok(self.list.add(&path, ListedKind::File { mode, uid, gid, size, sha256: &sha256 })?)
    }

    /// Copies the entry's data and tells its sha256 in hex.
    fn copy(&mut self, entry: &Entry, file: &mut File, at: &Path) -> Result<String, Fault> {
        let mut hasher = Hasher::new(Algorithm::Sha256);
        let mut left = entry.size;
        while left > 0 {
            let read = match self.archive.read(&mut self.buffer) {
                Ok(0) => return Err(Fault::Archive("it ends within a file")),
                Ok(read) => read,
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(Fault::Stream(error)),
            };
            hasher.update(&self.buffer[..read]);
            file.write_all(&self.buffer[..read]).at("write", at)?;
            left -= read as u64;
        }
        Ok(hasher.finish().hex().to_owned())
    }
}

fn uid(entry: &Entry) -> Option<Uid> {
    Some(Uid::from_raw(entry.uid))
}

fn gid(entry: &Entry) -> Option<Gid> {
    Some(Gid::from_raw(entry.gid))
}

fn mode(entry: &Entry) -> Mode {
    Mode::from_raw_mode(entry.mode)
}
