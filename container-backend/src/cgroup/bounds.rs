//! Whether a pod's cgroup bounds what its leaves use.

use super::Controller;
use super::error::CgroupError;
use super::file;
use super::leaf::Leaf;
use super::make::below;
use super::tree::Version;

/// v1 tells no limit as the largest number of whole pages.
const V1_UNLIMITED: u64 = 1 << 62;

/// What is known of one resource's limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Bound {
    /// The cgroup is not made yet, or has no such controller.
    #[default]
    Unknown,
    Unlimited,
    Limited,
}

/// The limits of a leaf's parent, which is the cgroup that the kubelet makes for a pod.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Bounds {
    pub memory: Bound,
    pub cpu: Bound,
}

impl Leaf {
    /// Looks at the limits of the parent.
    ///
    /// # Errors
    /// When a file that exists cannot be read.
    pub fn parent_bounds(&self) -> Result<Bounds, CgroupError> {
        let memory = self.of_parent(Controller::Memory, "memory.limit_in_bytes", "memory.max")?;
        let cpu = self.of_parent(Controller::Cpu, "cpu.cfs_quota_us", "cpu.max")?;
        let over = |text: &str| text.parse::<u64>().is_ok_and(|limit| limit < V1_UNLIMITED);
        Ok(Bounds {
            memory: bound(memory.as_deref(), over),
            cpu: bound(cpu.as_deref(), |text| !text.starts_with("max") && text != "-1"),
        })
    }

    fn of_parent(&self, controller: Controller, v1: &str, v2: &str) -> Result<Option<String>, CgroupError> {
        let Some((version, root)) = self.hierarchies.home(controller) else { return Ok(None) };
        let parent = self.path.rsplit_once('/').map_or("", |(parent, _)| parent);
        let name = if version == Version::V1 { v1 } else { v2 };
        file::read_if_there(&below(root, parent).join(name))
    }
}

fn bound(text: Option<&str>, is_limited: impl Fn(&str) -> bool) -> Bound {
    match text.map(str::trim) {
        None => Bound::Unknown,
        Some(text) if is_limited(text) => Bound::Limited,
        Some(_) => Bound::Unlimited,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::tree::{Tree, V1};
    use super::*;

    #[test]
    fn both_versions_tell_a_limit_from_none() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["unified/pod", "memory/pod", "cpu/pod"] {
            fs::create_dir_all(dir.path().join(name)).unwrap();
        }
        let v1 = |name: &str, controller| V1 { dir: dir.path().join(name), controllers: vec![controller] };
        let unified = dir.path().join("unified");
        let v2 = Tree::new(unified.clone(), vec![Controller::Memory, Controller::Cpu], Vec::new());
        let both = vec![v1("memory", Controller::Memory), v1("cpu", Controller::Cpu)];
        let v1 = Tree::new(unified, Vec::new(), both);
        let bounds = |tree: &Tree, parent: &str| tree.leaf(parent, "id").unwrap().parent_bounds().unwrap();
        assert_eq!(bounds(&v2, "/pod"), Bounds::default());
        let (limited, unlimited) = (Bound::Limited, Bound::Unlimited);
        for (memory, cpu, v1_memory, v1_cpu, expected) in [
            ("max", "max 100000", "9223372036854771712", "-1", (unlimited, unlimited)),
            ("1048576", "50000 100000", "1048576", "50000", (limited, limited)),
            ("1048576", "max 100000", "1048576", "-1", (limited, unlimited)),
        ] {
            let write =
                |file: &str, text: &str| fs::write(dir.path().join(file), format!("{text}\n")).unwrap();
            write("unified/pod/memory.max", memory);
            write("unified/pod/cpu.max", cpu);
            write("memory/pod/memory.limit_in_bytes", v1_memory);
            write("cpu/pod/cpu.cfs_quota_us", v1_cpu);
            for tree in [&v2, &v1] {
                let bounds = bounds(tree, "/pod");
                assert_eq!((bounds.memory, bounds.cpu), expected);
            }
        }
    }
}
