//! New limits for a leaf that is in use: all of them, or none as far as the kernel lets itself be turned back.

mod saved;

use std::io;
use std::path::PathBuf;

use rustix::process::Pid;
use serde::{Deserialize, Serialize};

use super::Controller;
use super::apply::When;
use super::error::{CgroupError, Warning};
use super::file;
use super::leaf::Leaf;
use super::limits::{Limits, Max};
use super::make::below;
use super::node::exists;
use super::tree::Version;
use saved::Saved;

/// Times that the kernel is asked to take memory back before a limit below the usage is refused.
const RECLAIMS: usize = 8;

/// Files whose EBUSY says that v1 could not take enough memory back.
const V1_MEMORY: [&str; 2] = ["memory.limit_in_bytes", "memory.memsw.limit_in_bytes"];

/// What changes; what is open stays as it is.
#[derive(Debug, Clone, Default)]
pub struct Update {
    /// Device rules in it are left alone: [`Leaf::create`] sets them once.
    pub limits: Limits,
    pub oom_score: Option<OomScore>,
}

/// A new oom_score_adj (proc_pid_oom_score_adj(5)) for a container's processes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OomScore {
    /// The container's init: those in the leaf that have the same score as it are changed, others have chosen theirs themselves.
    pub init: Pid,
    pub score: i32,
}

/// Why limits were not changed.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    #[error("the cgroup {} is gone: its last process has ended", dir.display())]
    Gone { dir: PathBuf },
    /// On v2 the limit itself would make the kernel kill processes instead.
    #[error(
        "a memory limit of {limit} bytes is below the {usage} bytes in use, of which the kernel can take back no more"
    )]
    BelowUsage { limit: u64, usage: u64 },
    #[error("change oom_score_adj to {score}")]
    OomScore { score: i32, source: io::Error },
    #[error(transparent)]
    Limit(#[from] CgroupError),
    /// Changes that came before the failure are in force.
    #[error("what was changed before a failure could not be set back in {}", Files(files))]
    Half { files: Vec<PathBuf>, source: CgroupError },
}

struct Files<'a>(&'a [PathBuf]);

impl std::fmt::Display for Files<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (at, file) in self.0.iter().enumerate() {
            let comma = if at == 0 { "" } else { ", " };
            write!(f, "{comma}{}", file.display())?;
        }
        Ok(())
    }
}

/// Whose fault a failed update is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum UpdateFault {
    /// No container of this node can have such a value.
    Value,
    /// This one cannot have it now.
    State,
    Node,
}

impl UpdateError {
    /// Whose fault it is.
    #[must_use]
    pub fn fault(&self) -> UpdateFault {
        match self {
            Self::Gone { .. } | Self::BelowUsage { .. } => UpdateFault::State,
            Self::OomScore { source, .. } if source.kind() == io::ErrorKind::PermissionDenied => {
                UpdateFault::State
            }
            Self::Limit(CgroupError::NoController { .. } | CgroupError::NoUnifiedKey { .. }) => {
                UpdateFault::State
            }
            Self::Limit(error) if error.refuses_value() => UpdateFault::Value,
            Self::OomScore { .. } | Self::Limit(_) | Self::Half { .. } => UpdateFault::Node,
        }
    }
}

impl Leaf {
    /// Changes limits and the OOM score. Blocks for as long as the kernel takes to take memory back, which can be seconds.
    ///
    /// A memory limit below the usage is refused unless the kernel can take back what is too much. It may grow again between that and the
    /// write: then the limit does what it does to any process that is beyond it.
    ///
    /// # Errors
    /// When nothing changed, or with [`UpdateError::Half`].
    pub fn update_blocking(&self, update: &Update) -> Result<Vec<Warning>, UpdateError> {
        let dir = self.node().dir;
        if !exists(&dir) {
            return Err(UpdateError::Gone { dir });
        }
        let before = update.oom_score.map(|score| self.set_oom_score(score)).transpose()?;
        let changed = self.change_limits(&update.limits);
        if let (Err(_), Some(before)) = (&changed, before) {
            // It only fails where it was lowered without the right to, which would have failed before.
            let _ = self.set_oom_score(before);
        }
        match changed {
            Err(UpdateError::Limit(_) | UpdateError::Half { .. }) if !exists(&dir) => {
                Err(UpdateError::Gone { dir })
            }
            other => other,
        }
    }

    fn change_limits(&self, limits: &Limits) -> Result<Vec<Warning>, UpdateError> {
        let saved = Saved::read(self, limits)?;
        if let Some(limit) = memory_limit(limits) {
            self.make_room(limit)?;
        }
        let applied = self.enable_controllers(limits).and_then(|mut warnings| {
            warnings.extend(self.apply(limits, When::Update)?);
            Ok(warnings)
        });
        let error = match applied {
            Ok(warnings) => return Ok(warnings),
            Err(error) => error,
        };
        let files = saved.restore(self);
        if files.is_empty() {
            Err(self.in_words(error, limits))
        } else {
            Err(UpdateError::Half { files, source: error })
        }
    }

    /// v1 says EBUSY where it cannot take back what is above a limit.
    fn in_words(&self, error: CgroupError, limits: &Limits) -> UpdateError {
        let CgroupError::Write { file, source, .. } = &error else { return error.into() };
        let is_memory = file.file_name().and_then(|n| n.to_str()).is_some_and(|n| V1_MEMORY.contains(&n));
        match (memory_limit(limits), self.memory_in_use().ok().flatten()) {
            (Some(limit), Some(usage)) if is_memory && source.raw_os_error() == Some(libc::EBUSY) => {
                UpdateError::BelowUsage { limit, usage }
            }
            _ => error.into(),
        }
    }

    /// Bytes, page cache included.
    pub(super) fn memory_in_use(&self) -> Result<Option<u64>, CgroupError> {
        let Some((version, root)) = self.hierarchies.home(Controller::Memory) else { return Ok(None) };
        let name = if version == Version::V1 { "memory.usage_in_bytes" } else { "memory.current" };
        let text = file::read_if_there(&below(root, &self.path).join(name))?;
        Ok(text.and_then(|text| text.trim().parse().ok()))
    }

    /// On v2, has the kernel take back what is above the limit to come: the write of `memory.max` kills where it cannot.
    pub(super) fn make_room(&self, limit: u64) -> Result<(), UpdateError> {
        let Some((Version::V2, root)) = self.hierarchies.home(Controller::Memory) else { return Ok(()) };
        let dir = below(root, &self.path);
        let reclaim = dir.join("memory.reclaim");
        for _ in 0..RECLAIMS {
            let Some(usage) = self.memory_in_use()?.filter(|usage| *usage > limit) else {
                return Ok(());
            };
            match file::put(&reclaim, &(usage - limit).to_string()) {
                Ok(()) => {}
                Err(error) if error.raw_os_error() == Some(libc::EAGAIN) => break,
                // Before Linux 5.19 the kernel does not do that for the asking.
                Err(error) if file::is_gone(&error) => break,
                Err(source) => {
                    return Err(CgroupError::Write {
                        file: reclaim,
                        value: (usage - limit).to_string(),
                        source,
                    }
                    .into());
                }
            }
        }
        match self.memory_in_use()? {
            Some(usage) if usage > limit => Err(UpdateError::BelowUsage { limit, usage }),
            _ => Ok(()),
        }
    }
}

/// The memory limit that comes into force, by either name.
fn memory_limit(limits: &Limits) -> Option<u64> {
    let by_name = limits.unified.get("memory.max").and_then(|text| text.trim().parse().ok());
    by_name.or(match limits.memory.limit {
        Some(Max::At(limit)) => Some(limit),
        Some(Max::Unlimited) | None => None,
    })
}

#[cfg(test)]
mod tests;
