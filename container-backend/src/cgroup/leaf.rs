//! A leaf: one cgroup per container, agent or VMM, in every hierarchy that matters.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::process::Pid;

use super::apply::{Target, When};
use super::error::{CgroupError, PathError, Warning};
use super::exec::ExecLeaf;
use super::file;
use super::limits::Limits;
use super::make::{self, Made, Undo, below};
use super::node::Node;
use super::path;
use super::tree::{Controller, Hierarchies, Mode};

/// The path of a leaf in every hierarchy. Only paths: any process may make one for a leaf that another made.
#[derive(Debug, Clone)]
pub struct Leaf {
    pub(super) hierarchies: Arc<Hierarchies>,
    /// Begins with a slash; the same in each hierarchy.
    pub(super) path: String,
}

impl Leaf {
    pub(super) fn new(hierarchies: Arc<Hierarchies>, path: String) -> Self {
        Self { hierarchies, path }
    }

    /// The path below the hierarchies' roots as this process sees them, for CNI's `cgroupPath` and for people.
    #[must_use]
    pub fn cgroup_path(&self) -> &str {
        &self.path
    }

    /// The cgroup right above it, for whoever owns that too.
    #[must_use]
    pub fn parent(&self) -> Self {
        let parent = self.path.rsplit_once('/').map_or("", |(parent, _)| parent);
        Self::new(Arc::clone(&self.hierarchies), parent.to_owned())
    }

    pub(super) fn node(&self) -> Node {
        Node { dir: below(&self.hierarchies.unified, &self.path) }
    }

    /// Makes the leaf (one in a slice is there already: systemd's), v2 first, with missing parents, and sets its limits. A leaf left empty by a crash is taken over. On
    /// failure what this call made is gone again.
    ///
    /// # Errors
    /// When the leaf has processes, a folder cannot be made or a limit cannot be set. What a container can do without comes
    /// back as warnings.
    pub fn create(&self, limits: &Limits) -> Result<Vec<Warning>, CgroupError> {
        let mut undo = Undo::default();
        let node = self.node();
        let made = make::leaf_dir(&self.hierarchies.unified, &self.path, &mut undo)?;
        match (self.unit(), made) {
            // With a process of whoever had it made.
            (Some(_), Made::Found) => {}
            (Some(_), Made::New) => return Err(CgroupError::NoScope { dir: node.dir }),
            (None, Made::Found) if node.populated()? => return Err(CgroupError::InUse { dir: node.dir }),
            (None, Made::Found | Made::New) => {}
        }
        let mut warnings = self.enable_controllers(limits)?;
        for v1 in &self.hierarchies.v1 {
            let made = make::leaf_dir(&v1.dir, &self.path, &mut undo)?;
            if made == Made::New && v1.controllers.contains(&Controller::Cpuset) {
                make::inherit_cpuset(&v1.dir, &self.path)?;
            }
        }
        warnings.extend(self.apply(limits, When::Create)?);
        undo.disarm();
        Ok(warnings)
    }

    pub(super) fn apply(&self, limits: &Limits, when: When) -> Result<Vec<Warning>, CgroupError> {
        Target { hierarchies: &self.hierarchies, path: &self.path, warnings: Vec::new() }.apply(limits, when)
    }

    /// On v2 everything that stats and later updates want is enabled at once; on a hybrid host, where v2 offers only leftovers,
    /// just what a limit asks for.
    pub(super) fn enable_controllers(&self, limits: &Limits) -> Result<Vec<Warning>, CgroupError> {
        const FOR_STATS: [Controller; 5] =
            [Controller::Cpu, Controller::Cpuset, Controller::Io, Controller::Memory, Controller::Pids];
        let needed = limits.needs();
        let mut wanted = needed.clone();
        if self.hierarchies.mode() == Mode::Unified {
            wanted.extend(FOR_STATS.into_iter().filter(|c| !needed.contains(c)));
        }
        wanted.retain(|c| self.hierarchies.v2.contains(c));
        let mut warnings = Vec::new();
        for (controller, dir, source) in make::enable_for(&self.hierarchies, &self.path, &wanted) {
            if needed.contains(&controller) {
                return Err(CgroupError::Enable { controller, dir, source });
            }
            warnings.push(Warning::NotEnabled { controller, dir, source });
        }
        Ok(warnings)
    }

    /// The leaf's folder in the v2 tree, for CLONE_INTO_CGROUP: a child is born in it without a migration.
    ///
    /// # Errors
    /// When the leaf does not exist.
    pub fn open_unified(&self) -> Result<OwnedFd, CgroupError> {
        self.node().open()
    }

    /// Moves the calling **thread** into the leaf of each v1 hierarchy; a no-op on v2. For a process of one thread, after it was
    /// cloned into the v2 leaf and before it leaves the mount namespace in which the hierarchies are mounted.
    ///
    /// A thread that writes 0 to `tasks` moves itself under the cgroup mutex alone. Moving a whole process through
    /// `cgroup.procs` write-locks cgroup_threadgroup_rwsem, which waits for an RCU grace period when nobody did so for a while:
    /// 7 ms against 0.2 ms for seven hierarchies (Linux 6.18).
    ///
    /// # Errors
    /// When the leaf does not exist or the kernel refuses the thread.
    pub fn join_v1_self(&self) -> Result<(), CgroupError> {
        for v1 in &self.hierarchies.v1 {
            file::write(&below(&v1.dir, &self.path).join("tasks"), "0")?;
        }
        Ok(())
    }

    /// Where the v2 tree is mounted that the leaf is in.
    pub(crate) fn unified_tree(&self) -> &Path {
        &self.hierarchies.unified
    }

    /// The leaf's folder in each v1 hierarchy, by the name that the hierarchy is mounted under; empty on v2.
    pub(crate) fn v1_folders(&self) -> Vec<(String, PathBuf)> {
        let name = |dir: &Path| Some(dir.file_name()?.to_str()?.to_owned());
        let folders =
            self.hierarchies.v1.iter().filter_map(|v1| Some((name(&v1.dir)?, below(&v1.dir, &self.path))));
        folders.collect()
    }

    /// Moves a whole process into the leaf of every hierarchy, v2 included. Slow (see [`Leaf::join_v1_self`]): for processes
    /// that somebody else started.
    ///
    /// # Errors
    /// When the process or the leaf does not exist or the kernel refuses.
    pub fn add_pid(&self, pid: Pid) -> Result<(), CgroupError> {
        let value = pid.as_raw_nonzero().to_string();
        file::write(&self.node().dir.join("cgroup.procs"), &value)?;
        for v1 in &self.hierarchies.v1 {
            file::write(&below(&v1.dir, &self.path).join("cgroup.procs"), &value)?;
        }
        Ok(())
    }

    /// Kills every process in the leaf and its sub-leaves, forks in flight included. A leaf that is gone is no error.
    ///
    /// # Errors
    /// When the kernel refuses; it has no `cgroup.kill` before 5.14.
    pub fn kill(&self) -> Result<(), CgroupError> {
        self.node().kill()
    }

    /// Whether a live process is in the leaf or a sub-leaf; zombies do not count. A leaf that is gone is empty.
    ///
    /// # Errors
    /// When `cgroup.events` cannot be read.
    pub fn populated(&self) -> Result<bool, CgroupError> {
        self.node().populated()
    }

    /// `cgroup.events`: read it with [`is_populated`](super::is_populated), then wait for POLLPRI.
    ///
    /// # Errors
    /// When the leaf does not exist.
    pub fn open_events(&self) -> Result<OwnedFd, CgroupError> {
        self.node().open_events()
    }

    /// A sub-leaf for one exec, in the v2 tree only: it carries kill and emptiness, the container's limits hold above it.
    ///
    /// # Errors
    /// When the id cannot be part of a cgroup's name.
    pub fn exec_leaf(&self, exec_id: &str) -> Result<ExecLeaf, PathError> {
        let dir = self.node().dir.join(path::exec_name(exec_id)?);
        Ok(ExecLeaf { node: Node { dir } })
    }
}
