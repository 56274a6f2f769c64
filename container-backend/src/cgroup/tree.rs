//! The cgroup hierarchies of this node, as far as containers are limited and counted by them.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::error::{DetectError, PathError};
use super::leaf::Leaf;
use super::mount_table::{self, CgroupMount, Kind};
use super::path;

/// The controllers that hartpod sets limits with or reads numbers from. Hierarchies that carry none of them (freezer, net_cls,
/// `name=systemd`, ..) are left alone: a process stays where it was born there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Controller {
    Cpu,
    /// v1 only: on v2 every cgroup counts its CPU time.
    Cpuacct,
    Cpuset,
    Memory,
    Pids,
    /// v1 only: on v2 an eBPF program decides.
    Devices,
    /// `io` on v2, `blkio` on v1.
    Io,
    Hugetlb,
}

impl Controller {
    const ALL: [Self; 8] = [
        Self::Cpu,
        Self::Cpuacct,
        Self::Cpuset,
        Self::Memory,
        Self::Pids,
        Self::Devices,
        Self::Io,
        Self::Hugetlb,
    ];

    pub(super) fn v1_name(self) -> &'static str {
        if self == Self::Io { "blkio" } else { self.v2_name() }
    }

    pub(super) fn v2_name(self) -> &'static str {
        match self {
            Self::Cpu => "cpu",
            Self::Cpuacct => "cpuacct",
            Self::Cpuset => "cpuset",
            Self::Memory => "memory",
            Self::Pids => "pids",
            Self::Devices => "devices",
            Self::Io => "io",
            Self::Hugetlb => "hugetlb",
        }
    }
}

impl fmt::Display for Controller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.v2_name())
    }
}

/// How this node mounts its cgroups.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// v2 alone.
    Unified,
    /// v1 hierarchies carry limits; the v2 tree beside them carries kill, emptiness and freeze.
    Hybrid,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unified => "v2",
            Self::Hybrid => "v1 hybrid",
        })
    }
}

/// One v1 hierarchy; co-mounted controllers (`cpu,cpuacct`) share one.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct V1 {
    pub(super) dir: PathBuf,
    pub(super) controllers: Vec<Controller>,
}

#[derive(Debug)]
pub(super) struct Hierarchies {
    /// Mount point of the v2 tree.
    pub(super) unified: PathBuf,
    /// What the v2 tree's root offers.
    pub(super) v2: Vec<Controller>,
    pub(super) v1: Vec<V1>,
}

/// Where a controller's files of one cgroup are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    V1,
    V2,
}

impl Hierarchies {
    /// The hierarchy that a controller is bound to. The kernel binds each to one only.
    pub(super) fn home(&self, controller: Controller) -> Option<(Version, &Path)> {
        if let Some(v1) = self.v1.iter().find(|h| h.controllers.contains(&controller)) {
            return Some((Version::V1, &v1.dir));
        }
        self.v2.contains(&controller).then_some((Version::V2, &self.unified))
    }

    pub(super) fn mode(&self) -> Mode {
        if self.v1.is_empty() { Mode::Unified } else { Mode::Hybrid }
    }
}

/// The cgroup tree of a node: v2, or v1 hybrid with a v2 twin. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Tree {
    hierarchies: Arc<Hierarchies>,
}

impl Tree {
    /// Looks at what is mounted at `root` (usually `/sys/fs/cgroup`) and directly below it, in this process's mount namespace.
    ///
    /// # Errors
    /// When there is no v2 tree (v1 alone has no cgroup.kill and no events), or a hierarchy is mounted read-only.
    pub fn detect(root: &Path) -> Result<Self, DetectError> {
        const TABLE: &str = "/proc/self/mountinfo";
        let root = std::fs::canonicalize(root)
            .map_err(|source| DetectError::Root { root: root.to_owned(), source })?;
        let table =
            std::fs::read(TABLE).map_err(|source| DetectError::MountTable { path: TABLE.into(), source })?;
        let mounts = mount_table::parse(&table);
        let (unified, v1) = choose(&mounts, &root)?;
        let file = unified.join("cgroup.controllers");
        let offered =
            std::fs::read_to_string(&file).map_err(|source| DetectError::Controllers { file, source })?;
        Ok(Self::new(unified, v2_controllers(&offered), v1))
    }

    pub(super) fn new(unified: PathBuf, v2: Vec<Controller>, v1: Vec<V1>) -> Self {
        Self { hierarchies: Arc::new(Hierarchies { unified, v2, v1 }) }
    }

    /// The leaf `<parent>/<id>`. An empty parent means `/hartpod`. A slice's name as the kubelet's systemd driver passes it
    /// means that slice's nested folder, and the leaf is named like a scope. Nothing is made yet.
    ///
    /// # Errors
    /// When a part is `.`, `..`, empty, too long or cannot be a cgroup's name.
    pub fn leaf(&self, parent: &str, id: &str) -> Result<Leaf, PathError> {
        Ok(Leaf::new(Arc::clone(&self.hierarchies), path::leaf_path(parent, id)?))
    }

    /// How cgroups are mounted here.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.hierarchies.mode()
    }

    /// Whether limits and numbers of this controller can be had here.
    #[must_use]
    pub fn has(&self, controller: Controller) -> bool {
        self.hierarchies.home(controller).is_some()
    }
}

/// The v2 mount and the v1 hierarchies that matter, out of a mount table.
fn choose(mounts: &[CgroupMount], root: &Path) -> Result<(PathBuf, Vec<V1>), DetectError> {
    let mut unified: Option<&CgroupMount> = None;
    let mut v1 = Vec::new();
    for mount in mounts {
        let at_root = mount.point == root;
        if !at_root && mount.point.parent() != Some(root) {
            continue;
        }
        match &mount.kind {
            Kind::V2 if at_root || unified.is_none() => unified = Some(mount),
            Kind::V2 => {}
            Kind::V1(options) => {
                let controllers: Vec<_> = Controller::ALL
                    .into_iter()
                    .filter(|c| options.iter().any(|o| o == c.v1_name()))
                    .collect();
                // The same hierarchy may be mounted twice; either mount will do.
                if controllers.is_empty() || v1.iter().any(|h: &V1| h.controllers == controllers) {
                    continue;
                }
                if mount.read_only {
                    return Err(DetectError::ReadOnly { dir: mount.point.clone() });
                }
                v1.push(V1 { dir: mount.point.clone(), controllers });
            }
        }
    }
    let unified = unified.ok_or_else(|| DetectError::NoUnified { root: root.to_owned() })?;
    if unified.read_only {
        return Err(DetectError::ReadOnly { dir: unified.point.clone() });
    }
    Ok((unified.point.clone(), v1))
}

fn v2_controllers(offered: &str) -> Vec<Controller> {
    Controller::ALL.into_iter().filter(|c| offered.split_whitespace().any(|o| o == c.v2_name())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &[u8] = b"31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
        32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
        33 31 0:30 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
        34 31 0:31 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n\
        35 31 0:32 / /sys/fs/cgroup/blkio rw - cgroup cgroup rw,blkio\n\
        36 31 0:32 / /mnt/blkio rw - cgroup cgroup rw,blkio\n\
        41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";

    #[test]
    fn hybrid_mounts_are_found_once_each() {
        let (unified, v1) = choose(&mount_table::parse(HYBRID), Path::new("/sys/fs/cgroup")).expect("hybrid");
        assert_eq!(unified, Path::new("/sys/fs/cgroup/unified"));
        assert_eq!(v1.len(), 3);
        assert_eq!(v1[0].controllers, [Controller::Cpu, Controller::Cpuacct]);
        let tree = Tree::new(unified, v2_controllers("hugetlb rdma misc\n"), v1);
        assert_eq!(tree.mode(), Mode::Hybrid);
        assert!(tree.has(Controller::Hugetlb) && tree.has(Controller::Io) && !tree.has(Controller::Pids));
    }

    #[test]
    fn v2_at_the_root_is_unified() {
        let table = b"1 0 0:1 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n";
        let (unified, v1) = choose(&mount_table::parse(table), Path::new("/sys/fs/cgroup")).expect("v2");
        assert_eq!((unified.as_path(), v1.len()), (Path::new("/sys/fs/cgroup"), 0));
        // Another mount below, as of a container's, is not the node's.
        let both =
            [b"2 1 0:1 /x /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n", table.as_slice()].concat();
        let (unified, _) = choose(&mount_table::parse(&both), Path::new("/sys/fs/cgroup")).expect("v2");
        assert_eq!(unified, Path::new("/sys/fs/cgroup"));
    }

    #[test]
    fn no_v2_and_read_only_trees_are_clear_errors() {
        let v1_only = b"33 31 0:30 / /cg/memory rw - cgroup cgroup rw,memory\n";
        assert!(matches!(
            choose(&mount_table::parse(v1_only), Path::new("/cg")),
            Err(DetectError::NoUnified { .. })
        ));
        let read_only = b"1 0 0:1 / /cg ro - cgroup2 cgroup2 rw\n";
        assert!(matches!(
            choose(&mount_table::parse(read_only), Path::new("/cg")),
            Err(DetectError::ReadOnly { .. })
        ));
    }
}
