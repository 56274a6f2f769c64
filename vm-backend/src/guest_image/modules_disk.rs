//! The modules that a guest may load on demand, as a read-only file system.
//!
//! ```text
//! /kernel/..    the modules, packed as the distribution packs them (the guest's kernel unpacks)
//! /index        a line for each name or alias: it, and the files to load, in order; dashes in names are underscores
//! ```
//!
//! What is on it is what a guest may load: there is no other allow-list.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use super::BuildError;
use super::file_error::At as _;
use super::module_tree::ModuleTree;
use super::tool;

pub(super) const PROGRAM: &str = "mkfs.erofs";

/// Writes the modules at `paths` of `tree` into the new file `image`, by way of the new folder `dir`, which goes again.
pub(super) fn make(
    program: &Path,
    tree: &ModuleTree,
    paths: &BTreeSet<&str>,
    dir: &Path,
    image: &Path,
) -> Result<(), BuildError> {
    for path in paths {
        let (from, to) = (tree.root().join(path), dir.join(path));
        let parent = to.parent().unwrap_or(dir);
        fs::create_dir_all(parent).at("make", parent)?;
        fs::copy(&from, &to).at("copy", &from)?;
    }
    let index = dir.join("index");
    fs::write(&index, tree.index(paths)?).at("write", &index)?;
    tool::run(program, ["-T0".as_ref(), "--all-root".as_ref(), image.as_os_str(), dir.as_os_str()])?;
    Ok(fs::remove_dir_all(dir).at("remove", dir)?)
}
