//! Limits against folders of plain files: what would be written where.

use std::collections::BTreeMap;
use std::path::Path;

use oci_spec::runtime::LinuxResources;
use tempfile::TempDir;

use super::*;
use crate::cgroup::tree::V1;

struct Fake {
    dir: TempDir,
    hierarchies: Hierarchies,
}

/// A leaf `/p/c` with the named files, which hold what the kernel would have put there.
fn v2(files: &[(&str, &str)]) -> Fake {
    let dir = tempfile::tempdir().expect("tempdir");
    fill(dir.path(), files);
    let v2 = vec![
        Controller::Cpu,
        Controller::Cpuset,
        Controller::Memory,
        Controller::Pids,
        Controller::Io,
        Controller::Hugetlb,
    ];
    let hierarchies = Hierarchies { unified: dir.path().to_owned(), v2, v1: Vec::new() };
    Fake { dir, hierarchies }
}

/// The same with one v1 hierarchy that carries all.
fn v1(files: &[(&str, &str)]) -> Fake {
    let mut fake = v2(files);
    let controllers = std::mem::take(&mut fake.hierarchies.v2);
    fake.hierarchies.v1.push(V1 { dir: fake.dir.path().to_owned(), controllers });
    fake
}

fn fill(root: &Path, files: &[(&str, &str)]) {
    let leaf = root.join("p/c");
    std::fs::create_dir_all(&leaf).expect("leaf");
    for (name, text) in files {
        std::fs::write(leaf.join(name), text).expect(name);
    }
}

impl Fake {
    fn apply(&self, json: &str) -> Result<Vec<Warning>, CgroupError> {
        let resources: LinuxResources = serde_json::from_str(json).expect(json);
        let limits = Limits::from_oci(&resources).expect(json);
        // Updating leaves the devices out, which need a kernel.
        Target { hierarchies: &self.hierarchies, path: "/p/c", warnings: Vec::new() }
            .apply(&limits, When::Update)
    }

    fn files(&self) -> BTreeMap<String, String> {
        let entries = std::fs::read_dir(self.dir.path().join("p/c")).expect("leaf");
        entries
            .map(|e| {
                let e = e.expect("entry");
                let text = std::fs::read_to_string(e.path()).expect("file");
                (e.file_name().into_string().expect("name"), text)
            })
            .collect()
    }

    fn expect(&self, expected: &[(&str, &str)]) {
        let files = self.files();
        for (name, text) in expected {
            assert_eq!(files.get(*name).map(String::as_str), Some(*text), "{name}");
        }
    }
}

const EVERYTHING: &str = r#"{
    "cpu": {"shares": 1024, "quota": 50000, "period": 200000, "burst": 10, "idle": 1, "cpus": "0-1", "mems": "0"},
    "memory": {"limit": 1000, "swap": 1500, "reservation": 500},
    "pids": {"limit": 7},
    "hugepageLimits": [{"pageSize": "2MB", "limit": 9}],
    "blockIO": {"weight": 500, "throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 77}]}
}"#;

#[test]
fn everything_lands_in_v2_files() {
    let fake = v2(&[
        ("cpu.max", "max 100000"),
        ("cpu.idle", ""),
        ("cpu.max.burst", ""),
        ("memory.swap.max", ""),
        ("hugetlb.2MB.max", ""),
        ("hugetlb.2MB.rsvd.max", ""),
        ("io.weight", ""),
        ("io.max", ""),
        ("memory.high", ""),
    ]);
    let warnings = fake.apply(EVERYTHING).expect("applies");
    assert!(warnings.is_empty(), "{warnings:?}");
    fake.expect(&[
        ("cpu.weight", "100"),
        ("cpu.max", "50000 200000"),
        ("cpu.idle", "1"),
        ("cpu.max.burst", "10"),
        ("cpuset.cpus", "0-1"),
        ("cpuset.mems", "0"),
        ("memory.max", "1000"),
        ("memory.swap.max", "500"),
        ("memory.low", "500"),
        ("pids.max", "7"),
        ("hugetlb.2MB.max", "9"),
        ("hugetlb.2MB.rsvd.max", "9"),
        ("io.weight", "4950"),
        ("io.max", "8:0 rbps=77"),
    ]);
    fake.apply(
        r#"{"memory":{"limit":-1,"reservation":-1},"pids":{"limit":-1},"unified":{"memory.high":"5"}}"#,
    )
    .expect("lifts");
    fake.expect(&[
        ("memory.max", "max"),
        ("memory.swap.max", "max"),
        ("pids.max", "max"),
        ("memory.high", "5"),
    ]);
}

#[test]
fn everything_lands_in_v1_files() {
    let fake = v1(&[
        ("cpu.idle", ""),
        ("cpu.cfs_burst_us", ""),
        ("memory.limit_in_bytes", "9223372036854771712\n"),
        ("memory.memsw.limit_in_bytes", ""),
        ("hugetlb.2MB.limit_in_bytes", ""),
        ("blkio.bfq.weight", ""),
        ("blkio.throttle.read_bps_device", ""),
    ]);
    let warnings = fake.apply(EVERYTHING).expect("applies");
    assert!(warnings.is_empty(), "{warnings:?}");
    fake.expect(&[
        ("cpu.shares", "1024"),
        ("cpu.cfs_quota_us", "50000"),
        ("cpu.cfs_period_us", "200000"),
        ("cpu.cfs_burst_us", "10"),
        ("memory.limit_in_bytes", "1000"),
        ("memory.memsw.limit_in_bytes", "1500"),
        ("memory.soft_limit_in_bytes", "500"),
        ("hugetlb.2MB.limit_in_bytes", "9"),
        ("blkio.bfq.weight", "500"),
        ("blkio.throttle.read_bps_device", "8:0 77"),
    ]);
}

#[test]
fn missing_swap_accounting_and_io_schedulers_are_warnings() {
    let fake = v1(&[("memory.limit_in_bytes", "9223372036854771712\n")]);
    let warnings = fake
        .apply(r#"{"memory":{"limit":1000,"swap":1000},"blockIO":{"weight":100},"hugepageLimits":[{"pageSize":"1GB","limit":0}]}"#)
        .expect("applies");
    assert_eq!(warnings.len(), 3, "{warnings:?}");
    fake.expect(&[("memory.limit_in_bytes", "1000")]);
    assert!(!fake.files().contains_key("memory.memsw.limit_in_bytes"), "no stray file");
}

#[test]
fn a_hard_limit_without_its_controller_is_an_error_and_a_weight_is_not() {
    let mut fake = v2(&[]);
    fake.hierarchies.v2.clear();
    let warnings = fake.apply(r#"{"cpu":{"shares":2},"hugepageLimits":[{"pageSize":"2MB","limit":0}]}"#);
    assert_eq!(warnings.expect("runs without").len(), 1);
    for json in [
        r#"{"cpu":{"quota":5000}}"#,
        r#"{"cpu":{"cpus":"0"}}"#,
        r#"{"memory":{"limit":5000}}"#,
        r#"{"pids":{"limit":1}}"#,
        r#"{"blockIO":{"throttleWriteIOPSDevice":[{"major":8,"minor":0,"rate":1}]}}"#,
    ] {
        assert!(matches!(fake.apply(json), Err(CgroupError::NoController { .. })), "{json}");
    }
}

#[test]
fn a_throttle_of_zero_lifts_it() {
    let fake = v2(&[("io.max", "")]);
    fake.apply(r#"{"blockIO":{"throttleWriteIOPSDevice":[{"major":8,"minor":16,"rate":0}]}}"#)
        .expect("applies");
    fake.expect(&[("io.max", "8:16 wiops=max")]);
}

#[test]
fn an_unknown_unified_key_is_an_error() {
    let fake = v2(&[]);
    let error = fake.apply(r#"{"unified":{"memory.oom.group":"1"}}"#).expect_err("absent");
    assert!(matches!(error, CgroupError::NoUnifiedKey { .. }), "{error}");
    assert!(fake.files().is_empty());
}

#[test]
fn a_write_that_fails_names_file_and_value() {
    let fake = v2(&[]);
    std::fs::create_dir(fake.dir.path().join("p/c/pids.max")).expect("in the way");
    let error = fake.apply(r#"{"pids":{"limit":7}}"#).expect_err("a folder");
    let CgroupError::Write { file, source, .. } = &error else { panic!("{error:?}") };
    assert!(file.ends_with("p/c/pids.max"), "{}", file.display());
    assert_eq!(source.raw_os_error(), Some(libc::EISDIR));
}
