//! The sub-leaf of an exec: its whole tree can be killed, whatever sessions it made.

use std::os::fd::OwnedFd;
use std::time::Instant;

use rustix::fs::{Mode, mkdir};
use rustix::io::Errno;

use super::error::{CgroupError, DestroyError};
use super::node::Node;
use super::remove;

/// Path of an exec's sub-leaf (`<leaf>/exec-<id>`, v2 only). The exec'd process is cloned into it and joins the container's v1
/// leaf with [`Leaf::join_v1_self`](super::Leaf::join_v1_self).
#[derive(Debug, Clone)]
pub struct ExecLeaf {
    pub(super) node: Node,
}

impl ExecLeaf {
    /// Makes it; one left empty is taken over.
    ///
    /// # Errors
    /// When the container's leaf does not exist, or this one has processes.
    pub fn create(&self) -> Result<(), CgroupError> {
        let dir = &self.node.dir;
        match mkdir(dir, Mode::from_raw_mode(0o755)) {
            Ok(()) => Ok(()),
            Err(Errno::EXIST) if self.node.populated()? => Err(CgroupError::InUse { dir: dir.clone() }),
            Err(Errno::EXIST) => Ok(()),
            Err(e) => Err(CgroupError::Make { dir: dir.clone(), source: e.into() }),
        }
    }

    /// For CLONE_INTO_CGROUP.
    ///
    /// # Errors
    /// When it does not exist.
    pub fn open_unified(&self) -> Result<OwnedFd, CgroupError> {
        self.node.open()
    }

    /// Kills every process in it. One that is gone is no error.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn kill(&self) -> Result<(), CgroupError> {
        self.node.kill()
    }

    /// Whether a live process is in it.
    ///
    /// # Errors
    /// When `cgroup.events` cannot be read.
    pub fn populated(&self) -> Result<bool, CgroupError> {
        self.node.populated()
    }

    /// See [`Leaf::open_events`](super::Leaf::open_events).
    ///
    /// # Errors
    /// When it does not exist.
    pub fn open_events(&self) -> Result<OwnedFd, CgroupError> {
        self.node.open_events()
    }

    /// Removes it without waiting. Gone already is Ok.
    ///
    /// # Errors
    /// When it has processes, or the kernel refuses.
    pub fn remove(&self) -> Result<(), CgroupError> {
        remove::tree(&self.node.dir)
    }

    /// Kills what is in it, waits until that is gone, and removes it. Gone already is Ok.
    ///
    /// # Errors
    /// Whatever failed; after a failure the rest was still tried.
    pub fn destroy_blocking(&self, deadline: Instant) -> Result<(), DestroyError> {
        let mut errors = Vec::new();
        remove::empty_blocking(&self.node, deadline, &mut errors);
        remove::retry_blocking(deadline, &mut errors, || self.remove());
        if errors.is_empty() { Ok(()) } else { Err(DestroyError { errors }) }
    }
}
