//! Whose memory limit the kernel killed for.

use std::fmt;
use std::path::Path;

use super::Controller;
use super::error::CgroupError;
use super::file;
use super::leaf::Leaf;
use super::make::{below, parents};
use super::tree::Version;

/// Bytes below a limit at which a charge of a few pages fails.
const V1_SLACK: u64 = 64 * 1024;

/// The nearest limit above a killed process that was reached. Kills are counted where the process was, limits where they are: which kill
/// was for which limit the kernel does not say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OomLimit {
    /// That of the leaf itself.
    Own {
        /// Its path.
        cgroup: String,
    },
    /// That of a cgroup above, which the leaf shares with others.
    Shared {
        /// Its path.
        cgroup: String,
    },
    /// None: the machine has no more.
    Machine,
}

impl fmt::Display for OomLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Own { cgroup } => write!(f, "its memory limit was reached (cgroup {cgroup})"),
            Self::Shared { cgroup } => {
                write!(f, "the memory limit of cgroup {cgroup}, which it shares, was reached")
            }
            Self::Machine => f.write_str("the machine had no memory left, and no limit was reached"),
        }
    }
}

impl Leaf {
    /// Whose limit was reached, where [`Leaf::oom_kills`] tells of kills.
    ///
    /// # Errors
    /// When this node has no memory controller or its files cannot be read.
    pub fn oom_limit(&self) -> Result<OomLimit, CgroupError> {
        let home = self.hierarchies.home(Controller::Memory);
        let (version, root) = home.ok_or(CgroupError::NoController {
            controller: Controller::Memory,
            limit: "the cause of a kill",
        })?;
        if reached(version, &below(root, &self.path))? {
            return Ok(OomLimit::Own { cgroup: self.path.clone() });
        }
        for parent in parents(&self.path).rev() {
            if reached(version, &below(root, parent))? {
                return Ok(OomLimit::Shared { cgroup: parent.to_owned() });
            }
        }
        Ok(OomLimit::Machine)
    }
}

/// Whether the limit of this very cgroup was reached with nothing left to reclaim; on v1, which does not tell those apart, with or
/// without.
fn reached(version: Version, dir: &Path) -> Result<bool, CgroupError> {
    match version {
        Version::V2 => {
            // Linux 5.2; what is below counts in `memory.events`.
            let text = file::read_if_there(&dir.join("memory.events.local"))?;
            Ok(text.and_then(|text| file::keyed(&text, "oom")).unwrap_or(0) > 0)
        }
        Version::V1 => Ok(peaked(dir, "memory")? || peaked(dir, "memory.memsw")?),
    }
}

/// Whether the most that was in use is the limit. The kernel's own count of failures (`failcnt`) stays 0 on newer kernels (seen on 6.18).
fn peaked(dir: &Path, counter: &str) -> Result<bool, CgroupError> {
    let read = |name: &str| {
        let text = file::read_if_there(&dir.join(format!("{counter}.{name}")))?;
        Ok::<_, CgroupError>(text.and_then(|text| text.trim().parse::<u64>().ok()))
    };
    let (most, limit) = (read("max_usage_in_bytes")?, read("limit_in_bytes")?);
    Ok(most.zip(limit).is_some_and(|(most, limit)| most.saturating_add(V1_SLACK) >= limit))
}
