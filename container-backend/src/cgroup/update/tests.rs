//! Against folders of plain files; `cgroup/tests.rs` has what needs a kernel.

use std::fs;
use std::sync::Arc;

use tempfile::TempDir;

use super::*;
use crate::cgroup::tree::Hierarchies;

const CONTROLLERS: [Controller; 4] =
    [Controller::Cpu, Controller::Cpuset, Controller::Memory, Controller::Pids];

/// A v2 leaf `/p/c` with these files.
fn leaf(files: &[(&str, &str)]) -> (TempDir, Leaf) {
    let dir = tempfile::tempdir().unwrap();
    fs::create_dir_all(dir.path().join("p/c")).unwrap();
    fs::write(dir.path().join("p/cgroup.subtree_control"), "cpu cpuset io memory pids").unwrap();
    for (name, text) in files {
        fs::write(dir.path().join("p/c").join(name), text).unwrap();
    }
    let hierarchies = Hierarchies { unified: dir.path().to_owned(), v2: CONTROLLERS.into(), v1: Vec::new() };
    (dir, Leaf::new(Arc::new(hierarchies), "/p/c".to_owned()))
}

fn update(leaf: &Leaf, json: &str) -> Result<Vec<Warning>, UpdateError> {
    let limits = Limits::from_oci(&serde_json::from_str(json).unwrap()).unwrap();
    leaf.update_blocking(&Update { limits, oom_score: None })
}

const FILES: [(&str, &str); 6] = [
    ("cpu.max", "max 100000\n"),
    ("cpu.weight", "100\n"),
    ("cpuset.cpus", "\n"),
    ("memory.max", "500\n"),
    ("memory.swap.max", "0\n"),
    ("memory.current", "100\n"),
];

#[test]
fn only_what_is_named_changes() {
    let (dir, leaf) = leaf(&FILES);
    update(&leaf, r#"{"cpu":{"period":50000},"memory":{"limit":700}}"#).unwrap();
    let text = |name: &str| fs::read_to_string(dir.path().join("p/c").join(name)).unwrap();
    assert_eq!((&*text("cpu.max"), &*text("cpu.weight")), ("max 50000", "100\n"));
    assert_eq!((&*text("memory.max"), &*text("memory.swap.max")), ("700", "0\n"));
}

#[test]
fn a_failure_in_the_end_sets_everything_back() {
    let (dir, leaf) = leaf(&FILES);
    // The last of them all.
    fs::create_dir(dir.path().join("p/c/pids.max")).unwrap();
    fs::write(dir.path().join("p/c/memory.high"), "max\n").unwrap();
    let error = update(
        &leaf,
        r#"{"cpu":{"quota":50000,"shares":2,"cpus":"0"},"memory":{"limit":700,"swap":800},"unified":{"memory.high":"1","memory.x":"1"}}"#,
    );
    assert!(matches!(error, Err(UpdateError::Limit(CgroupError::NoUnifiedKey { .. }))), "{error:?}");
    let text = |name: &str| fs::read_to_string(dir.path().join("p/c").join(name)).unwrap();
    for (name, before) in FILES.into_iter().chain([("memory.high", "max")]) {
        // A plain file is not cut off by a shorter text, as a kernel's is.
        assert!(text(name).trim().starts_with(before.trim()), "{name}: {}", text(name));
    }
}

#[test]
fn a_limit_below_the_usage_writes_nothing() {
    let (dir, leaf) = leaf(&FILES);
    for json in [r#"{"memory":{"limit":99},"cpu":{"shares":2}}"#, r#"{"unified":{"memory.max":"99"}}"#] {
        let error = update(&leaf, json).unwrap_err();
        assert!(matches!(error, UpdateError::BelowUsage { limit: 99, usage: 100 }), "{error:?}");
        assert_eq!(fs::read_to_string(dir.path().join("p/c/cpu.weight")).unwrap(), "100\n");
    }
    // What the kernel takes back makes room: here it is asked for the difference and gives nothing.
    fs::write(dir.path().join("p/c/memory.reclaim"), "").unwrap();
    update(&leaf, r#"{"memory":{"limit":99}}"#).unwrap_err();
    assert_eq!(fs::read_to_string(dir.path().join("p/c/memory.reclaim")).unwrap(), "1");
}

#[test]
fn what_cannot_be_set_back_is_named() {
    let half = UpdateError::Half {
        files: vec!["/c/cpu.max".into(), "/c/memory.max".into()],
        source: CgroupError::EventFd(io::ErrorKind::Other.into()),
    };
    assert_eq!(
        half.to_string(),
        "what was changed before a failure could not be set back in /c/cpu.max, /c/memory.max"
    );
    assert_eq!(half.fault(), UpdateFault::Node);
}
