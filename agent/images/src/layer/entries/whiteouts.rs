//! What a layer takes away.

use rustix::fs::{FileType, Mode};

use super::Unpacker;
use crate::file_error::At;
use crate::layer::archive::{Entry, Fault};
use crate::layer::entry_path::join;
use crate::layer::error::EntryProblem;
use crate::layer::file_list::ListedKind;
use crate::layer::tree::Found;

impl Unpacker {
    pub(super) fn whiteout(&mut self, dir: &[u8], hidden: &[u8], entry: &Entry) -> Result<(), Fault> {
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(Fault::entry(&entry.path, EntryProblem::Whiteout));
        }
        let folder = self.tree.folder(dir, &entry.path)?;
        let path = join(&folder.path, hidden);
        match self.tree.found(&folder, hidden)? {
            Found::Nothing => {
                rustix::fs::mknodat(&folder, hidden, FileType::CharacterDevice, Mode::empty(), 0)
                    .at("make whiteout", self.tree.locate(&path))?;
                self.facts.add(0);
                Ok(self.list.add(&path, ListedKind::Whiteout)?)
            }
            // What this layer has there itself stays; only the lower layers' folder must not show through.
            Found::Folder => {
                self.tree.set_opaque(&path)?;
                match self.implied.remove(&path) {
                    true => self.listed_replacement(&path),
                    false => Ok(self.list.add(&path, ListedKind::Opaque)?),
                }
            }
            Found::Whiteout | Found::Other => Ok(()),
        }
    }

    pub(super) fn opaque(&mut self, dir: &[u8], entry: &Entry) -> Result<(), Fault> {
        let folder = self.tree.folder(dir, &entry.path)?;
        match folder.path.is_empty() {
            // overlayfs does not look at the root of a layer: the store leaves out the layers below.
            true => self.facts.opaque_root = true,
            false => self.tree.set_opaque(&folder.path)?,
        }
        Ok(self.list.add(&folder.path, ListedKind::Opaque)?)
    }
}
