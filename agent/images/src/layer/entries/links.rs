//! Symlinks, hard links and fifos: entries without data.

use rustix::fs::{AtFlags, FileType, Mode};
use rustix::io::Errno;

use super::{Unpacker, gid, mode, uid};
use crate::file_error::{At, FileError};
use crate::layer::archive::{Entry, Fault};
use crate::layer::dir_times::timestamps;
use crate::layer::entry_path::{EntryPath, join, printable};
use crate::layer::error::EntryProblem;
use crate::layer::file_list::ListedKind;
use crate::layer::tree::{Folder, Found};

/// The longest target of a symlink (`PATH_MAX` - 1).
const MAX_TARGET: usize = 4095;

impl Unpacker {
    pub(super) fn symlink(&mut self, dir: &[u8], name: &[u8], entry: &Entry) -> Result<(), Fault> {
        let length = entry.link.len();
        if length == 0 || length > MAX_TARGET {
            return Err(Fault::entry(&entry.path, EntryProblem::TargetLength { length }));
        }
        if entry.link.contains(&0) {
            return Err(Fault::entry(&entry.path, EntryProblem::Nul));
        }
        let folder = self.tree.folder(dir, &entry.path)?;
        let path = join(&folder.path, name);
        let at = self.tree.locate(&path);
        let link = || rustix::fs::symlinkat(entry.link.as_slice(), &folder, name);
        match link() {
            Err(Errno::EXIST) => {
                self.tree.remove(&folder, name)?;
                link()
            }
            other => other,
        }
        .at("make link", &at)?;
        self.own_and_date(&folder, name, entry)?;
        self.facts.skipped_xattrs += entry.xattrs.len() as u64;
        self.facts.add(0);
        let Entry { uid, gid, .. } = *entry;
        let target = entry.link.as_slice();
        Ok(self.list.add(&path, ListedKind::Symlink { uid, gid, target })?)
    }

    pub(super) fn hard_link(&mut self, dir: &[u8], name: &[u8], entry: &Entry) -> Result<(), Fault> {
        let bad = |problem| Fault::entry(&entry.path, problem);
        let target = printable(&entry.link);
        let wanted = EntryPath::parse(&entry.link).map_err(|problem| match problem {
            EntryProblem::ParentInName => bad(EntryProblem::ParentInTarget { target: target.clone() }),
            other => bad(other),
        })?;
        let Some((target_dir, target_name)) = wanted.split() else {
            return Err(bad(EntryProblem::BadTarget { target }));
        };
        let folder = self.tree.folder(dir, &entry.path)?;
        let missing = || bad(EntryProblem::NoTarget { target: target.clone() });
        let target_folder =
            self.tree.existing_folder(target_dir, &entry.path).map_err(|fault| match fault {
                Fault::Entry { problem: EntryProblem::NotAFolder, .. } => missing(),
                other => other,
            })?;
        match self.tree.found(&target_folder, target_name)? {
            Found::Nothing => return Err(missing()),
            Found::Folder | Found::Whiteout => return Err(bad(EntryProblem::BadTarget { target })),
            Found::Other => {}
        }
        let path = join(&folder.path, name);
        let at = self.tree.locate(&path);
        let link = || rustix::fs::linkat(&target_folder, target_name, &folder, name, AtFlags::empty());
        let linked = match link() {
            Err(Errno::EXIST) if self.same(&folder, name, &target_folder, target_name)? => Ok(()),
            Err(Errno::EXIST) => {
                self.tree.remove(&folder, name)?;
                link()
            }
            other => other,
        };
        match linked {
            // It was in the folder that stood at the link's name.
            Err(Errno::NOENT) => return Err(missing()),
            other => other.at("make hard link", &at)?,
        }
        Ok(self.list.add(&path, ListedKind::HardLink { target: wanted.as_bytes() })?)
    }

    fn same(&self, one: &Folder, name: &[u8], other: &Folder, other_name: &[u8]) -> Result<bool, FileError> {
        let stat = |folder: &Folder, name: &[u8]| {
            rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)
                .at("stat", self.tree.locate(&join(&folder.path, name)))
        };
        let (one, other) = (stat(one, name)?, stat(other, other_name)?);
        Ok((one.st_dev, one.st_ino) == (other.st_dev, other.st_ino))
    }

    pub(super) fn fifo(&mut self, dir: &[u8], name: &[u8], entry: &Entry) -> Result<(), Fault> {
        let folder = self.tree.folder(dir, &entry.path)?;
        let path = join(&folder.path, name);
        let at = self.tree.locate(&path);
        self.tree.remove(&folder, name)?;
        rustix::fs::mknodat(&folder, name, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0)
            .at("make fifo", &at)?;
        self.own_and_date(&folder, name, entry)?;
        rustix::fs::chmodat(&folder, name, mode(entry), AtFlags::empty()).at("set mode of", &at)?;
        self.facts.skipped_xattrs += entry.xattrs.len() as u64;
        self.facts.add(0);
        let Entry { mode, uid, gid, .. } = *entry;
        Ok(self.list.add(&path, ListedKind::Fifo { mode, uid, gid })?)
    }

    fn own_and_date(&self, folder: &Folder, name: &[u8], entry: &Entry) -> Result<(), FileError> {
        let at = self.tree.locate(&join(&folder.path, name));
        let flags = AtFlags::SYMLINK_NOFOLLOW;
        rustix::fs::chownat(folder, name, uid(entry), gid(entry), flags).at("set owner of", &at)?;
        rustix::fs::utimensat(folder, name, &timestamps(entry.mtime), flags).at("set time of", &at)
    }
}
