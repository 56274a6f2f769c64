//! Making a leaf's folders and the parents that are missing, and taking them back when a later step fails.

use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, XattrFlags, mkdir, setxattr};
use rustix::io::Errno;

use super::Controller;
use super::error::CgroupError;
use super::file;
use super::tree::Hierarchies;

/// On parents that we made: a later destroy, perhaps by another process, may remove these and no others. An extended
/// attribute lives exactly as long as its cgroup, so there is no list of made parents to keep or to lose.
pub(super) const PARENT_MARK: &str = "trusted.hartpod.parent";

/// Parents can vanish between two mkdirs, when the last leaf beside ours is destroyed at that moment.
const ATTEMPTS: usize = 16;

/// Folders made so far; removed again, deepest first, unless disarmed.
#[derive(Debug, Default)]
pub(super) struct Undo {
    made: Vec<PathBuf>,
}

impl Undo {
    pub(super) fn disarm(mut self) {
        self.made.clear();
    }
}

impl Drop for Undo {
    fn drop(&mut self) {
        for dir in self.made.iter().rev() {
            // A parent that got a second child meanwhile stays, with its mark: that child's destroy takes it.
            let _ = rustix::fs::rmdir(dir);
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Made {
    New,
    /// Left by a crash, or by a create that was asked twice.
    Found,
}

/// Makes `<root><path>` and its missing parents, which are marked as ours.
pub(super) fn leaf_dir(root: &Path, path: &str, undo: &mut Undo) -> Result<Made, CgroupError> {
    let dir = below(root, path);
    let mut last = Errno::NOENT;
    for _ in 0..ATTEMPTS {
        match make(&dir) {
            Ok(Made::New) => {
                undo.made.push(dir);
                return Ok(Made::New);
            }
            Ok(Made::Found) => return Ok(Made::Found),
            Err(Errno::NOENT) => {}
            Err(e) => return Err(CgroupError::Make { dir, source: e.into() }),
        }
        for parent in parents(path) {
            let dir = below(root, parent);
            match make(&dir) {
                Ok(Made::New) => {
                    mark(&dir);
                    undo.made.push(dir);
                }
                Ok(Made::Found) => {}
                Err(e) => {
                    last = e;
                    if e != Errno::NOENT {
                        return Err(CgroupError::Make { dir, source: e.into() });
                    }
                    break;
                }
            }
        }
    }
    Err(CgroupError::Make { dir, source: last.into() })
}

fn make(dir: &Path) -> Result<Made, Errno> {
    match mkdir(dir, Mode::from_raw_mode(0o755)) {
        Ok(()) => Ok(Made::New),
        Err(Errno::EXIST) => Ok(Made::Found),
        Err(e) => Err(e),
    }
}

/// Without CAP_SYS_ADMIN in the first user namespace this fails, and such a parent is left for its owner to remove.
fn mark(dir: &Path) {
    let _ = setxattr(dir, PARENT_MARK, b"1", XattrFlags::empty());
}

/// Joins a hierarchy's root and a path that begins with a slash.
pub(super) fn below(root: &Path, path: &str) -> PathBuf {
    root.join(path.trim_start_matches('/'))
}

/// `/a`, `/a/b` for `/a/b/c`: topmost first.
pub(super) fn parents(path: &str) -> impl DoubleEndedIterator<Item = &str> {
    path.match_indices('/').filter(|(at, _)| *at > 0).filter_map(|(at, _)| path.get(..at))
}

/// A v1 cpuset is born without CPUs and memory nodes and takes no process before it has them: the nearest ancestor's are
/// written down the chain.
pub(super) fn inherit_cpuset(root: &Path, path: &str) -> Result<(), CgroupError> {
    let mut chain: Vec<PathBuf> = parents(path).map(|p| below(root, p)).collect();
    chain.push(below(root, path));
    for name in ["cpuset.cpus", "cpuset.mems"] {
        let mut empty = Vec::new();
        let mut value = String::new();
        for dir in chain.iter().map(PathBuf::as_path).rev().chain([root]) {
            let file = dir.join(name);
            value = file::read(&file)?;
            if !value.trim().is_empty() {
                break;
            }
            empty.push(file);
        }
        for file in empty.iter().rev() {
            file::write(file, value.trim())?;
        }
    }
    Ok(())
}

/// A controller that could not be enabled, and where.
pub(super) type Failed = (Controller, PathBuf, io::Error);

/// Enables v2 controllers for the children of the leaf's parent, which takes the same in each ancestor. Never in the leaf: a
/// cgroup that hands controllers down must hold no process itself.
pub(super) fn enable_for(hierarchies: &Hierarchies, path: &str, wanted: &[Controller]) -> Vec<Failed> {
    let root = &hierarchies.unified;
    let parent = parents(path).next_back().map_or_else(|| root.clone(), |p| below(root, p));
    let have = std::fs::read_to_string(parent.join("cgroup.subtree_control")).unwrap_or_default();
    let mut wanted: Vec<Controller> = wanted.iter().copied().filter(|c| !lists(&have, *c)).collect();
    if wanted.is_empty() {
        return Vec::new();
    }
    let mut failed = Vec::new();
    for dir in [root.clone()].into_iter().chain(parents(path).map(|p| below(root, p))) {
        let file = dir.join("cgroup.subtree_control");
        let have = std::fs::read_to_string(&file).unwrap_or_default();
        wanted.retain(|controller| {
            if lists(&have, *controller) {
                return true;
            }
            match file::put(&file, &format!("+{}", controller.v2_name())) {
                Ok(()) => true,
                Err(source) => {
                    failed.push((*controller, dir.clone(), source));
                    false
                }
            }
        });
    }
    failed
}

fn lists(have: &str, controller: Controller) -> bool {
    have.split_whitespace().any(|c| c == controller.v2_name())
}
