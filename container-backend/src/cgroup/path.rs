//! From the kubelet's `cgroup_parent` and an id to the path of a leaf, relative to the root of every hierarchy.

use super::error::PathError;

/// Where leaves go when the caller names no parent.
pub const DEFAULT_PARENT: &str = "/hartpod";

/// Longest parent, bytes. A kubelet's are some 100; below /sys/fs/cgroup and with what is added, all paths stay below PATH_MAX.
const PARENT_MAX: usize = 1024;
/// Deepest parent. A kubelet in a container of a kubelet has ten levels; each costs a folder per hierarchy and pod.
const DEPTH_MAX: usize = 32;

/// A cgroup's name is a file name.
const NAME_MAX: usize = 255;

/// How systemd would call the scope of a container (`<prefix>-<name>.scope`), in the words of CRI runtimes.
pub const SCOPE_PREFIX: &str = "cri-hartpod-";

/// Whether a parent is the name of a slice, as the kubelet's systemd driver passes it, and no path.
#[must_use]
pub fn is_slice(parent: &str) -> bool {
    slice_name(parent).is_some()
}

/// Whether leaves can be below `parent`.
///
/// # Errors
/// [`PathError::Parent`] with the reason.
pub fn check_parent(parent: &str) -> Result<(), PathError> {
    leaf_path(parent, "x").map(drop)
}

/// The path of a leaf: absolute, below the hierarchy's root as this process sees it.
pub(super) fn leaf_path(parent: &str, id: &str) -> Result<String, PathError> {
    check_name(id).map_err(|reason| PathError::Id { id: id.to_owned(), reason })?;
    if let Some(slice) = slice_name(parent) {
        let slices =
            expand_slice(slice).map_err(|reason| PathError::Parent { parent: parent.to_owned(), reason })?;
        let scope = format!("{SCOPE_PREFIX}{id}.scope");
        check_name(&scope).map_err(|reason| PathError::Id { id: id.to_owned(), reason })?;
        return Ok(format!("{slices}/{scope}"));
    }
    let parent = if parent.is_empty() { DEFAULT_PARENT } else { parent };
    let refuse = |reason| PathError::Parent { parent: parent.to_owned(), reason };
    if parent.len() > PARENT_MAX {
        return Err(refuse("is longer than 1024 bytes"));
    }
    if parent.split('/').filter(|p| !p.is_empty()).count() > DEPTH_MAX {
        return Err(refuse("is deeper than 32 levels"));
    }
    let mut path = String::with_capacity(parent.len() + id.len() + 2);
    for part in parent.split('/').filter(|p| !p.is_empty()) {
        check_name(part).map_err(refuse)?;
        path.push('/');
        path.push_str(part);
    }
    path.push('/');
    path.push_str(id);
    Ok(path)
}

/// The name of an exec's sub-leaf.
pub(super) fn exec_name(id: &str) -> Result<String, PathError> {
    let name = format!("exec-{id}");
    match check_name(id).and_then(|()| check_name(&name)) {
        Ok(()) => Ok(name),
        Err(reason) => Err(PathError::Id { id: id.to_owned(), reason }),
    }
}

/// One component: what mkdir in a cgroup tree would refuse, and what would lead out of the parent.
fn check_name(name: &str) -> Result<(), &'static str> {
    match name {
        "" => return Err("is empty"),
        "." | ".." => return Err("has a `.` or `..` in it"),
        _ => {}
    }
    if name.len() > NAME_MAX {
        return Err("is longer than 255 bytes");
    }
    if name.contains('/') {
        return Err("has a slash in it");
    }
    if name.chars().any(char::is_control) {
        return Err("has a control character in it");
    }
    if name.starts_with("cgroup.") {
        return Err("begins with `cgroup.`, which is the kernel's own");
    }
    Ok(())
}

/// With its systemd driver the kubelet passes the name of a slice instead of a path. A path that ends in a slice's folder is
/// a path.
fn slice_name(parent: &str) -> Option<&str> {
    let name = parent.strip_prefix('/').unwrap_or(parent);
    (name.ends_with(".slice") && !name.contains('/')).then_some(name)
}

/// `a-b.slice` lives in `/a.slice/a-b.slice` (systemd.slice(5)).
fn expand_slice(name: &str) -> Result<String, &'static str> {
    check_name(name)?;
    let stem = name.strip_suffix(".slice").unwrap_or(name);
    if stem == "-" {
        // `-.slice` is systemd's name of the root.
        return Ok(String::new());
    }
    let mut path = String::new();
    for (end, _) in stem.match_indices('-').chain([(stem.len(), "")]) {
        let head = stem.get(..end).unwrap_or_default();
        if head.is_empty() || head.ends_with('-') {
            return Err("is not a slice name: a part between dashes is empty");
        }
        path.push('/');
        path.push_str(head);
        path.push_str(".slice");
    }
    Ok(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parents_are_cleaned_and_the_default_is_ours() {
        let ok = |parent: &str| leaf_path(parent, "c1").expect(parent);
        assert_eq!(ok(""), "/hartpod/c1");
        assert_eq!(ok("/kubepods/burstable/podx"), "/kubepods/burstable/podx/c1");
        assert_eq!(ok("kubepods//podx/"), "/kubepods/podx/c1");
        assert_eq!(ok("/"), "/c1", "a kubelet without cgroups per QoS class");
        assert_eq!(ok("/kubepods.slice/kubepods-x.slice"), "/kubepods.slice/kubepods-x.slice/c1");
    }

    #[test]
    fn what_leads_out_is_refused() {
        for parent in ["/..", "/a/../b", "..", "/a/.", "/a\nb", "/a/cgroup.procs", "/a\0b"] {
            assert!(matches!(leaf_path(parent, "c1"), Err(PathError::Parent { .. })), "{parent:?}");
        }
        for id in ["", ".", "..", "a/b", "/etc", "a\nb", "cgroup.kill"] {
            assert!(matches!(leaf_path("/x", id), Err(PathError::Id { .. })), "{id:?}");
            assert!(exec_name(id).is_err(), "{id:?}");
        }
        assert!(leaf_path("/x", &"a".repeat(256)).is_err());
        assert!(exec_name(&"a".repeat(251)).is_err());
    }

    #[test]
    fn parents_have_an_end() {
        assert!(check_parent(&"/abc".repeat(DEPTH_MAX)).is_ok());
        assert!(matches!(check_parent(&"/a".repeat(DEPTH_MAX + 1)), Err(PathError::Parent { .. })));
        assert!(check_parent(&format!("/{}", "/".repeat(PARENT_MAX))).is_err());
        let long = format!("/{}", "a".repeat(NAME_MAX)).repeat(5);
        assert!(
            matches!(check_parent(&long), Err(PathError::Parent { reason, .. }) if reason.contains("1024"))
        );
    }

    #[test]
    fn slices_expand_as_systemd_nests_them() {
        assert_eq!(
            leaf_path("kubepods-burstable-podab_c.slice", "c1").expect("slice"),
            "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podab_c.slice/cri-hartpod-c1.scope"
        );
        assert_eq!(leaf_path("system.slice", "c1").expect("slice"), "/system.slice/cri-hartpod-c1.scope");
        assert_eq!(leaf_path("-.slice", "c1").expect("root slice"), "/cri-hartpod-c1.scope");
        for bad in ["a--b.slice", "-a.slice", "a-.slice", ".slice", "--.slice"] {
            assert!(leaf_path(bad, "c1").is_err(), "{bad}");
        }
    }
}
