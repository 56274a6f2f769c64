//! What a leaf's files say before they are changed.

use std::path::PathBuf;

use crate::cgroup::Controller;
use crate::cgroup::error::CgroupError;
use crate::cgroup::file;
use crate::cgroup::leaf::Leaf;
use crate::cgroup::limits::Limits;
use crate::cgroup::make::below;
use crate::cgroup::tree::Version;

/// Some values can be set back only after others: CPU quota and period, memory and memory with swap (v1).
const PASSES: usize = 3;

/// Files that an update may write, v1's names and v2's.
fn files(controller: Controller) -> [&'static [&'static str]; 2] {
    match controller {
        Controller::Cpu => [
            &["cpu.shares", "cpu.cfs_period_us", "cpu.cfs_quota_us", "cpu.cfs_burst_us", "cpu.idle"],
            &["cpu.weight", "cpu.max", "cpu.max.burst", "cpu.idle"],
        ],
        Controller::Cpuset => [&["cpuset.cpus", "cpuset.mems"]; 2],
        Controller::Memory => [
            &[
                "memory.limit_in_bytes",
                "memory.memsw.limit_in_bytes",
                "memory.soft_limit_in_bytes",
                "memory.swappiness",
            ],
            &["memory.swap.max", "memory.max", "memory.low"],
        ],
        Controller::Pids => [&["pids.max"]; 2],
        // Huge pages are listed by size. IO is a table, not a value: a throttle that was set stays.
        Controller::Hugetlb | Controller::Io | Controller::Cpuacct | Controller::Devices => [&[], &[]],
    }
}

/// Files and their texts.
#[derive(Debug)]
pub(super) struct Saved {
    files: Vec<(PathBuf, String)>,
}

impl Saved {
    /// Reads what `limits` may change; a file that is not there has nothing to keep.
    pub(super) fn read(leaf: &Leaf, limits: &Limits) -> Result<Self, CgroupError> {
        let mut paths = Vec::new();
        for controller in limits.needs() {
            let Some((version, root)) = leaf.hierarchies.home(controller) else { continue };
            let dir = below(root, &leaf.path);
            let [v1, v2] = files(controller);
            paths.extend(if version == Version::V1 { v1 } else { v2 }.iter().map(|name| dir.join(name)));
            if controller == Controller::Hugetlb {
                let suffix = if version == Version::V1 { "limit_in_bytes" } else { "max" };
                for pages in &limits.hugepages {
                    paths.push(dir.join(format!("hugetlb.{}.{suffix}", pages.size)));
                    paths.push(dir.join(format!("hugetlb.{}.rsvd.{suffix}", pages.size)));
                }
            }
        }
        let unified = leaf.node().dir;
        paths.extend(limits.unified.keys().map(|key| unified.join(key)));
        let mut files = Vec::new();
        for path in paths {
            if let Some(text) = file::read_if_there(&path)? {
                files.push((path, text));
            }
        }
        Ok(Self { files })
    }

    /// Sets back what has changed, the last first. Answers what could not be.
    pub(super) fn restore(self, leaf: &Leaf) -> Vec<PathBuf> {
        let mut left = self.files;
        left.reverse();
        for _ in 0..PASSES {
            left.retain(|(path, text)| !is_back(leaf, path, text));
        }
        left.into_iter().map(|(path, _)| path).collect()
    }
}

/// A file that is gone needs no setting back.
fn is_back(leaf: &Leaf, path: &std::path::Path, text: &str) -> bool {
    let now = file::read_if_there(path);
    if now.is_ok_and(|now| now.is_none_or(|now| now == text)) {
        return true;
    }
    let value = text.trim();
    if path.ends_with("memory.max") {
        if let Ok(limit) = value.parse() {
            if leaf.make_room(limit).is_err() {
                return false;
            }
        }
    }
    // Nothing at all would not reach the kernel.
    file::put(path, if value.is_empty() { "\n" } else { value }).is_ok()
}
