//! What containers have written to their own layers.
//!
//! On this host the upper folder of the overlay is walked, which takes as long as the container has files: so it is done now and then, one layer at a time, and the
//! last result is told. In a guest it is one sparse file, and the file system in it is the guest's: its inodes are not counted.

use std::collections::HashSet;
use std::ffi::CStr;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, openat, statat};
use rustix::io::Errno;

use super::window::SPAN;
use crate::clock;

/// A layer's walk is repeated after this many times as long as it took, so walking takes a twentieth of one core at most.
const PAUSE: u32 = 20;
/// What is deeper in folders is not counted: each level is an open folder.
const MAX_DEPTH: usize = 256;
/// Files with several names that are told apart; of more, each name counts.
const MAX_LINKED: usize = 100_000;
/// Bytes of a block as stat(2) counts them.
const BLOCK: u64 = 512;

/// What a layer takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DiskUse {
    /// Nanoseconds since the Unix epoch.
    pub(crate) at: i64,
    pub(crate) bytes: u64,
    pub(crate) inodes: Option<u64>,
    /// When it is to be measured again.
    due: Instant,
}

impl DiskUse {
    pub(crate) fn is_due(&self) -> bool {
        Instant::now() >= self.due
    }
}

/// Which layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layer<'a> {
    /// The upper folder of an overlay.
    Folder(&'a Path),
    /// A file with a file system in it.
    File(&'a Path),
}

/// Measures a layer; nothing if it is gone, or took longer than until `deadline`.
pub(crate) fn measure_blocking(layer: Layer<'_>, deadline: Option<Instant>) -> Option<DiskUse> {
    let began = Instant::now();
    let (bytes, inodes) = match layer {
        Layer::File(path) => (std::fs::metadata(path).ok()?.blocks() * BLOCK, None),
        Layer::Folder(path) => {
            let mut walk = Walk { bytes: 0, inodes: 0, linked: HashSet::new(), deadline };
            walk.folder(rustix::fs::CWD, path, 0).ok()?;
            (walk.bytes, Some(walk.inodes))
        }
    };
    let due = Instant::now() + SPAN.max(began.elapsed() * PAUSE) - Duration::from_secs(1);
    Some(DiskUse { at: clock::now(), bytes, inodes, due })
}

struct Walk {
    bytes: u64,
    inodes: u64,
    linked: HashSet<u64>,
    deadline: Option<Instant>,
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
        match self.deadline {
            Some(deadline) if Instant::now() > deadline => Err(Errno::TIMEDOUT),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(path: &Path) -> (u64, u64) {
        let found = measure_blocking(Layer::Folder(path), None).unwrap();
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
        let layer = Layer::File(&upper.join("file"));
        assert!(measure_blocking(layer, None).unwrap().bytes >= 64 << 10);
    }

    #[test]
    fn a_layer_that_takes_too_long_or_is_gone_has_no_numbers() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(measure_blocking(Layer::Folder(&dir.path().join("none")), None), None);
        let past = Instant::now().checked_sub(Duration::from_secs(1));
        assert_eq!(measure_blocking(Layer::Folder(dir.path()), past), None);
    }
}
