//! What a leaf uses, read straight from its files.

use super::Controller;
use super::error::CgroupError;
use super::file;
use super::leaf::Leaf;
use super::make::below;
use super::tree::Version;

/// Numbers of one moment. What this kernel does not count is absent, never 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    /// CPU time since the leaf was made, in microseconds.
    pub cpu_usec: Option<u64>,
    /// Memory charged to the leaf, page cache included, in bytes.
    pub memory_bytes: Option<u64>,
    /// The same without inactive file pages, as the kubelet counts a working set.
    pub working_set_bytes: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
}

impl Leaf {
    /// Reads the leaf's numbers.
    ///
    /// # Errors
    /// When a file that exists cannot be read.
    pub fn usage(&self) -> Result<Usage, CgroupError> {
        let memory_bytes = self.number(Controller::Memory, "memory.usage_in_bytes", "memory.current")?;
        let inactive =
            self.keyed(Controller::Memory, "memory.stat", "total_inactive_file", "inactive_file")?;
        Ok(Usage {
            cpu_usec: self.cpu_usec()?,
            memory_bytes,
            working_set_bytes: memory_bytes.zip(inactive).map(|(all, idle)| all.saturating_sub(idle)),
            pids: self.number(Controller::Pids, "pids.current", "pids.current")?,
        })
    }

    fn cpu_usec(&self) -> Result<Option<u64>, CgroupError> {
        // Every v2 cgroup counts CPU time, with or without a controller; v1 hierarchies know it in nanoseconds.
        if let Some((Version::V1, root)) = self.hierarchies.home(Controller::Cpuacct) {
            let text = file::read_if_there(&below(root, &self.path).join("cpuacct.usage"))?;
            return Ok(text.and_then(|t| t.trim().parse::<u64>().ok()).map(|nanos| nanos / 1000));
        }
        let text = file::read_if_there(&self.node().dir.join("cpu.stat"))?;
        Ok(text.and_then(|t| file::keyed(&t, "usage_usec")))
    }

    fn number(&self, controller: Controller, v1: &str, v2: &str) -> Result<Option<u64>, CgroupError> {
        Ok(self.text(controller, v1, v2)?.and_then(|t| t.trim().parse().ok()))
    }

    fn keyed(
        &self,
        controller: Controller,
        name: &str,
        v1_key: &str,
        v2_key: &str,
    ) -> Result<Option<u64>, CgroupError> {
        let v1 = matches!(self.hierarchies.home(controller), Some((Version::V1, _)));
        let key = if v1 { v1_key } else { v2_key };
        Ok(self.text(controller, name, name)?.and_then(|t| file::keyed(&t, key)))
    }

    fn text(&self, controller: Controller, v1: &str, v2: &str) -> Result<Option<String>, CgroupError> {
        match self.hierarchies.home(controller) {
            Some((Version::V1, root)) => file::read_if_there(&below(root, &self.path).join(v1)),
            Some((Version::V2, root)) => file::read_if_there(&below(root, &self.path).join(v2)),
            None => Ok(None),
        }
    }
}
