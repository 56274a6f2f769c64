//! What other runtimes on the node have in a network, by libcni's cache.
//!
//! A plugin that is told to collect garbage takes away whatever it was not told of, so those who share a network have to be known. Runtimes
//! that use libcni (containerd, CRI-O, Podman) keep a file per attachment; hartpod's own are elsewhere.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::conf_dir::read_file;

/// Folders below a cache's: `results`, and what runtimes put in front of it.
const MAX_DEPTH: u32 = 3;

/// What a cache entry says of itself (libcni, `cniCacheV1`); earlier ones do not.
#[derive(Debug, Deserialize)]
struct Entry {
    #[serde(rename = "networkName")]
    network: String,
}

/// A folder that cannot be looked through.
#[derive(Debug, thiserror::Error)]
#[error("list {}", path.display())]
pub struct UnknownCache {
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// Files of attachments to this network. A folder that does not exist has none.
pub(crate) fn attachments_blocking(folders: &[PathBuf], network: &str) -> Result<Vec<PathBuf>, UnknownCache> {
    let mut found = Vec::new();
    let mut queue: Vec<_> = folders.iter().map(|folder| (folder.clone(), 0)).collect();
    while let Some((folder, depth)) = queue.pop() {
        let fail = |source| UnknownCache { path: folder.clone(), source };
        let entries = match fs::read_dir(&folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            other => other.map_err(fail)?,
        };
        for entry in entries {
            let path = entry.map_err(fail)?.path();
            if path.is_dir() {
                // Deeper than anybody keeps entries; what is there cannot be told.
                if depth == MAX_DEPTH {
                    return Err(fail(io::Error::other("folders in folders in folders")));
                }
                queue.push((path, depth + 1));
            } else if is_of(&path, network) {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}

/// By what the entry says; by its name, `NETWORK-CONTAINER-INTERFACE`, where it does not.
fn is_of(path: &Path, network: &str) -> bool {
    let text = read_file(path).unwrap_or_default();
    match serde_json::from_slice::<Entry>(&text) {
        Ok(entry) => entry.network == network,
        Err(_) => path
            .file_name()
            .and_then(|name| name.to_str()?.strip_prefix(network))
            .is_some_and(|rest| rest.starts_with('-')),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_known_by_what_they_say_and_else_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let results = dir.path().join("cache/results");
        fs::create_dir_all(&results).unwrap();
        let folders = [dir.path().join("cache"), dir.path().join("missing")];
        let look = |network| attachments_blocking(&folders, network).unwrap();
        assert_eq!(look("pods"), Vec::<PathBuf>::new());
        let new = r#"{"kind": "cniCacheV1", "containerId": "ab", "networkName": "pods-b", "ifName": "eth0"}"#;
        fs::write(results.join("pods-b-ab-eth0"), new).unwrap();
        assert_eq!(look("pods"), Vec::<PathBuf>::new(), "its own word counts more than its name");
        assert_eq!(look("pods-b"), [results.join("pods-b-ab-eth0")]);
        fs::write(results.join("pods-cd-eth0"), r#"{"cniVersion": "0.3.1"}"#).unwrap();
        fs::write(results.join("podsx-ef-eth0"), "").unwrap();
        assert_eq!(look("pods"), [results.join("pods-cd-eth0")]);
    }

    #[test]
    fn what_cannot_be_looked_through_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir_all(dir.path().join("a/b/c/d")).unwrap();
        assert!(attachments_blocking(&[dir.path().to_owned()], "pods").is_err());
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let error = attachments_blocking(std::slice::from_ref(&file), "pods").unwrap_err();
        assert_eq!(error.to_string(), format!("list {}", file.display()));
    }
}
