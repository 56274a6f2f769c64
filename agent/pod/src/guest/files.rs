//! Files of the pod: what on a node is bound from the host's folders, such as resolv.conf.

use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

/// Where specs find them.
pub(crate) const FOLDER: &str = "/run/hartpod/files";

/// A file to write.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct PodFile {
    /// One component of a path.
    pub(crate) name: String,
    pub(crate) content: Vec<u8>,
    pub(crate) mode: u32,
}

/// A file could not be written.
#[derive(Debug, thiserror::Error)]
#[error("write {FOLDER}/{name}")]
pub(crate) struct FileError {
    name: String,
    source: io::Error,
}

/// Writes all of them; each is there as a whole or not at all.
pub(crate) fn write(files: &[PodFile]) -> Result<(), FileError> {
    write_in(Path::new(FOLDER), files)
}

fn write_in(folder: &Path, files: &[PodFile]) -> Result<(), FileError> {
    files.iter().try_for_each(|file| {
        write_one(folder, file).map_err(|source| FileError { name: file.name.clone(), source })
    })
}

fn write_one(folder: &Path, file: &PodFile) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    // Beside the folder: every name in it may be a file's.
    let new = folder.with_extension("new");
    let mut options = OpenOptions::new();
    let mut target = options.write(true).create(true).truncate(true).mode(0o600).open(&new)?;
    target.write_all(&file.content)?;
    target.set_permissions(Permissions::from_mode(file.mode))?;
    fs::rename(new, folder.join(&file.name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(name: &str, content: &str, mode: u32) -> PodFile {
        PodFile { name: name.to_owned(), content: content.as_bytes().to_vec(), mode }
    }

    #[test]
    fn files_are_written_with_their_modes_and_replaced_as_a_whole() {
        let dir = tempfile::tempdir().unwrap();
        let folder = dir.path().join("run/files");
        let files = [file("resolv.conf", "nameserver 10.0.0.1\n", 0o644), file("key", "secret", 0o400)];
        write_in(&folder, &files).unwrap();
        let read = |name| {
            let path = folder.join(name);
            let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o7777;
            (fs::read_to_string(path).unwrap(), mode)
        };
        assert_eq!(read("resolv.conf"), ("nameserver 10.0.0.1\n".to_owned(), 0o644));
        assert_eq!(read("key"), ("secret".to_owned(), 0o400));
        let open = fs::File::open(folder.join("key")).unwrap();
        write_in(&folder, &[file("key", "other", 0o600)]).unwrap();
        assert_eq!(read("key"), ("other".to_owned(), 0o600));
        assert_eq!(io::read_to_string(open).unwrap(), "secret", "who has it open reads on");
        assert_eq!(fs::read_dir(dir.path().join("run")).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn a_file_that_cannot_be_written_is_named() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("hosts")).unwrap();
        let error = write_in(dir.path(), &[file("hosts", "", 0o644)]).unwrap_err();
        assert_eq!(error.to_string(), "write /run/hartpod/files/hosts");
    }
}
