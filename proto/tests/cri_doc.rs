//! Holds `docs/cri.md` to the protocol and to the tests: each field that makes a pod or a container has a row, and each row names a test that exists.

#![allow(clippy::unwrap_used)]
use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// What a field of these messages does is a promise. The others name, select and answer.
const MESSAGES: [&str; 23] = [
    "PodSandboxConfig",
    "LinuxPodSandboxConfig",
    "LinuxSandboxSecurityContext",
    "NamespaceOption",
    "UserNamespace",
    "PortMapping",
    "DNSConfig",
    "ContainerConfig",
    "ImageSpec",
    "KeyValue",
    "Mount",
    "Device",
    "CDIDevice",
    "LinuxContainerConfig",
    "LinuxContainerSecurityContext",
    "Capability",
    "SecurityProfile",
    "Int64Value",
    "IDMapping",
    "LinuxContainerResources",
    "HugepageLimit",
    "UpdateContainerResourcesRequest",
    "UpdatePodSandboxResourcesRequest",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Cells of each row that begins with a field.
fn rows() -> Vec<Vec<String>> {
    let text = fs::read_to_string(root().join("docs/cri.md")).unwrap();
    let cells = |line: &str| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect();
    text.lines().filter(|line| line.starts_with("| `")).map(cells).collect()
}

#[test]
fn every_field_has_one_row() {
    let table = fs::read_to_string(root().join("proto/cri/v1/cri-v1.tsv")).unwrap();
    let fields: BTreeSet<String> = table
        .lines()
        .filter_map(|line| match line.split('\t').collect::<Vec<_>>()[..] {
            ["field", message, name, ..] if MESSAGES.contains(&message) => {
                Some(format!("`{message}.{name}`"))
            }
            _ => None,
        })
        .collect();
    let mut told = BTreeSet::new();
    for row in rows() {
        assert_eq!(row.len(), 4, "a row of another form: {row:?}");
        assert!(told.insert(row[0].clone()), "two rows: {}", row[0]);
    }
    let missing: Vec<_> = fields.difference(&told).collect();
    let unknown: Vec<_> = told.difference(&fields).collect();
    assert!(
        missing.is_empty() && unknown.is_empty(),
        "without a row: {missing:?}; no such field: {unknown:?}"
    );
}

#[test]
fn every_row_names_a_test_that_exists() {
    let has = |file: &Path, name: &str| {
        fs::read_to_string(file).is_ok_and(|text| text.contains(&format!("fn {name}(")))
    };
    for row in rows() {
        let test = &row[3];
        let found = match test.split_once(": ") {
            // What is not there cannot be tested.
            _ if test.is_empty() => row[1].contains("**not yet**"),
            Some(("hartpod", name)) => {
                sources(&root().join("agent/node/src")).iter().any(|file| has(file, name))
            }
            Some(("hartpod-container", name)) => {
                sources(&root().join("container-backend/src")).iter().any(|file| has(file, name))
            }
            Some(_) => false,
            None => test
                .split_once("::")
                .is_some_and(|(module, name)| has(&root().join(format!("tests/e2e/{module}.rs")), name)),
        };
        assert!(found, "{} names `{test}`, which is no test", row[0]);
    }
}

fn sources(dir: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
    found
}
