//! The pod's cgroup as the kubelet makes it, and a look at what is in the trees.

use std::collections::BTreeSet;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

const ROOT: &str = "/sys/fs/cgroup";

/// Roots of every hierarchy: the v2 tree, or on a hybrid host each v1 tree and the unified one.
pub fn hierarchies() -> Result<Vec<PathBuf>> {
    let root = Path::new(ROOT);
    if root.join("cgroup.controllers").exists() {
        return Ok(vec![root.to_owned()]);
    }
    let mut found = Vec::new();
    for entry in fs::read_dir(root).with_context(|| format!("list {ROOT}"))? {
        let path = entry?.path();
        // `cpu` and `cpuacct` are often links to one hierarchy.
        if !path.is_symlink() && path.join("cgroup.procs").exists() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// Every cgroup whose path below its hierarchy's root satisfies `wanted`, as `hierarchy:/path`.
pub fn find(wanted: impl Fn(&str) -> bool) -> Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for root in hierarchies()? {
        let name = root.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let mut queue = vec![root.clone()];
        while let Some(dir) = queue.pop() {
            let below = dir.strip_prefix(&root).unwrap_or(&dir).to_string_lossy().into_owned();
            if wanted(&below) {
                found.insert(format!("{name}:/{below}"));
            }
            // Removed by somebody else meanwhile: not there is what we report.
            let Ok(entries) = fs::read_dir(&dir) else { continue };
            queue.extend(entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()));
        }
    }
    Ok(found)
}

/// A pod's cgroup in every hierarchy, made and removed by the test as the kubelet does it.
#[derive(Debug, Clone)]
pub struct PodCgroup {
    path: String,
}

impl PodCgroup {
    /// `path` starts with `/`, its parents are made too.
    pub fn create(path: &str) -> Result<Self> {
        for root in hierarchies()? {
            let mut dir = root.clone();
            for part in path.split('/').filter(|part| !part.is_empty()) {
                enable_controllers(&dir);
                let parent = dir.clone();
                dir.push(part);
                match fs::create_dir(&dir) {
                    Err(error) if error.kind() != ErrorKind::AlreadyExists => {
                        return Err(error).with_context(|| format!("create cgroup {}", dir.display()));
                    }
                    _ => inherit_cpuset(&parent, &dir),
                }
            }
            enable_controllers(&dir);
        }
        Ok(Self { path: path.to_owned() })
    }

    /// Makes a leaf below this one in every hierarchy and puts a process into it, as a runtime does.
    pub fn put(&self, leaf: &str, pid: u32) -> Result<()> {
        for root in hierarchies()? {
            let parent = root.join(self.path.trim_start_matches('/'));
            let dir = parent.join(leaf);
            fs::create_dir(&dir).with_context(|| format!("create cgroup {}", dir.display()))?;
            inherit_cpuset(&parent, &dir);
            let procs = dir.join("cgroup.procs");
            fs::write(&procs, pid.to_string()).with_context(|| format!("write {}", procs.display()))?;
        }
        Ok(())
    }

    /// Limits memory, and swap with it, as the kubelet does.
    pub fn limit_memory(&self, bytes: u64) -> Result<()> {
        let files = [
            ("memory.limit_in_bytes", bytes),
            ("memory.memsw.limit_in_bytes", bytes),
            ("memory.max", bytes),
            ("memory.swap.max", 0),
        ];
        let mut limited = false;
        for root in hierarchies()? {
            for (file, value) in files {
                let file = root.join(self.path.trim_start_matches('/')).join(file);
                if file.exists() {
                    fs::write(&file, value.to_string())
                        .with_context(|| format!("write {}", file.display()))?;
                    limited = true;
                }
            }
        }
        ensure!(limited, "no hierarchy limits memory");
        Ok(())
    }

    /// Every cgroup right below `root` that was made by [`Self::create`].
    pub fn all_below(root: &str) -> Result<Vec<Self>> {
        let root = root.trim_start_matches('/');
        let is_child = |path: &str| path.rsplit_once('/').is_some_and(|(parent, _)| parent == root);
        let paths = find(is_child)?.into_iter().filter_map(|found| Some(found.split_once(':')?.1.to_owned()));
        let paths: BTreeSet<String> = paths.collect();
        Ok(paths.into_iter().map(|path| Self { path }).collect())
    }

    /// The path as `cgroup_parent` names it.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The folder of this cgroup that has `file`, such as `memory.limit_in_bytes`, for a leaf below it.
    pub fn leaf_with(&self, leaf: &str, file: &str) -> Result<Option<PathBuf>> {
        let below = format!("{}/{leaf}", self.path.trim_start_matches('/'));
        let all = hierarchies()?.into_iter().map(|root| root.join(&below));
        Ok(all.into_iter().find(|dir| dir.join(file).exists()))
    }

    /// Processes that were put into the pod's cgroup itself, which belongs to the kubelet.
    pub fn processes(&self) -> Result<Vec<String>> {
        let mut found = Vec::new();
        for root in hierarchies()? {
            let procs = root.join(self.path.trim_start_matches('/')).join("cgroup.procs");
            let text = fs::read_to_string(&procs).with_context(|| format!("read {}", procs.display()))?;
            found.extend(text.lines().map(|pid| format!("{}: {pid}", root.display())));
        }
        Ok(found)
    }

    /// Removes the pod's cgroup and nothing below it: fails if a leaf is left.
    pub fn remove(&self) -> Result<()> {
        for root in hierarchies()? {
            let dir = root.join(self.path.trim_start_matches('/'));
            match fs::remove_dir(&dir) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(error).with_context(|| format!("remove cgroup {}", dir.display()));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// Removes `path` and all below it, in every hierarchy, as far as it is empty of processes.
pub fn remove_tree(path: &str) -> Result<()> {
    for root in hierarchies()? {
        remove_below(&root.join(path.trim_start_matches('/')));
    }
    Ok(())
}

fn remove_below(dir: &Path) {
    if let Ok(entries) = fs::read_dir(dir) {
        entries
            .flatten()
            .map(|entry| entry.path())
            .filter(|path| path.is_dir())
            .for_each(|path| remove_below(&path));
        // Busy or gone already: a later run tries again.
        let _ = fs::remove_dir(dir);
    }
}

/// v2: children have only the controllers that their parent hands down.
fn enable_controllers(dir: &Path) {
    let Ok(all) = fs::read_to_string(dir.join("cgroup.controllers")) else { return };
    for controller in all.split_whitespace() {
        // One that cannot be handed down (busy with a real-time task, say) does not hinder the others.
        let _ = fs::write(dir.join("cgroup.subtree_control"), format!("+{controller}"));
    }
}

/// v1: a cpuset without cpus and mems takes no process.
fn inherit_cpuset(parent: &Path, dir: &Path) {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let Ok(own) = fs::read_to_string(dir.join(file)) else { continue };
        if own.trim().is_empty() && !dir.join("cgroup.controllers").exists() {
            if let Ok(value) = fs::read_to_string(parent.join(file)) {
                let _ = fs::write(dir.join(file), value.trim());
            }
        }
    }
}
