//! Errors of the file system, with what was tried on which path.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

/// A file operation that failed.
#[derive(Debug, thiserror::Error)]
#[error("{action} {}", path.display())]
pub struct FileError {
    /// What was tried: `create`, `rename to`.
    pub action: &'static str,
    /// On what.
    pub path: PathBuf,
    /// What the kernel said.
    #[source]
    pub source: io::Error,
}

/// All of a regular file of at most `limit` bytes.
pub(super) fn read_file(path: &Path, limit: usize) -> Result<Vec<u8>, FileError> {
    let too_large = || io::Error::new(io::ErrorKind::FileTooLarge, format!("it has more than {limit} bytes"));
    let read = || -> io::Result<Vec<u8>> {
        let most = u64::try_from(limit).unwrap_or(u64::MAX);
        // Before it is opened, which would wait for the other end of a pipe.
        match path.metadata()? {
            file if !file.is_file() => {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"));
            }
            file if file.len() > most => return Err(too_large()),
            _ => {}
        }
        let mut bytes = Vec::new();
        File::open(path)?.take(most.saturating_add(1)).read_to_end(&mut bytes)?;
        if bytes.len() > limit { Err(too_large()) } else { Ok(bytes) }
    };
    read().at("read", path)
}

/// Adds the facts to a result of a file operation.
pub(super) trait At<T> {
    fn at(self, action: &'static str, path: impl AsRef<Path>) -> Result<T, FileError>;
}

impl<T, E: Into<io::Error>> At<T> for Result<T, E> {
    fn at(self, action: &'static str, path: impl AsRef<Path>) -> Result<T, FileError> {
        self.map_err(|error| FileError { action, path: path.as_ref().to_owned(), source: error.into() })
    }
}
