//! The daemon's folders, and the locks that keep them its own.

use std::fs::{DirBuilder, File, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

/// Name of the lock file below a folder.
const LOCK: &str = "lock";

/// A folder of the daemon cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum FolderError {
    #[error("make {}", path.display())]
    Make { path: PathBuf, source: io::Error },
    #[error("lock {}", path.display())]
    Lock { path: PathBuf, source: io::Error },
    #[error("another hartpod uses {}", path.display())]
    Taken { path: PathBuf },
}

/// Held as long as it lives; the kernel releases it when the process ends, however that happens.
#[derive(Debug)]
pub(super) struct Lock {
    _file: File,
}

/// Makes a folder with its parents; one that exists gets the mode.
pub(super) fn make(path: &Path, mode: u32) -> Result<(), FolderError> {
    let made = DirBuilder::new().recursive(true).mode(mode).create(path);
    let made = made.and_then(|()| std::fs::set_permissions(path, Permissions::from_mode(mode)));
    made.map_err(|source| FolderError::Make { path: path.to_owned(), source })
}

/// For root alone: whoever can read a file can lock it, and so keep the next daemon from starting.
fn open(path: &Path) -> io::Result<File> {
    let file = File::options().write(true).create(true).truncate(false).mode(0o600).open(path)?;
    file.set_permissions(Permissions::from_mode(0o600))?;
    Ok(file)
}

/// Takes the lock of a folder.
pub(super) fn lock(folder: &Path) -> Result<Lock, FolderError> {
    let path = folder.join(LOCK);
    let file = open(&path).map_err(|source| FolderError::Lock { path: path.clone(), source })?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Lock { _file: file }),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(FolderError::Taken { path: folder.to_owned() }),
        Err(error) => Err(FolderError::Lock { path, source: error.into() }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_has_one_user_at_a_time() {
        let dir = tempfile::tempdir().unwrap();
        let first = lock(dir.path()).unwrap();
        assert!(matches!(lock(dir.path()), Err(FolderError::Taken { .. })));
        drop(first);
        lock(dir.path()).unwrap();
    }

    #[test]
    fn a_lock_is_not_for_others_to_take() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join(LOCK);
        // As earlier versions made it.
        std::fs::write(&path, "").unwrap();
        std::fs::set_permissions(&path, Permissions::from_mode(0o644)).unwrap();
        let _lock = lock(dir.path()).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn a_folder_that_exists_gets_the_mode() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b");
        for mode in [0o700, 0o711] {
            make(&path, mode).unwrap();
            assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, mode);
        }
    }
}
