//! Where a log is: a path that stays beneath the pod's log folder.

use std::ffi::OsString;
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{self, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

/// rw-r-----: what kubelet and log collectors expect, and nobody else.
const FILE_MODE: Mode = Mode::from_raw_mode(0o640);
/// Same as containerd's for parents of a log path.
const FOLDER_MODE: Mode = Mode::from_raw_mode(0o755);
/// Nothing below the log folder may lead elsewhere: it is in reach of whoever has a hostPath on it.
const BENEATH: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

/// Why a text is no place for a log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPlace {
    #[error("log directory `{}` is not absolute", .0.display())]
    Directory(PathBuf),
    #[error("log path `{}` leaves the log directory", .0.display())]
    Escapes(PathBuf),
}

/// Where a container's log is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogPlace {
    directory: PathBuf,
    /// Folders below it, then the file's name; never empty, and all of them ordinary names.
    names: Vec<OsString>,
}

impl LogPlace {
    /// The place `path` below `directory`, a folder on the host.
    ///
    /// # Errors
    /// The folder is not absolute, or the path leaves it.
    pub fn new(directory: &Path, path: &Path) -> Result<Self, InvalidPlace> {
        if !directory.is_absolute() {
            return Err(InvalidPlace::Directory(directory.to_owned()));
        }
        let mut names = Vec::new();
        for component in path.components() {
            match component {
                Component::Normal(name) => names.push(name.to_owned()),
                Component::CurDir => {}
                Component::Prefix(_) | Component::RootDir | Component::ParentDir => {
                    return Err(InvalidPlace::Escapes(path.to_owned()));
                }
            }
        }
        if names.is_empty() {
            return Err(InvalidPlace::Escapes(path.to_owned()));
        }
        Ok(Self { directory: directory.to_owned(), names })
    }

    /// The folder on the host.
    #[must_use]
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// The path below the folder.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.names.iter().collect()
    }

    /// Opens the file for appending, making it and folders that are missing. May block on the disk.
    ///
    /// # Errors
    /// `LOOP` where a part of the path is a symbolic link, `INVAL` where the file is not a regular one, and those of the kernel.
    pub fn open_blocking(&self) -> Result<OwnedFd, Errno> {
        let folder = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut at = fs::open(&self.directory, folder, Mode::empty())?;
        let Some((file, folders)) = self.names.split_last() else { return Err(Errno::INVAL) };
        for name in folders {
            match fs::mkdirat(&at, name, FOLDER_MODE) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(error) => return Err(error),
            }
            at = fs::openat2(&at, name, folder, Mode::empty(), BENEATH)?;
        }
        // A fifo is not waited for, and refused below: its reader would see half of the log.
        // Read, too: to see whether the last writer was killed within a line.
        let flags = OFlags::RDWR | OFlags::APPEND | OFlags::CREATE | OFlags::NOFOLLOW | OFlags::NONBLOCK;
        let opened = fs::openat2(&at, file, flags | OFlags::CLOEXEC | OFlags::NOCTTY, FILE_MODE, BENEATH)?;
        if FileType::from_raw_mode(fs::fstat(&opened)?.st_mode) != FileType::RegularFile {
            return Err(Errno::INVAL);
        }
        Ok(opened)
    }
}

#[cfg(test)]
mod tests {
    use std::fs as stdfs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn place(directory: &Path, path: &str) -> LogPlace {
        LogPlace::new(directory, Path::new(path)).unwrap()
    }

    #[test]
    fn paths_that_leave_the_directory_are_refused() {
        for path in ["", ".", "../x", "a/../../x", "/etc/passwd", "a/.."] {
            let refused = LogPlace::new(Path::new("/var/log/pods/p"), Path::new(path));
            assert_eq!(refused, Err(InvalidPlace::Escapes(path.into())));
        }
        assert!(LogPlace::new(Path::new("relative"), Path::new("x")).is_err());
    }

    #[test]
    fn missing_folders_are_made_and_lines_appended() {
        let dir = tempfile::tempdir().unwrap();
        let log = place(dir.path(), "./busybox/0.log");
        for text in ["one\n", "two\n"] {
            rustix::io::write(log.open_blocking().unwrap(), text.as_bytes()).unwrap();
        }
        let path = dir.path().join("busybox/0.log");
        assert_eq!(stdfs::read_to_string(&path).unwrap(), "one\ntwo\n");
        assert_eq!(stdfs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
    }

    #[test]
    fn links_and_odd_files_are_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        symlink(outside.path(), dir.path().join("folder")).unwrap();
        symlink(outside.path().join("file"), dir.path().join("0.log")).unwrap();
        stdfs::create_dir(dir.path().join("1.log")).unwrap();
        rustix::fs::mknodat(
            rustix::fs::CWD,
            dir.path().join("2.log"),
            FileType::Fifo,
            Mode::from_raw_mode(0o600),
            0,
        )
        .unwrap();
        assert_eq!(place(dir.path(), "folder/0.log").open_blocking().unwrap_err(), Errno::LOOP);
        assert_eq!(place(dir.path(), "0.log").open_blocking().unwrap_err(), Errno::LOOP);
        assert_eq!(place(dir.path(), "1.log").open_blocking().unwrap_err(), Errno::ISDIR);
        assert_eq!(place(dir.path(), "2.log").open_blocking().unwrap_err(), Errno::INVAL);
        assert_eq!(stdfs::read_dir(outside.path()).unwrap().count(), 0);
    }
}
