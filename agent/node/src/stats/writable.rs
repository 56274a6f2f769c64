//! What containers have written to their own layers.
//!
//! On this host the upper folder of the overlay is walked, which takes as long as the container has files: so it is done now and then, one layer at a time, and the
//! last result is told. In a guest it is one sparse file, and the file system in it is the guest's: its inodes are not counted.

use std::collections::HashSet;
use std::ffi::CStr;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::time::Instant;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, openat, statat};
use rustix::io::Errno;

use crate::clock;

/// What is deeper in folders is not counted: each level is an open folder.
const MAX_DEPTH: usize = 256;
/// Files with several names that are told apart; of more, each name counts.
const MAX_LINKED: usize = 100_000;
/// Entries between two looks at the clock: some hundred microseconds.
const UNWATCHED: u32 = 256;
/// Bytes of a block as stat(2) counts them.
const BLOCK: u64 = 512;

/// What a layer takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DiskUse {
    /// Nanoseconds since the Unix epoch.
    pub(crate) at: i64,
    pub(crate) bytes: u64,
    pub(crate) inodes: Option<u64>,
}

/// Why a layer has no numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unmeasured {
    /// It is not there (any more).
    Gone,
    /// It took longer than it may.
    TooLong,
}

/// Which layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Layer {
    /// The upper folder of an overlay.
    Folder(PathBuf),
    /// A file with a file system in it.
    File(PathBuf),
}

/// Measures a layer, until `deadline` at most.
pub(crate) fn measure_blocking(layer: &Layer, deadline: Instant) -> Result<DiskUse, Unmeasured> {
    let (bytes, inodes) = match layer {
        Layer::File(path) => (std::fs::metadata(path).map_err(|_| Unmeasured::Gone)?.blocks() * BLOCK, None),
        Layer::Folder(path) => {
            let mut walk = Walk { bytes: 0, inodes: 0, linked: HashSet::new(), entries: 0, deadline };
            walk.folder(rustix::fs::CWD, path, 0).map_err(|errno| match errno {
                Errno::TIMEDOUT => Unmeasured::TooLong,
                _ => Unmeasured::Gone,
            })?;
            (walk.bytes, Some(walk.inodes))
        }
    };
    Ok(DiskUse { at: clock::now(), bytes, inodes })
}

struct Walk {
    bytes: u64,
    inodes: u64,
    linked: HashSet<u64>,
    /// Looked at so far, those that do not count included.
    entries: u32,
    deadline: Instant,
}

impl Walk {
    /// Follows no link, whatever the container puts in a folder's place meanwhile.
    fn folder(
        &mut self,
        at: impl std::os::fd::AsFd,
        name: impl rustix::path::Arg,
        depth: usize,
    ) -> Result<(), Errno> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let folder = openat(at, name, flags, Mode::empty())?;
        for entry in Dir::read_from(&folder)? {
            let entry = entry?;
            self.entries = self.entries.wrapping_add(1);
            if self.entries % UNWATCHED == 0 {
                self.check()?;
            }
            let name: &CStr = entry.file_name();
            if name == c".." {
                continue;
            }
            // What goes while it is looked at is no matter.
            let Ok(status) = statat(&folder, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
            let is_folder = FileType::from_raw_mode(status.st_mode) == FileType::Directory;
            if is_folder && name != c"." {
                // Counted from within, by its dot.
                if depth < MAX_DEPTH {
                    let _ = self.folder(&folder, name, depth + 1);
                }
                self.check()?;
                continue;
            }
            let is_known = !is_folder && status.st_nlink > 1 && self.is_known(status.st_ino);
            if !is_known {
                self.inodes += 1;
                self.bytes += u64::try_from(status.st_blocks).unwrap_or(0) * BLOCK;
            }
        }
        self.check()
    }

    fn is_known(&mut self, inode: u64) -> bool {
        if self.linked.len() >= MAX_LINKED {
            return self.linked.contains(&inode);
        }
        !self.linked.insert(inode)
    }

    fn check(&self) -> Result<(), Errno> {
        if Instant::now() > self.deadline { Err(Errno::TIMEDOUT) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use super::*;

    fn later() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    fn measured(path: &Path) -> (u64, u64) {
        let found = measure_blocking(&Layer::Folder(path.to_owned()), later()).unwrap();
        (found.bytes, found.inodes.unwrap())
    }

    #[test]
    fn files_count_once_and_links_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let upper = dir.path().join("upper");
        std::fs::create_dir(&upper).unwrap();
        std::fs::write(dir.path().join("outside"), vec![1; 1 << 20]).unwrap();
        let (before, inodes) = measured(&upper);
        assert_eq!(inodes, 1, "the folder itself");
        std::fs::write(upper.join("file"), vec![1; 64 << 10]).unwrap();
        std::fs::hard_link(upper.join("file"), upper.join("again")).unwrap();
        std::fs::create_dir(upper.join("sub")).unwrap();
        std::fs::write(upper.join("sub/file"), vec![1; 64 << 10]).unwrap();
        std::os::unix::fs::symlink("/", upper.join("root")).unwrap();
        std::os::unix::fs::symlink(dir.path().join("outside"), upper.join("link")).unwrap();
        let (bytes, inodes) = measured(&upper);
        assert_eq!(inodes, 6);
        let grown = bytes - before;
        assert!(((128 << 10)..(192 << 10)).contains(&grown), "{grown}");
        let layer = Layer::File(upper.join("file"));
        assert!(measure_blocking(&layer, later()).unwrap().bytes >= 64 << 10);
    }

    #[test]
    fn a_layer_that_takes_too_long_or_is_gone_has_no_numbers() {
        let dir = tempfile::tempdir().unwrap();
        let none = Layer::Folder(dir.path().join("none"));
        assert_eq!(measure_blocking(&none, later()), Err(Unmeasured::Gone));
        let past = Instant::now().checked_sub(Duration::from_secs(1)).unwrap();
        let found = measure_blocking(&Layer::Folder(dir.path().to_owned()), past);
        assert_eq!(found, Err(Unmeasured::TooLong));
    }

    #[test]
    fn one_flat_folder_is_left_at_the_deadline() {
        let dir = tempfile::tempdir().unwrap();
        (0..1000).for_each(|n| std::fs::write(dir.path().join(n.to_string()), "").unwrap());
        let walk = |deadline| Walk { bytes: 0, inodes: 0, linked: HashSet::new(), entries: 0, deadline };
        let mut late = walk(Instant::now());
        assert_eq!(late.folder(rustix::fs::CWD, dir.path(), 0), Err(Errno::TIMEDOUT));
        assert_eq!(late.entries, UNWATCHED, "what was looked at");
        let mut in_time = walk(later());
        assert_eq!(in_time.folder(rustix::fs::CWD, dir.path(), 0), Ok(()));
        assert_eq!(in_time.inodes, 1001, "the folder and its files");
    }
}
