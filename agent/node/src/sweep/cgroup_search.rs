//! Finding the cgroups of ids whose parent is not known.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use hartpod_container::cgroup::SCOPE_PREFIX;

/// Below a slice, a pod and a container there may be cgroups of the container's own making: those are not ours.
const MAX_DEPTH: usize = 8;
/// `f_type` of a cgroup2 file system (linux/magic.h).
const CGROUP2_SUPER_MAGIC: u64 = 0x6367_7270;

/// The parents, as paths below the hierarchy's root, and names of the cgroups that are named after one of the ids. Looks at the v2
/// tree, where every leaf has its twin.
pub(super) fn find_blocking(root: &Path, ids: &BTreeSet<String>) -> Vec<(String, String)> {
    let unified = if is_cgroup2(root) { root.to_owned() } else { root.join("unified") };
    let mut found = Vec::new();
    let mut queue = vec![(unified, String::new(), 0)];
    while let Some((dir, path, depth)) = queue.pop() {
        for (entry, name) in folders(&dir) {
            if ids.contains(&name) {
                found.push((if path.is_empty() { "/".to_owned() } else { path.clone() }, name));
            } else if let Some(id) = scope_of(&name).filter(|id| ids.contains(*id)) {
                // Slices are nested by their names, so the last one says where it is.
                let slice = path.rsplit('/').next().filter(|slice| !slice.is_empty()).unwrap_or("-.slice");
                found.push((slice.to_owned(), id.to_owned()));
            } else if depth < MAX_DEPTH {
                queue.push((entry, format!("{path}/{name}"), depth + 1));
            }
        }
    }
    found
}

/// The id that a scope of ours is named after.
fn scope_of(name: &str) -> Option<&str> {
    name.strip_prefix(SCOPE_PREFIX)?.strip_suffix(".scope")
}

fn is_cgroup2(dir: &Path) -> bool {
    // The type of f_type differs by architecture.
    rustix::fs::statfs(dir).is_ok_and(|s| u64::try_from(s.f_type).is_ok_and(|t| t == CGROUP2_SUPER_MAGIC))
}

fn folders(dir: &Path) -> Vec<(PathBuf, String)> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
        .filter_map(|e| Some((e.path(), e.file_name().into_string().ok()?)))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cgroup_is_found_by_its_name_wherever_it_is() {
        let root = tempfile::tempdir().unwrap();
        for path in [
            "unified/kubepods/pod1/aa",
            "unified/kubepods/pod1/bb",
            "unified/hartpod/cc/exec-aa",
            "unified/a.slice/a-b.slice/cri-hartpod-dd.scope",
        ] {
            std::fs::create_dir_all(root.path().join(path)).unwrap();
        }
        let ids = ["aa", "cc", "dd"].map(str::to_owned).into();
        let mut found = find_blocking(root.path(), &ids);
        found.sort();
        let expected = [("/hartpod", "cc"), ("/kubepods/pod1", "aa"), ("a-b.slice", "dd")];
        assert_eq!(found, expected.map(|(p, n)| (p.to_owned(), n.to_owned())));
    }
}
