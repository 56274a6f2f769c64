//! Writing limits into a leaf's files.
//!
//! cgroups-rs sets the values that it has a setter for: its controllers are plain paths and cost nothing to make. Where it has
//! none, writes a v1 meaning to a v2 file, or opens a file per line, the file is written here; each place says so.

mod cpu;
mod devices;
mod io;
mod memory;

use std::io as std_io;
use std::path::{Path, PathBuf};

use cgroups_rs::fs::MaxValue;
use cgroups_rs::fs::error::{Error as RsError, ErrorKind};
use cgroups_rs::fs::pid::PidController;

pub(super) use cpu::weight;

use super::error::{CgroupError, Warning};
use super::file;
use super::limits::{Limits, Max};
use super::make::below;
use super::node::exists;
use super::tree::{Controller, Hierarchies, Version};

/// Whether the device rules are written too: they are set once, when the leaf is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum When {
    Create,
    Update,
}

/// One leaf while its limits are set.
pub(super) struct Target<'a> {
    pub(super) hierarchies: &'a Hierarchies,
    /// Begins with a slash.
    pub(super) path: &'a str,
    pub(super) warnings: Vec<Warning>,
}

/// The leaf's folder in the hierarchy of one controller.
struct Place {
    version: Version,
    dir: PathBuf,
}

impl Target<'_> {
    pub(super) fn apply(mut self, limits: &Limits, when: When) -> Result<Vec<Warning>, CgroupError> {
        self.warnings.extend(limits.ignored());
        self.cpuset(&limits.cpu)?;
        self.cpu(&limits.cpu)?;
        self.memory(&limits.memory)?;
        self.pids(limits.pids)?;
        self.io(&limits.io)?;
        self.hugepages(limits)?;
        if when == When::Create {
            self.devices(&limits.devices)?;
        }
        self.unified(limits)?;
        Ok(self.warnings)
    }

    fn place(&self, controller: Controller) -> Option<Place> {
        let (version, root) = self.hierarchies.home(controller)?;
        Some(Place { version, dir: below(root, self.path) })
    }

    /// For a limit that the container must not run without.
    fn need(&self, controller: Controller, limit: &'static str) -> Result<Place, CgroupError> {
        self.place(controller).ok_or(CgroupError::NoController { controller, limit })
    }

    fn not_enforced(&mut self, limit: &'static str, file: &str) {
        self.warnings.push(Warning::NotEnforced { limit, file: file.to_owned() });
    }

    /// Writes a file that some kernels lack; without it the limit becomes a warning.
    fn write_if_there(
        &mut self,
        dir: &Path,
        name: &str,
        value: &str,
        limit: &'static str,
    ) -> Result<(), CgroupError> {
        let file = dir.join(name);
        match file::put(&file, value) {
            Err(e) if e.kind() == std_io::ErrorKind::NotFound => {
                self.not_enforced(limit, name);
                Ok(())
            }
            Err(source) => Err(CgroupError::Write { file, value: value.to_owned(), source }),
            Ok(()) => Ok(()),
        }
    }

    fn pids(&self, max: Option<Max>) -> Result<(), CgroupError> {
        let Some(max) = max else { return Ok(()) };
        let place = self.need(Controller::Pids, "a pids limit")?;
        let value = match max {
            Max::Unlimited => MaxValue::Max,
            Max::At(n) => MaxValue::Value(i64::try_from(n).unwrap_or(i64::MAX)),
        };
        let pids = PidController::new(place.dir.clone(), place.dir.clone(), place.version == Version::V2);
        pids.set_pid_max(value).map_err(|e| failed(&place.dir, e))
    }

    /// Written here: the setter of cgroups-rs scans /sys/kernel/mm/hugepages for each controller that is made.
    fn hugepages(&mut self, limits: &Limits) -> Result<(), CgroupError> {
        if limits.hugepages.is_empty() {
            return Ok(());
        }
        let Some(place) = self.place(Controller::Hugetlb) else {
            // The kubelet sends a limit for every size it knows, zero included, also where the kernel has no controller.
            if limits.hugepages.iter().any(|h| h.limit > 0) {
                self.not_enforced("a huge page limit", "hugetlb controller");
            }
            return Ok(());
        };
        let suffix = if place.version == Version::V1 { "limit_in_bytes" } else { "max" };
        for pages in &limits.hugepages {
            let value = pages.limit.to_string();
            // Pages that are reserved but not yet touched count separately (kernel 5.7 and later).
            let reserved = format!("hugetlb.{}.rsvd.{suffix}", pages.size);
            let plain = format!("hugetlb.{}.{suffix}", pages.size);
            self.write_if_there(&place.dir, &plain, &value, "a huge page limit")?;
            match file::put(&place.dir.join(&reserved), &value) {
                Err(e) if e.kind() != std_io::ErrorKind::NotFound => {
                    return Err(CgroupError::Write { file: place.dir.join(reserved), value, source: e });
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// v2 files by name, last, so that they override what was derived from v1 terms.
    fn unified(&self, limits: &Limits) -> Result<(), CgroupError> {
        let dir = below(&self.hierarchies.unified, self.path);
        for (key, value) in &limits.unified {
            let file = dir.join(key);
            if !exists(&file) {
                return Err(CgroupError::NoUnifiedKey { key: key.clone(), dir });
            }
            file::write(&file, value)?;
        }
        Ok(())
    }
}

/// Our error out of one of cgroups-rs, which keeps the file's bare name and the cause apart.
fn failed(dir: &Path, error: RsError) -> CgroupError {
    let source = os_error(&error);
    match error.kind() {
        ErrorKind::WriteFailed(file, value) => {
            CgroupError::Write { file: dir.join(file), value: value.clone(), source }
        }
        ErrorKind::ReadFailed(file) => CgroupError::Read { file: dir.join(file), source },
        _ => CgroupError::Open { path: dir.to_owned(), source },
    }
}

fn os_error(error: &RsError) -> std_io::Error {
    let cause = std::error::Error::source(error).and_then(|c| c.downcast_ref::<std_io::Error>());
    match cause.and_then(std_io::Error::raw_os_error) {
        Some(code) => std_io::Error::from_raw_os_error(code),
        None => std_io::Error::other(error.to_string()),
    }
}

#[cfg(test)]
mod tests;
