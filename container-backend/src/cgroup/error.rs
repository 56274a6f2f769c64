//! What can go wrong with a cgroup, and what merely deserves a word.

use std::fmt;
use std::io;
use std::path::PathBuf;

use super::Controller;

/// Why the cgroup tree of this node cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DetectError {
    #[error("read the mount table {}", path.display())]
    MountTable { path: PathBuf, source: io::Error },
    #[error("look up the cgroup root {}", root.display())]
    Root { root: PathBuf, source: io::Error },
    #[error("no cgroup v2 tree is mounted at {} or in a folder of it", root.display())]
    NoUnified { root: PathBuf },
    #[error("the cgroup tree {} is mounted read-only", dir.display())]
    ReadOnly { dir: PathBuf },
    #[error("read {}", file.display())]
    Controllers { file: PathBuf, source: io::Error },
}

/// Why a parent and an id do not name a leaf.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    #[error("cgroup parent {parent:?}: {reason}")]
    Parent { parent: String, reason: &'static str },
    #[error("cgroup id {id:?}: {reason}")]
    Id { id: String, reason: &'static str },
}

/// Why one step on a cgroup failed.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    #[error("make cgroup {}", dir.display())]
    Make { dir: PathBuf, source: io::Error },
    #[error("cgroup {} exists and has processes", dir.display())]
    InUse { dir: PathBuf },
    #[error("there is no scope {}: a slice's leaves are made by systemd, which has not", dir.display())]
    NoScope { dir: PathBuf },
    #[error("enable controller {controller} for the children of {}", dir.display())]
    Enable { controller: Controller, dir: PathBuf, source: io::Error },
    /// The kernel, or this part of its tree, does not offer what a limit needs.
    #[error("{limit} needs the cgroup controller {controller}, which this node does not have")]
    NoController { controller: Controller, limit: &'static str },
    #[error("write {value:?} to {}", file.display())]
    Write { file: PathBuf, value: String, source: io::Error },
    #[error("read {}", file.display())]
    Read { file: PathBuf, source: io::Error },
    #[error("open {}", path.display())]
    Open { path: PathBuf, source: io::Error },
    #[error("{} has no {what}", file.display())]
    Malformed { file: PathBuf, what: &'static str },
    #[error("no key {key:?} in {} (its controller is not on cgroup v2, or not enabled)", dir.display())]
    NoUnifiedKey { key: String, dir: PathBuf },
    #[error("load the device program for {}", dir.display())]
    DeviceProgram { dir: PathBuf, source: io::Error },
    #[error("wait for events of {}", dir.display())]
    Wait { dir: PathBuf, source: io::Error },
    #[error("make an event counter")]
    EventFd(#[source] io::Error),
    #[error("cgroup {} still has processes at the deadline: {}", dir.display(), Pids(pids))]
    StillPopulated { dir: PathBuf, pids: Vec<String> },
    #[error("remove cgroup {}", dir.display())]
    Remove { dir: PathBuf, source: io::Error },
    #[error("cgroup {} is nested deeper than {limit} levels", dir.display())]
    TooDeep { dir: PathBuf, limit: usize },
}

impl CgroupError {
    /// The kernel refused a value as such: CPUs that the node (or the pod) does not have, a number out of range.
    #[must_use]
    pub fn refuses_value(&self) -> bool {
        let Self::Write { file, source, .. } = self else { return false };
        let is_cpuset = file.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"cpuset."));
        match source.raw_os_error() {
            Some(libc::EINVAL | libc::ERANGE) => true,
            // What cgroup v1 says of CPUs that are not the parent's.
            Some(libc::EACCES) => is_cpuset,
            _ => false,
        }
    }
}

struct Pids<'a>(&'a [String]);

impl fmt::Display for Pids<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { f.write_str("none listed") } else { f.write_str(&self.0.join(" ")) }
    }
}

/// Everything that went wrong while a leaf was taken down; what could go is gone.
#[derive(Debug)]
pub struct DestroyError {
    /// At least one.
    pub errors: Vec<CgroupError>,
}

impl fmt::Display for DestroyError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, error) in self.errors.iter().enumerate() {
            if i > 0 {
                f.write_str("; ")?;
            }
            write!(f, "{error}")?;
            let mut cause = std::error::Error::source(error);
            while let Some(source) = cause {
                write!(f, ": {source}")?;
                cause = source.source();
            }
        }
        Ok(())
    }
}

// The list is printed with its causes above: there is no one source.
impl std::error::Error for DestroyError {}

/// A limit that could not be set, or a controller that could not be enabled, where the container can run without it.
#[derive(Debug, thiserror::Error)]
pub enum Warning {
    #[error("{limit} is not enforced: no {file} here")]
    NotEnforced { limit: &'static str, file: String },
    #[error("{what} is not supported and was ignored")]
    Ignored { what: &'static str },
    #[error("no stats and limits from controller {controller}: enabling it in {} failed: {source}", dir.display())]
    NotEnabled { controller: Controller, dir: PathBuf, source: io::Error },
    #[error("device {rule} stays denied: the parent cgroup does not allow it")]
    DeviceDenied { rule: String },
}
