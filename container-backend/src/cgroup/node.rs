//! One cgroup of the v2 tree: the half of a leaf that answers for life and death.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, open};

use super::error::CgroupError;
use super::file;

#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) dir: PathBuf,
}

impl Node {
    /// For CLONE_INTO_CGROUP and for attaching programs.
    pub(super) fn open(&self) -> Result<OwnedFd, CgroupError> {
        self.open_with("", OFlags::DIRECTORY)
    }

    /// `cgroup.events`: poll(2) for POLLPRI tells of a change since the last read, see [`is_populated`].
    pub(super) fn open_events(&self) -> Result<OwnedFd, CgroupError> {
        self.open_with("cgroup.events", OFlags::empty())
    }

    fn open_with(&self, name: &str, flags: OFlags) -> Result<OwnedFd, CgroupError> {
        let path = if name.is_empty() { self.dir.clone() } else { self.dir.join(name) };
        open(&path, flags | OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .map_err(|e| CgroupError::Open { path, source: e.into() })
    }

    /// SIGKILL for every process in it and below, forks in flight included. A cgroup that is gone has none.
    pub(super) fn kill(&self) -> Result<(), CgroupError> {
        let file = self.dir.join("cgroup.kill");
        match file::put(&file, "1") {
            Err(e) if file::is_gone(&e) && !self.dir.exists() => Ok(()),
            Err(source) => Err(CgroupError::Write { file, value: "1".to_owned(), source }),
            Ok(()) => Ok(()),
        }
    }

    /// Whether a live process is in it or below. A cgroup that is gone is empty.
    pub(super) fn populated(&self) -> Result<bool, CgroupError> {
        let file = self.dir.join("cgroup.events");
        let Some(text) = file::read_if_there(&file)? else { return Ok(false) };
        parse_populated(&text).ok_or(CgroupError::Malformed { file, what: "populated" })
    }

    /// Blocks until nothing lives in it. The answer is false if the deadline came first.
    pub(super) fn wait_empty_blocking(&self, deadline: Instant) -> Result<bool, CgroupError> {
        let events = match self.open_events() {
            Ok(events) => events,
            Err(CgroupError::Open { source, .. }) if file::is_gone(&source) => return Ok(true),
            Err(e) => return Err(e),
        };
        loop {
            // The read arms the next poll, so a change between the two is not lost.
            if !is_populated(&events).map_err(|source| self.wait_failed(source))? {
                return Ok(true);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            let timeout = Timespec::try_from(left).unwrap_or(Timespec { tv_sec: 60, tv_nsec: 0 });
            match poll(&mut [PollFd::new(&events, PollFlags::PRI)], Some(&timeout)) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(self.wait_failed(e.into())),
            }
        }
    }

    fn wait_failed(&self, source: std::io::Error) -> CgroupError {
        CgroupError::Wait { dir: self.dir.clone(), source }
    }

    /// A few of the pids in it, for an error message.
    pub(super) fn some_pids(&self) -> Vec<String> {
        const ENOUGH: usize = 5;
        let procs = std::fs::read_to_string(self.dir.join("cgroup.procs")).unwrap_or_default();
        procs.lines().take(ENOUGH).map(str::to_owned).collect()
    }
}

/// Reads an fd from [`Leaf::open_events`](super::Leaf::open_events) from its start, which also arms the next POLLPRI.
/// A cgroup that was removed meanwhile is empty.
///
/// # Errors
/// When the file cannot be read, or has no `populated` line.
pub fn is_populated(events: &OwnedFd) -> std::io::Result<bool> {
    // Two lines today, `populated` first.
    let mut buffer = [0; 256];
    match rustix::io::pread(events, &mut buffer, 0) {
        Ok(n) => {
            let text = std::str::from_utf8(buffer.get(..n).unwrap_or_default()).unwrap_or_default();
            parse_populated(text).ok_or_else(|| std::io::Error::other("no populated line"))
        }
        Err(rustix::io::Errno::NODEV) => Ok(false),
        Err(e) => Err(e.into()),
    }
}

fn parse_populated(text: &str) -> Option<bool> {
    file::keyed(text, "populated").map(|n| n != 0)
}

/// Whether `dir` is still there; a doubt counts as yes.
pub(super) fn exists(dir: &Path) -> bool {
    dir.try_exists().unwrap_or(true)
}
