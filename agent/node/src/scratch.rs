//! Writable layers of containers: made empty, deleted whatever a container put into them.

use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, openat, renameat, unlinkat};
use rustix::io::Errno;

/// How deep a folder is walked into before what is below is brought up; bounds the descriptors that deletion needs.
const MAX_DEPTH: usize = 32;

/// Names of a folder that are in memory at a time.
const BATCH: usize = 1024;

/// A writable layer could not be made or deleted.
#[derive(Debug, thiserror::Error)]
#[error("{what} {}", path.display())]
pub(crate) struct ScratchError {
    what: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

impl ScratchError {
    pub(crate) fn new(what: &'static str, path: &Path, source: io::Error) -> Self {
        Self { what, path: path.to_owned(), source }
    }
}

/// Makes the folder of a container; only root enters it from the host.
pub(crate) fn make_blocking(path: &Path) -> Result<(), ScratchError> {
    use std::os::unix::fs::DirBuilderExt as _;
    let made = std::fs::DirBuilder::new().mode(0o700).create(path);
    made.map_err(|source| ScratchError::new("make", path, source))
}

/// Deletes a folder with everything in it; a missing one is fine. Links are not followed, mounts are not entered, and a tree of
/// any depth needs few descriptors and no stack: containers make trees on purpose that break a recursive walk.
pub(crate) fn remove_blocking(path: &Path) -> Result<(), ScratchError> {
    remove(path).map_err(|error| ScratchError::new("remove", path, error.into()))
}

fn remove(path: &Path) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let top = match rustix::fs::open(path, flags, Mode::empty()) {
        Err(Errno::NOENT) => return Ok(()),
        other => other?,
    };
    // What is deeper than the limit is lifted to the top, whose turn is over once nothing is left in it.
    empty(&top, &top, MAX_DEPTH, &mut 0)?;
    drop(top);
    match rustix::fs::rmdir(path) {
        Err(Errno::NOENT) => Ok(()),
        other => other,
    }
}

/// Deletes what is in `dir`.
fn empty(top: &OwnedFd, dir: &OwnedFd, depth: usize, lifted: &mut u64) -> Result<(), Errno> {
    loop {
        let batch = some_entries(dir)?;
        if batch.is_empty() {
            return Ok(());
        }
        for (name, kind) in batch {
            delete(top, dir, &name, kind, depth, lifted)?;
        }
    }
}

fn delete(
    top: &OwnedFd,
    dir: &OwnedFd,
    name: &CStr,
    kind: FileType,
    depth: usize,
    lifted: &mut u64,
) -> Result<(), Errno> {
    if kind != FileType::Directory {
        match unlinkat(dir, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            // The type that the listing told was not true.
            Err(Errno::ISDIR) => {}
            Err(error) => return Err(error),
        }
    }
    let Some(depth) = depth.checked_sub(1) else { return lift(top, dir, name, lifted) };
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let below = openat(dir, name, flags, Mode::empty())?;
    empty(top, &below, depth, lifted)?;
    drop(below);
    unlinkat(dir, name, AtFlags::REMOVEDIR)
}

/// Some of what is in a folder, nothing only if it is empty: one folder of a container can hold millions of names.
fn some_entries(dir: &OwnedFd) -> Result<Vec<(CString, FileType)>, Errno> {
    let mut entries = Vec::new();
    for entry in Dir::read_from(dir)? {
        let entry = entry?;
        if entry.file_name() != c"." && entry.file_name() != c".." {
            entries.push((entry.file_name().to_owned(), entry.file_type()));
        }
        if entries.len() == BATCH {
            break;
        }
    }
    Ok(entries)
}

/// Moves a folder to the top under a name that is free there.
fn lift(top: &OwnedFd, dir: &OwnedFd, name: &CStr, lifted: &mut u64) -> Result<(), Errno> {
    loop {
        *lifted += 1;
        let free = format!(".lifted-{lifted}");
        match renameat(dir, name, top, free) {
            // Somebody's own folder has that name.
            Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => {}
            other => return other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removing_follows_no_link_and_can_be_repeated() {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("precious"), "").unwrap();
        let scratch = dir.path().join("scratch");
        make_blocking(&scratch).unwrap();
        std::os::unix::fs::symlink(&outside, scratch.join("link")).unwrap();
        std::fs::create_dir(scratch.join("work")).unwrap();
        std::fs::write(scratch.join("work/file"), "x").unwrap();
        for _ in 0..2 {
            remove_blocking(&scratch).unwrap();
            assert!(!scratch.exists());
        }
        assert!(outside.join("precious").exists());
    }

    #[test]
    fn a_tree_deeper_than_any_path_goes() {
        let dir = tempfile::tempdir().unwrap();
        let scratch = dir.path().join("scratch");
        make_blocking(&scratch).unwrap();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let mut at = rustix::fs::open(&scratch, flags, Mode::empty()).unwrap();
        let name = "d".repeat(40);
        for _ in 0..150 {
            rustix::fs::mkdirat(&at, &name, Mode::from_raw_mode(0o700)).unwrap();
            rustix::fs::mkdirat(&at, ".lifted-1", Mode::from_raw_mode(0o700)).unwrap();
            at = openat(&at, &name, flags, Mode::empty()).unwrap();
        }
        drop(at);
        remove_blocking(&scratch).unwrap();
        assert!(!scratch.exists());
    }

    #[test]
    fn a_folder_that_exists_is_not_taken_over() {
        let dir = tempfile::tempdir().unwrap();
        assert!(make_blocking(dir.path()).is_err());
    }
}
