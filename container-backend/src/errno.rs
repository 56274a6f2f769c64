//! A kernel error that can cross a process boundary.

use std::fmt;
use std::io;

use serde::{Deserialize, Serialize};

/// An errno. Prints as a lower-case sentence without a full stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Errno(i32);

impl Errno {
    /// No such device.
    pub const NODEV: Self = Self(libc::ENODEV);
    /// No such file or directory.
    pub const NOENT: Self = Self(libc::ENOENT);
    /// No memory, and much else.
    pub const NOMEM: Self = Self(libc::ENOMEM);
    /// Permission denied.
    pub const ACCES: Self = Self(libc::EACCES);
    /// Operation not permitted.
    pub const PERM: Self = Self(libc::EPERM);
    /// Invalid argument.
    pub const INVAL: Self = Self(libc::EINVAL);
    /// Too many levels of symbolic links.
    pub const LOOP: Self = Self(libc::ELOOP);
    /// Is a directory.
    pub const ISDIR: Self = Self(libc::EISDIR);
    /// Not a directory.
    pub const NOTDIR: Self = Self(libc::ENOTDIR);
    /// Read-only file system.
    pub const ROFS: Self = Self(libc::EROFS);
    /// No such device or address: nobody reads the fifo.
    pub const NXIO: Self = Self(libc::ENXIO);
    /// File name too long.
    pub const NAMETOOLONG: Self = Self(libc::ENAMETOOLONG);
    /// No space left on device.
    pub const NOSPC: Self = Self(libc::ENOSPC);

    /// From its number, as `io::Error::raw_os_error` gives it.
    #[must_use]
    pub fn from_raw(number: i32) -> Self {
        Self(number)
    }

    /// Its number.
    #[must_use]
    pub fn raw(self) -> i32 {
        self.0
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = nix::errno::Errno::from_raw(self.0).desc();
        let mut chars = text.chars();
        match chars.next() {
            // Words such as "RFS specific error" keep their capitals.
            Some(first) if chars.clone().next().is_some_and(char::is_lowercase) => {
                write!(f, "{}{}", first.to_lowercase(), chars.as_str())
            }
            _ => f.write_str(text),
        }
    }
}

impl std::error::Error for Errno {}

impl From<rustix::io::Errno> for Errno {
    fn from(errno: rustix::io::Errno) -> Self {
        Self(errno.raw_os_error())
    }
}

impl From<nix::errno::Errno> for Errno {
    fn from(errno: nix::errno::Errno) -> Self {
        Self(errno as i32)
    }
}

impl From<io::Error> for Errno {
    /// An error that did not come from the kernel becomes EIO.
    fn from(error: io::Error) -> Self {
        Self(error.raw_os_error().unwrap_or(libc::EIO))
    }
}

impl From<Errno> for io::Error {
    fn from(errno: Errno) -> Self {
        Self::from_raw_os_error(errno.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_as_people_know_it() {
        assert_eq!(Errno::NOENT.to_string(), "no such file or directory");
        assert_eq!(Errno::ACCES.to_string(), "permission denied");
        assert_eq!(Errno::from_raw(libc::ENOEXEC).to_string(), "exec format error");
    }
}
