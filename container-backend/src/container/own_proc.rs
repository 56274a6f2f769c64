//! Files of the agent's procfs about this process, opened before the agent's mounts are out of reach. The container's own
//! procfs is no substitute: a hostile one may have mounted something else there.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, openat};

use super::settings::ExecLabel;
use crate::errno::Errno;
use crate::failure::Failure;

/// /proc/self of this process.
#[derive(Debug)]
pub(crate) struct OwnProc {
    folder: OwnedFd,
    fds: OwnedFd,
    label: Option<File>,
}

impl OwnProc {
    pub(crate) fn open(label: Option<&ExecLabel>) -> Result<Self, Failure> {
        let failed = |e: rustix::io::Errno| Failure::Step { step: "open /proc/self".into(), errno: e.into() };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::open("/proc/self", flags, Mode::empty()).map_err(failed)?;
        let fds = openat(&folder, "fd", flags, Mode::empty()).map_err(failed)?;
        let label = label.map(|label| open_label(&folder, label)).transpose()?;
        Ok(Self { folder, fds, label })
    }

    pub(crate) fn fds(&self) -> BorrowedFd<'_> {
        self.fds.as_fd()
    }

    /// The table of this process's mappings.
    pub(crate) fn open_maps(&self) -> Result<OwnedFd, Errno> {
        Ok(openat(&self.folder, "maps", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
    }

    /// Where the label of the next execve is written.
    pub(crate) fn into_label_file(self) -> Option<File> {
        self.label
    }
}

/// Does `work` while keys that are made get the label that the program will have: with SELinux they are labelled as who makes them, and the
/// program could not use its own session keyring. Call it where /proc is the agent's.
pub(crate) fn with_key_label(
    label: Option<&ExecLabel>,
    work: impl FnOnce() -> io::Result<()>,
) -> io::Result<()> {
    const FILE: &str = "/proc/self/attr/keycreate";
    let Some(ExecLabel::SeLinux(label)) = label else { return work() };
    std::fs::write(FILE, label)?;
    let done = work();
    // Back to none.
    std::fs::write(FILE, "\0")?;
    done
}

fn open_label(folder: &OwnedFd, label: &ExecLabel) -> Result<File, Failure> {
    let (what, own) = match label {
        ExecLabel::AppArmor(_) => ("AppArmor", "attr/apparmor/exec"),
        ExecLabel::SeLinux(_) => ("SELinux", "attr/exec"),
    };
    let failed = |e: rustix::io::Errno| Failure::Step {
        step: format!("set a label: is {what} enabled?"),
        errno: e.into(),
    };
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    // Before modules were stacked (Linux 5.8) there was one file for whichever was in use.
    let file = openat(folder, own, flags, Mode::empty())
        .or_else(|_| openat(folder, "attr/exec", flags, Mode::empty()));
    Ok(file.map_err(failed)?.into())
}
