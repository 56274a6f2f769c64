//! Reading the folder of records once, at the daemon's start.

use std::ffi::OsStr;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use hartpod_proto::{ContainerId, SandboxId};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::{ContainerRecord, POD_FILE, PodRecord, VERSION};

/// Extension of the folder beside the records that holds those which were not understood.
const ASIDE: &str = "bad";
/// Files in it; the oldest go.
pub(super) const ASIDE_MAX: usize = 32;

/// A pod whose record was understood.
#[derive(Debug)]
pub(crate) struct LoadedPod {
    pub(crate) record: PodRecord,
    pub(crate) containers: Vec<ContainerRecord>,
    /// Containers whose record was not understood; what they hold is to be given back.
    pub(crate) lost_containers: Vec<ContainerId>,
}

/// What the folder says.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    pub(crate) pods: Vec<LoadedPod>,
    /// Pods with a folder but no record that says what they are; what they hold is to be given back.
    pub(crate) lost_pods: Vec<SandboxId>,
}

pub(super) fn load(dir: &Path) -> io::Result<Loaded> {
    let mut loaded = Loaded::default();
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let Some(id) = entry.file_name().to_str().and_then(|n| n.parse::<SandboxId>().ok()) else {
            tracing::warn!(path = %entry.path().display(), "not a pod's folder, left alone");
            continue;
        };
        match read::<PodRecord>(dir, &entry.path().join(POD_FILE)) {
            Some(record) if record.id == id => loaded.pods.push(load_pod(dir, &entry.path(), record)?),
            Some(record) => {
                tracing::warn!(sandbox = %id, holds = %record.id, "a pod's folder holds another pod's record");
                loaded.lost_pods.push(id);
            }
            None => loaded.lost_pods.push(id),
        }
    }
    Ok(loaded)
}

fn load_pod(records: &Path, dir: &Path, record: PodRecord) -> io::Result<LoadedPod> {
    let mut pod = LoadedPod { record, containers: Vec::new(), lost_containers: Vec::new() };
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let id =
            name.to_str().and_then(|n| n.strip_suffix(".json")).and_then(|n| n.parse::<ContainerId>().ok());
        let Some(id) = id else { continue };
        match read::<ContainerRecord>(records, &entry.path()) {
            Some(record) if record.id == id => pod.containers.push(record),
            _ => pod.lost_containers.push(id),
        }
    }
    pod.containers.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
    Ok(pod)
}

/// The record, or nothing and the file set aside.
fn read<T: DeserializeOwned>(records: &Path, path: &Path) -> Option<T> {
    #[derive(Deserialize)]
    struct Version {
        version: u32,
    }
    let bytes = match std::fs::read(path) {
        // A pod's folder is made before its record, and removed after it.
        Err(e) if e.kind() == io::ErrorKind::NotFound => return None,
        other => other.map_err(|e| e.to_string()),
    };
    let outcome = bytes.and_then(|bytes| {
        let Version { version } = serde_json::from_slice(&bytes).map_err(|e| e.to_string())?;
        if version != VERSION {
            return Err(format!("its version is {version}, known is {VERSION}"));
        }
        serde_json::from_slice(&bytes).map_err(|e| e.to_string())
    });
    match outcome {
        Ok(record) => Some(record),
        Err(error) => {
            set_aside(records, path, &error);
            None
        }
    }
}

/// Out of the pod's folder, which goes with what is left of the pod. The name begins with the short ids, as people know them.
fn set_aside(records: &Path, path: &Path, error: &str) {
    let folder = records.with_extension(ASIDE);
    let short = |name: Option<&OsStr>| {
        name.unwrap_or_default().to_string_lossy().chars().take(12).collect::<String>()
    };
    let pod = short(path.parent().and_then(Path::file_name));
    let aside = folder.join(format!("{pod}-{}.json", short(path.file_stem())));
    let moved = std::fs::create_dir_all(&folder).and_then(|()| std::fs::rename(path, &aside));
    forget_oldest(&folder);
    match moved {
        Err(e) => tracing::warn!(path = %path.display(), error, rename = %e, "unreadable record stays"),
        Ok(()) => {
            tracing::warn!(path = %path.display(), error, to = %aside.display(), "unreadable record set aside")
        }
    }
}

/// By the time of their last change, which setting them aside was.
fn forget_oldest(folder: &Path) {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut files: Vec<_> = entries
        .filter_map(|entry| {
            let data = entry.metadata().ok()?;
            Some(((data.ctime(), data.ctime_nsec()), entry.path()))
        })
        .collect();
    files.sort_unstable();
    for (_, path) in files.iter().take(files.len().saturating_sub(ASIDE_MAX)) {
        if let Err(error) = std::fs::remove_file(path) {
            tracing::warn!(path = %path.display(), %error, "an old unreadable record stays");
        }
    }
}
