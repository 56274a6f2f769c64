//! Kills by the kernel for want of memory.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;

use super::Controller;
use super::error::CgroupError;
use super::file;
use super::leaf::Leaf;
use super::make::below;
use super::tree::Version;

/// What a watch's descriptor becomes when something happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Readiness {
    /// POLLIN: an eventfd (v1).
    Readable,
    /// POLLPRI: `memory.events` (v2).
    Priority,
}

/// Tells that the OOM killer was at work in a leaf, or that the leaf is going away: [`Leaf::oom_kills`] then says whether and
/// how often.
#[derive(Debug)]
pub struct OomWatch {
    fd: OwnedFd,
    readiness: Readiness,
}

impl OomWatch {
    /// What to poll for.
    #[must_use]
    pub fn readiness(&self) -> Readiness {
        self.readiness
    }

    /// Takes note of what was announced, so that the next poll waits for something new.
    ///
    /// # Errors
    /// When the descriptor cannot be read for another reason than that nothing happened or that the cgroup is gone.
    pub fn clear(&self) -> std::io::Result<()> {
        let mut buffer = [0; 512];
        let read = match self.readiness {
            Readiness::Readable => rustix::io::read(&self.fd, &mut buffer),
            Readiness::Priority => rustix::io::pread(&self.fd, &mut buffer, 0),
        };
        match read {
            Ok(_) | Err(Errno::AGAIN | Errno::NODEV) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }
}

impl AsFd for OomWatch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Leaf {
    /// How many processes the OOM killer killed in this leaf since it was made.
    ///
    /// # Errors
    /// When this node has no memory controller or its file cannot be read, as after the leaf is gone.
    pub fn oom_kills(&self) -> Result<u64, CgroupError> {
        let (version, file) = self.oom_file()?;
        let text = file::read(&file)?;
        let count = file::keyed(&text, "oom_kill");
        // v1 counts since Linux 4.13.
        count.ok_or(CgroupError::Malformed {
            file,
            what: if version == Version::V1 { "oom_kill counter" } else { "oom_kill" },
        })
    }

    /// A watch for OOM kills in this leaf.
    ///
    /// # Errors
    /// When the leaf does not exist or this node has no memory controller.
    pub fn oom_watch(&self) -> Result<OomWatch, CgroupError> {
        let (version, path) = self.oom_file()?;
        let control = open(&path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|e| CgroupError::Open { path: path.clone(), source: e.into() })?;
        if version == Version::V2 {
            let watch = OomWatch { fd: control, readiness: Readiness::Priority };
            watch.clear().map_err(|source| CgroupError::Read { file: path, source })?;
            return Ok(watch);
        }
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|e| CgroupError::EventFd(e.into()))?;
        // The kernel takes its own reference to both files.
        let registration = format!("{} {}", fd.as_raw_fd(), control.as_raw_fd());
        file::write(&path.with_file_name("cgroup.event_control"), &registration)?;
        Ok(OomWatch { fd, readiness: Readiness::Readable })
    }

    fn oom_file(&self) -> Result<(Version, std::path::PathBuf), CgroupError> {
        let (version, root) = self
            .hierarchies
            .home(Controller::Memory)
            .ok_or(CgroupError::NoController { controller: Controller::Memory, limit: "an OOM watch" })?;
        let name = if version == Version::V1 { "memory.oom_control" } else { "memory.events" };
        Ok((version, below(root, &self.path).join(name)))
    }
}
