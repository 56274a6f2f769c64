//! The log file: opened beneath the pod's log folder, appended to, never the reason for a container to stop.

use std::ffi::OsString;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{self, FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use tracing::warn;

/// rw-r-----: what kubelet and log collectors expect, and nobody else.
const FILE_MODE: Mode = Mode::from_raw_mode(0o640);
/// Same as containerd's for parents of a log path.
const FOLDER_MODE: Mode = Mode::from_raw_mode(0o755);
/// Nothing below the log folder may lead elsewhere: it is in reach of whoever has a hostPath on it.
const BENEATH: ResolveFlags =
    ResolveFlags::BENEATH.union(ResolveFlags::NO_SYMLINKS).union(ResolveFlags::NO_MAGICLINKS);

/// Why a text is no place for a log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidPlace {
    #[error("log directory `{}` is not absolute", .0.display())]
    Directory(PathBuf),
    #[error("log path `{}` leaves the log directory", .0.display())]
    Escapes(PathBuf),
}

/// Where a container's log is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct LogPlace {
    directory: PathBuf,
    /// Folders below it, then the file's name; never empty, and all of them ordinary names.
    names: Vec<OsString>,
}

impl LogPlace {
    /// The place `path` below `directory`, a folder on the host.
    pub(crate) fn new(directory: &Path, path: &Path) -> Result<Self, InvalidPlace> {
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
    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    /// The path below the folder.
    pub(crate) fn path(&self) -> PathBuf {
        self.names.iter().collect()
    }

    /// Opens the file for appending, making it and folders that are missing. May block on the disk.
    pub(crate) fn open_blocking(&self) -> Result<OwnedFd, Errno> {
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

/// An open log. A write that fails loses its lines and nothing more: they are counted, and said once when it begins and
/// once when it is over.
#[derive(Debug)]
pub(crate) struct LogFile {
    /// Without one the output is discarded.
    file: Option<OwnedFd>,
    /// The file ends within a line, because the disk filled up there.
    torn: bool,
    dropped: u64,
}

impl LogFile {
    #[cfg(test)]
    fn new(file: Option<OwnedFd>) -> Self {
        Self { file, torn: false, dropped: 0 }
    }

    /// A file that another writer may have written before, and left within a line when it was killed.
    pub(crate) fn opened(file: Option<OwnedFd>) -> Self {
        let torn = file.as_ref().is_some_and(|file| ends_within_a_line(file).unwrap_or(false));
        Self { file, torn, dropped: 0 }
    }

    /// Appends whole log lines in one write, as far as the disk takes them.
    pub(crate) fn append_blocking(&mut self, lines: &[u8]) {
        let Some(file) = &self.file else { return };
        if self.torn {
            // Not truncated back: a file that shrinks makes collectors read it again from its beginning.
            self.torn = write_all(file, b"\n").is_err();
        }
        let outcome = if self.torn { Err((0, Errno::NOSPC)) } else { write_all(file, lines) };
        match outcome {
            Ok(()) if self.dropped > 0 => {
                warn!(lines = self.dropped, "the log can be written again, lines were lost");
                self.dropped = 0;
            }
            Ok(()) => {}
            Err((written, error)) => {
                if self.dropped == 0 {
                    warn!(%error, "cannot write the log, dropping lines");
                }
                let (done, lost) = lines.split_at(written.min(lines.len()));
                self.torn |= done.last().is_some_and(|&byte| byte != b'\n');
                self.dropped += lost.iter().filter(|&&byte| byte == b'\n').count() as u64;
            }
        }
    }

    /// The file that is written after this one; it still has to tell of the lines that were lost here.
    pub(crate) fn successor(&self, file: Option<OwnedFd>) -> Self {
        Self { file, torn: false, dropped: self.dropped }
    }

    #[cfg(test)]
    fn dropped(&self) -> u64 {
        self.dropped
    }
}

fn ends_within_a_line(file: &OwnedFd) -> Result<bool, Errno> {
    let Some(last) = u64::try_from(fs::fstat(file)?.st_size).ok().and_then(|size| size.checked_sub(1)) else {
        return Ok(false);
    };
    let mut byte = [0];
    Ok(rustix::io::pread(file, &mut byte, last)? == 1 && byte != *b"\n")
}

/// Writes all of `bytes`; on failure says how many went out before.
fn write_all(file: impl AsFd, bytes: &[u8]) -> Result<(), (usize, Errno)> {
    let mut written = 0;
    while written < bytes.len() {
        match rustix::io::write(&file, &bytes[written..]) {
            Ok(0) => return Err((written, Errno::IO)),
            Ok(count) => written += count,
            Err(Errno::INTR) => {}
            Err(error) => return Err((written, error)),
        }
    }
    Ok(())
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
            LogFile::new(Some(log.open_blocking().unwrap())).append_blocking(text.as_bytes());
        }
        let path = dir.path().join("busybox/0.log");
        assert_eq!(stdfs::read_to_string(&path).unwrap(), "one\ntwo\n");
        assert_eq!(stdfs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o640);
    }

    #[test]
    fn a_line_that_a_killed_writer_left_unfinished_is_ended_first() {
        let dir = tempfile::tempdir().unwrap();
        let log = place(dir.path(), "0.log");
        for (before, after) in [("", "next\n"), ("whole\n", "whole\nnext\n"), ("to", "to\nnext\n")] {
            stdfs::write(dir.path().join("0.log"), before).unwrap();
            LogFile::opened(Some(log.open_blocking().unwrap())).append_blocking(b"next\n");
            assert_eq!(stdfs::read_to_string(dir.path().join("0.log")).unwrap(), after);
        }
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

    /// A full disk, played by a pipe of 4096 bytes that takes part of a write and then refuses.
    #[test]
    fn a_full_disk_loses_lines_and_recovers_on_a_line_of_its_own() {
        let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::NONBLOCK).unwrap();
        rustix::pipe::fcntl_setpipe_size(&writer, 4096).unwrap();
        let mut log = LogFile::new(Some(writer));
        let batch = "0123456789012345678\n".repeat(300);
        log.append_blocking(batch.as_bytes());
        log.append_blocking(b"lost\n");
        assert_eq!(log.dropped(), 300 - 204 + 1);
        let mut taken = vec![0; 8192];
        assert_eq!(rustix::io::read(&reader, &mut taken).unwrap(), 4096);
        log.append_blocking(b"after\n");
        assert_eq!(log.dropped(), 0);
        let count = rustix::io::read(&reader, &mut taken).unwrap();
        assert_eq!(&taken[..count], b"\nafter\n");
    }
}
