//! The host's mount namespace, held by the agent that has left it.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::container::root::open_confined;

/// A way back to the host's mounts. Only forked children take it: the agent itself never touches a path that may hang.
#[derive(Debug)]
pub struct HostMounts {
    namespace: OwnedFd,
}

impl HostMounts {
    /// The mount namespace that this process is in now.
    pub(crate) fn current() -> io::Result<Self> {
        crate::pod::open_namespace("self", "mnt").map(|namespace| Self { namespace })
    }

    /// Moves this process into it: root and working folder are the host's afterwards. Only for a child that is going
    /// to stay there or to move on, see [`crate::fork_role`].
    ///
    /// # Errors
    /// The process lacks CAP_SYS_ADMIN, or shares its working folder with another thread.
    pub fn enter(&self) -> io::Result<()> {
        Ok(move_into_link_name_space(self.namespace.as_fd(), Some(LinkNameSpaceType::Mount))?)
    }

    /// Opens `path` below `dir` without following any symlink and without leaving `dir`. New files get mode 0640.
    ///
    /// # Errors
    /// ELOOP for a symlink, EXDEV for a path that leaves `dir`, and what open(2) says.
    pub fn open_beneath(dir: BorrowedFd<'_>, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let mode = if flags.contains(OFlags::CREATE) { Mode::from_raw_mode(0o640) } else { Mode::empty() };
        Ok(open_confined(dir, path, flags, mode, resolve)?)
    }

    /// Opens a folder of the namespace that this process is in, following symlinks.
    ///
    /// # Errors
    /// What open(2) says.
    pub fn open_dir(path: impl AsRef<OsStr>) -> io::Result<OwnedFd> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(rustix::fs::open(path.as_ref(), flags, Mode::empty())?)
    }
}

impl AsFd for HostMounts {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.namespace.as_fd()
    }
}
