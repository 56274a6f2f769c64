//! Errors of the file system, with what was tried on which path.

use std::io;
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

/// Adds the facts to a result of a file operation.
pub(super) trait At<T> {
    fn at(self, action: &'static str, path: impl AsRef<Path>) -> Result<T, FileError>;
}

impl<T, E: Into<io::Error>> At<T> for Result<T, E> {
    fn at(self, action: &'static str, path: impl AsRef<Path>) -> Result<T, FileError> {
        self.map_err(|error| FileError { action, path: path.as_ref().to_owned(), source: error.into() })
    }
}
