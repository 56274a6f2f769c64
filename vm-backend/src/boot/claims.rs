//! The descriptors that came with a message, each to be claimed once.

use std::os::fd::OwnedFd;

use super::Fd;

/// Descriptors that nobody has claimed yet.
#[derive(Debug)]
pub struct Claims {
    fds: Vec<Option<OwnedFd>>,
}

/// A message and its descriptors do not fit each other.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ClaimError {
    #[error("{what} is to be descriptor {index}, but {came} came")]
    NoSuch { what: &'static str, index: usize, came: usize },
    #[error("{what} is to be descriptor {index}, which is something else as well")]
    Taken { what: &'static str, index: usize },
    #[error("nothing is said of {count} of the descriptors that came")]
    Unnamed { count: usize },
}

impl Claims {
    #[must_use]
    pub fn new(fds: Vec<OwnedFd>) -> Self {
        Self { fds: fds.into_iter().map(Some).collect() }
    }

    /// The descriptor that the message calls `what`.
    ///
    /// # Errors
    /// It did not come, or was claimed before.
    pub fn take(&mut self, fd: Fd, what: &'static str) -> Result<OwnedFd, ClaimError> {
        let (index, came) = (fd.0, self.fds.len());
        let place = self.fds.get_mut(index).ok_or(ClaimError::NoSuch { what, index, came })?;
        place.take().ok_or(ClaimError::Taken { what, index })
    }

    /// Nothing is left.
    ///
    /// # Errors
    /// Descriptors came that the message does not name.
    pub fn finish(self) -> Result<(), ClaimError> {
        match self.fds.iter().flatten().count() {
            0 => Ok(()),
            count => Err(ClaimError::Unnamed { count }),
        }
    }

    /// Another descriptor of the same file, without a claim.
    pub(super) fn copy(&self, fd: Fd) -> Option<OwnedFd> {
        self.fds.get(fd.0)?.as_ref()?.try_clone().ok()
    }
}
