//! Descriptors 0, 1 and 2 of the program.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Gid, Uid, fchown, fstat};
use rustix::stdio::{dup2_stderr, dup2_stdin, dup2_stdout};

use crate::errno::Errno;

/// Where they come from.
#[derive(Debug)]
pub(crate) enum Streams {
    Three([OwnedFd; 3]),
    Terminal(OwnedFd),
}

impl Streams {
    /// Puts them in place. The originals stay, close-on-exec.
    pub(crate) fn install(&self) -> Result<(), Errno> {
        let [stdin, stdout, stderr] = match self {
            Self::Three(fds) => fds.each_ref().map(AsFd::as_fd),
            Self::Terminal(terminal) => [terminal.as_fd(); 3],
        };
        dup2_stdin(stdin)?;
        dup2_stdout(stdout)?;
        dup2_stderr(stderr)?;
        Ok(())
    }

    /// Gives them to the user, who may open `/dev/stdout` anew. /dev/null stays root's.
    pub(crate) fn give_to(&self, uid: u32) -> Result<(), Errno> {
        self.fds().iter().try_for_each(|fd| give(fd.as_fd(), uid))
    }

    pub(crate) fn fds(&self) -> &[OwnedFd] {
        match self {
            Self::Three(fds) => fds,
            Self::Terminal(terminal) => std::slice::from_ref(terminal),
        }
    }

    pub(crate) fn is_terminal(&self) -> bool {
        matches!(self, Self::Terminal(_))
    }
}

/// Gives a pipe or socket of the agent's to the root of a user namespace, who could not take it once it has no rights on the node.
pub(crate) fn give_to_root(fd: BorrowedFd<'_>, root: (u32, u32)) -> Result<(), Errno> {
    let kind = FileType::from_raw_mode(fstat(fd)?.st_mode);
    if !(kind.is_fifo() || kind.is_socket()) {
        return Ok(());
    }
    Ok(fchown(fd, Some(Uid::from_raw(root.0)), Some(Gid::from_raw(root.1)))?)
}

fn give(fd: BorrowedFd<'_>, uid: u32) -> Result<(), Errno> {
    let stat = fstat(fd)?;
    let kind = FileType::from_raw_mode(stat.st_mode);
    let terminal = kind.is_char_device() && (136..144).contains(&rustix::fs::major(stat.st_rdev));
    if stat.st_uid == uid || !(kind.is_fifo() || kind.is_socket() || terminal) {
        return Ok(());
    }
    Ok(fchown(fd, Some(Uid::from_raw(uid)), None)?)
}
