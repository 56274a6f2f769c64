//! Whose memory limit the kernel killed for.

use std::collections::BTreeMap;
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

/// How often limits had been reached before a container began: what its pod's cgroup has seen of earlier ones is not its doing. v1, which
/// only knows the most that ever was in use, does not tell.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OomsBefore {
    /// By path; none where there were none.
    counts: BTreeMap<String, u64>,
}

impl Leaf {
    /// How often the limits above this leaf, and its own, have been reached up to now.
    ///
    /// # Errors
    /// When this node has no memory controller or its files cannot be read.
    pub fn ooms_before(&self) -> Result<OomsBefore, CgroupError> {
        let mut before = OomsBefore::default();
        if let Some((Version::V2, root)) = self.hierarchies.home(Controller::Memory) {
            for path in parents(&self.path).chain([self.path.as_str()]) {
                let count = ooms(&below(root, path))?;
                if count > 0 {
                    before.counts.insert(path.to_owned(), count);
                }
            }
        }
        Ok(before)
    }

    /// Whose limit was reached since `before`, where [`Leaf::oom_kills`] tells of kills.
    ///
    /// # Errors
    /// When this node has no memory controller or its files cannot be read.
    pub fn oom_limit(&self, before: &OomsBefore) -> Result<OomLimit, CgroupError> {
        let home = self.hierarchies.home(Controller::Memory);
        let (version, root) = home.ok_or(CgroupError::NoController {
            controller: Controller::Memory,
            limit: "the cause of a kill",
        })?;
        let reached = |path: &str| {
            let dir = below(root, path);
            match version {
                Version::V2 => Ok(ooms(&dir)? > before.counts.get(path).copied().unwrap_or(0)),
                // Whether something was left to reclaim is not told either.
                Version::V1 => Ok::<_, CgroupError>(peaked(&dir, "memory")? || peaked(&dir, "memory.memsw")?),
            }
        };
        if reached(&self.path)? {
            return Ok(OomLimit::Own { cgroup: self.path.clone() });
        }
        for parent in parents(&self.path).rev() {
            if reached(parent)? {
                return Ok(OomLimit::Shared { cgroup: parent.to_owned() });
            }
        }
        Ok(OomLimit::Machine)
    }
}

/// How often the limit of this very cgroup was reached with nothing left to reclaim.
fn ooms(dir: &Path) -> Result<u64, CgroupError> {
    // Linux 5.2; what is below counts in `memory.events`.
    let text = file::read_if_there(&dir.join("memory.events.local"))?;
    Ok(text.and_then(|text| file::keyed(&text, "oom")).unwrap_or(0))
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

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::Arc;

    use super::*;
    use crate::cgroup::tree::Hierarchies;

    #[test]
    fn what_others_reached_before_is_not_counted() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("pod/c")).unwrap();
        let events = |path: &str, ooms: u64| {
            fs::write(dir.path().join(path).join("memory.events.local"), format!("max 9\noom {ooms}\n"))
                .unwrap();
        };
        let hierarchies =
            Hierarchies { unified: dir.path().to_owned(), v2: [Controller::Memory].into(), v1: Vec::new() };
        let leaf = Leaf::new(Arc::new(hierarchies), "/pod/c".to_owned());
        events("pod", 3);
        events("pod/c", 0);
        let before = leaf.ooms_before().unwrap();
        assert_eq!(leaf.oom_limit(&before).unwrap(), OomLimit::Machine);
        assert_eq!(
            leaf.oom_limit(&OomsBefore::default()).unwrap(),
            OomLimit::Shared { cgroup: "/pod".to_owned() }
        );
        events("pod", 4);
        assert_eq!(leaf.oom_limit(&before).unwrap(), OomLimit::Shared { cgroup: "/pod".to_owned() });
        events("pod/c", 1);
        assert_eq!(leaf.oom_limit(&before).unwrap(), OomLimit::Own { cgroup: "/pod/c".to_owned() });
    }
}
