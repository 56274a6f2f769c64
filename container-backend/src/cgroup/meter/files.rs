//! Which files have which numbers.

use std::path::Path;

use super::Depth;
use crate::cgroup::tree::{Controller, Hierarchies, Version};

/// What is read from a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum What {
    CpuUsage,
    CpuTimes,
    CpuThrottling,
    MemoryUsage,
    MemoryStat,
    MemoryLimit,
    MemoryPeak,
    MemoryKernel,
    MemoryLimitHits,
    MemoryOom,
    Swap,
    SwapLimit,
    Tasks,
    TasksLimit,
    IoBytes,
    IoOperations,
    CpuPressure,
    MemoryPressure,
    IoPressure,
}

/// A file.
#[derive(Debug)]
pub(super) struct Wanted {
    pub(super) what: What,
    pub(super) depth: Depth,
    /// Whose hierarchy it is in; without one it is in the v2 tree in any case.
    controller: Option<Controller>,
    /// Empty: none.
    v1: &'static str,
    v2: &'static str,
}

const fn of(what: What, depth: Depth, controller: Controller, v1: &'static str, v2: &'static str) -> Wanted {
    Wanted { what, depth, controller: Some(controller), v1, v2 }
}

const fn unified(what: What, v2: &'static str) -> Wanted {
    Wanted { what, depth: Depth::Stats, controller: None, v1: "", v2 }
}

/// Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/{cpuacct,memory,blkio-controller,pids}.rst.
pub(super) static FILES: [Wanted; 19] = [
    // Every v2 cgroup counts CPU time, with or without a controller.
    of(What::CpuUsage, Depth::Cpu, Controller::Cpuacct, "cpuacct.usage", "cpu.stat"),
    of(What::CpuTimes, Depth::All, Controller::Cpuacct, "cpuacct.stat", ""),
    of(What::CpuThrottling, Depth::All, Controller::Cpu, "cpu.stat", ""),
    of(What::MemoryUsage, Depth::Usage, Controller::Memory, "memory.usage_in_bytes", "memory.current"),
    of(What::MemoryStat, Depth::Stats, Controller::Memory, "memory.stat", "memory.stat"),
    of(What::MemoryLimit, Depth::Stats, Controller::Memory, "", "memory.max"),
    of(What::MemoryPeak, Depth::All, Controller::Memory, "memory.max_usage_in_bytes", "memory.peak"),
    of(What::MemoryKernel, Depth::All, Controller::Memory, "memory.kmem.usage_in_bytes", ""),
    of(What::MemoryLimitHits, Depth::All, Controller::Memory, "memory.failcnt", ""),
    of(What::MemoryOom, Depth::All, Controller::Memory, "memory.oom_control", "memory.events"),
    of(What::Swap, Depth::Stats, Controller::Memory, "", "memory.swap.current"),
    of(What::SwapLimit, Depth::Stats, Controller::Memory, "", "memory.swap.max"),
    of(What::Tasks, Depth::Stats, Controller::Pids, "pids.current", "pids.current"),
    of(What::TasksLimit, Depth::All, Controller::Pids, "pids.max", "pids.max"),
    of(What::IoBytes, Depth::All, Controller::Io, "blkio.throttle.io_service_bytes_recursive", "io.stat"),
    of(What::IoOperations, Depth::All, Controller::Io, "blkio.throttle.io_serviced_recursive", ""),
    unified(What::CpuPressure, "cpu.pressure"),
    unified(What::MemoryPressure, "memory.pressure"),
    unified(What::IoPressure, "io.pressure"),
];

impl Wanted {
    /// Where the file is on this node: version, name, and root of its hierarchy.
    pub(super) fn place<'h>(
        &self,
        hierarchies: &'h Hierarchies,
    ) -> Option<(Version, &'static str, &'h Path)> {
        let (version, root) = match self.controller {
            None => (Version::V2, hierarchies.unified.as_path()),
            Some(Controller::Cpuacct) => {
                hierarchies.home(Controller::Cpuacct).unwrap_or((Version::V2, &hierarchies.unified))
            }
            Some(controller) => hierarchies.home(controller)?,
        };
        let name = if version == Version::V1 { self.v1 } else { self.v2 };
        (!name.is_empty()).then_some((version, name, root))
    }
}
