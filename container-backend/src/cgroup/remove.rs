//! Taking a leaf down: kill, wait until it is empty, remove sub-leaves, twins and parents of ours. Every step is tried whatever
//! became of those before.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{Timespec, poll};
use rustix::fs::rmdir;
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::error::{CgroupError, DestroyError};
use super::leaf::Leaf;
use super::make::{PARENT_MARK, below, parents};
use super::node::Node;

/// How deep sub-leaves may nest: a container with a cgroup namespace of its own makes them as it likes.
const DEPTH_LIMIT: usize = 64;

/// Longest pause between two tries of a removal that the kernel announces no end of.
const PAUSE_MAX: Duration = Duration::from_millis(16);

impl Leaf {
    /// Removes an empty leaf everywhere without waiting, then the parents that we made and that became empty. Gone already is
    /// Ok.
    ///
    /// # Errors
    /// Whatever failed, [`CgroupError::Remove`] with EBUSY for what has processes.
    pub fn remove(&self) -> Result<(), DestroyError> {
        let mut errors = Vec::new();
        for root in self.roots() {
            if let Err(e) = tree(&below(root, &self.path)) {
                errors.push(e);
            }
        }
        self.finish(errors)
    }

    /// Kills what is in the leaf, waits until that is gone, and removes the leaf everywhere with its sub-leaves, then the
    /// parents that we made and that became empty. Gone already is Ok. Blocks until the deadline at most.
    ///
    /// # Errors
    /// Whatever failed; after a failure the rest was still tried.
    pub fn destroy_blocking(&self, deadline: Instant) -> Result<(), DestroyError> {
        let mut errors = Vec::new();
        empty_blocking(&self.node(), deadline, &mut errors);
        for root in self.roots() {
            let dir = below(root, &self.path);
            retry_blocking(deadline, &mut errors, || tree(&dir).inspect_err(|_| kill_stragglers(&dir)));
        }
        self.finish(errors)
    }

    fn roots(&self) -> impl Iterator<Item = &Path> {
        let v1 = self.hierarchies.v1.iter().map(|h| h.dir.as_path());
        v1.chain([self.hierarchies.unified.as_path()])
    }

    fn finish(&self, mut errors: Vec<CgroupError>) -> Result<(), DestroyError> {
        for root in self.roots() {
            if let Err(e) = marked_parents(root, &self.path) {
                errors.push(e);
            }
        }
        if errors.is_empty() { Ok(()) } else { Err(DestroyError { errors }) }
    }
}

/// Kills and waits; a process that outlives the deadline (in uninterruptible sleep) is an error.
pub(super) fn empty_blocking(node: &Node, deadline: Instant, errors: &mut Vec<CgroupError>) {
    let emptied = node.kill().and_then(|()| node.wait_empty_blocking(deadline));
    match emptied {
        Ok(true) => {}
        Ok(false) => {
            errors.push(CgroupError::StillPopulated { dir: node.dir.clone(), pids: node.some_pids() });
        }
        Err(e) => errors.push(e),
    }
}

/// Tries until the deadline while the answer is EBUSY: a v1 twin has no event that tells when it became empty, and the last
/// task of a cgroup may still be on its way out after the event.
pub(super) fn retry_blocking(
    deadline: Instant,
    errors: &mut Vec<CgroupError>,
    mut attempt: impl FnMut() -> Result<(), CgroupError>,
) {
    let mut pause = Duration::from_millis(1);
    loop {
        let error = match attempt() {
            Ok(()) => return,
            Err(e) => e,
        };
        let busy = matches!(&error, CgroupError::Remove { source, .. } if source.raw_os_error() == Some(libc::EBUSY));
        let left = deadline.saturating_duration_since(Instant::now());
        if !busy || left.is_zero() {
            errors.push(error);
            return;
        }
        let timeout = Timespec::try_from(pause.min(left)).unwrap_or_default();
        let _ = poll(&mut [], Some(&timeout));
        pause = (pause * 2).min(PAUSE_MAX);
    }
}

/// Removes a cgroup and those below it. Processes in any make it fail with EBUSY.
pub(super) fn tree(dir: &Path) -> Result<(), CgroupError> {
    tree_within(dir, DEPTH_LIMIT)
}

fn tree_within(dir: &Path, depth: usize) -> Result<(), CgroupError> {
    let failed = |source: io::Error| CgroupError::Remove { dir: dir.to_owned(), source };
    // Nearly always it has no children: then there is nothing to read.
    match rmdir(dir) {
        Ok(()) | Err(Errno::NOENT | Errno::NAMETOOLONG) => return Ok(()),
        Err(Errno::BUSY | Errno::NOTEMPTY) => {}
        Err(e) => return Err(failed(e.into())),
    }
    let Some(depth) = depth.checked_sub(1) else {
        return Err(CgroupError::TooDeep { dir: dir.to_owned(), limit: DEPTH_LIMIT });
    };
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(failed(e)),
    };
    let mut first_error = None;
    for entry in entries.flatten() {
        if entry.file_type().is_ok_and(|t| t.is_dir()) {
            if let Err(e) = tree_within(&entry.path(), depth) {
                first_error.get_or_insert(e);
            }
        }
    }
    match (rmdir(dir), first_error) {
        (Ok(()) | Err(Errno::NOENT), _) => Ok(()),
        (Err(_), Some(below)) => Err(below),
        (Err(e), None) => Err(failed(e.into())),
    }
}

/// Kills processes that sit in a v1 folder of ours but left the v2 leaf, where cgroup.kill would have met them: a privileged
/// container can move itself. The pidfd is taken first and the list read again, so that no recycled pid is hit.
fn kill_stragglers(dir: &Path) {
    let listed = || std::fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    for line in listed().lines() {
        let Some(pid) = line.parse().ok().and_then(Pid::from_raw) else { continue };
        let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else { continue };
        if listed().lines().any(|again| again == line) {
            let _ = pidfd_send_signal(&pidfd, Signal::KILL);
        }
    }
}

/// Removes parents upwards as long as they are ours and empty.
fn marked_parents(root: &Path, path: &str) -> Result<(), CgroupError> {
    for parent in parents(path).rev() {
        let dir = below(root, parent);
        let mut value = [0_u8; 8];
        match rustix::fs::getxattr(&dir, PARENT_MARK, &mut value) {
            Ok(_) => {}
            // A parent that is gone may still have parents.
            Err(Errno::NOENT) => continue,
            Err(_) => return Ok(()),
        }
        match rmdir(&dir) {
            Ok(()) | Err(Errno::NOENT) => {}
            // Another leaf lives there: its destroy will come by here again.
            Err(Errno::BUSY | Errno::NOTEMPTY) => return Ok(()),
            Err(e) => return Err(CgroupError::Remove { dir, source: e.into() }),
        }
    }
    Ok(())
}
