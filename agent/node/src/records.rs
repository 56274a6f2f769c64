//! What must outlive the daemon: one small file per pod and per container.
//!
//! Layout below the folder: `<pod id>/pod.json`, `<pod id>/<container id>.json`, and `<pod id>/<container id>.bundle` of a container with hooks. A file is replaced by rename, so it is whole
//! after a crash of the daemon at any instruction. It is not synced on the way (an eMMC takes tens of milliseconds for that):
//! a background task flushes the file system every few seconds while records change, so a power cut may lose the last
//! seconds, after which nothing of those pods runs anyway.
//!
//! A file that cannot be understood is moved to the folder `<records>.bad` and warned about, never fatal.

mod bundle;
mod load;

use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use hartpod_proto::cri::v1 as cri;
use hartpod_proto::{ContainerId, SandboxId};
use serde::{Deserialize, Serialize};

pub(crate) use load::{Loaded, LoadedPod};

use crate::container::ImageVolume;
use crate::epoch::Epoch;
use crate::guest::Ceiling;
use crate::sys;

/// Version of both record formats; a file of another one is not understood.
pub(crate) const VERSION: u32 = 1;

/// How long changed records may stay in memory only (a power cut loses them).
const SYNC_INTERVAL: Duration = Duration::from_secs(5);

const POD_FILE: &str = "pod.json";

/// How far a pod has come, as far as its record needs to know.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum PodStage {
    /// RunPodSandbox has not finished: undone by the next daemon.
    Starting,
    /// It was ready.
    Up,
    /// StopPodSandbox has finished: nothing runs and nothing is held.
    Stopped,
}

/// The size of a pod as the kubelet told it last.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct PodResources {
    pub(crate) overhead: Option<cri::LinuxContainerResources>,
    pub(crate) resources: Option<cri::LinuxContainerResources>,
}

/// The pod agent's process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct AgentRecord {
    pub(crate) pid: i32,
    /// Clock ticks since boot: tells the process from a later one with the same pid.
    pub(crate) start_time: u64,
}

/// One pod.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct PodRecord {
    pub(crate) version: u32,
    pub(crate) id: SandboxId,
    pub(crate) stage: PodStage,
    /// Somebody was told the id.
    pub(crate) delivered: bool,
    pub(crate) handler: String,
    /// Nanoseconds since the Unix epoch.
    pub(crate) created_at: i64,
    pub(crate) epoch: Epoch,
    pub(crate) agent: Option<AgentRecord>,
    /// None: the host's network.
    pub(crate) netns: Option<PathBuf>,
    pub(crate) ips: Vec<IpAddr>,
    pub(crate) config: cri::PodSandboxConfig,
    /// The user of its VMM.
    #[serde(default)]
    pub(crate) vmm_uid: Option<u32>,
    /// What its guest booted with.
    #[serde(default)]
    pub(crate) guest: Option<Ceiling>,
    /// What it was told of its size since its start.
    #[serde(default)]
    pub(crate) resources: Option<PodResources>,
    #[serde(default)]
    pub(crate) selinux_level: Option<String>,
}

/// How a container ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ExitRecord {
    /// Nanoseconds since the Unix epoch.
    pub(crate) finished_at: i64,
    pub(crate) exit_code: i32,
    /// As in CRI: Completed, Error, OOMKilled, StartError, ..
    pub(crate) reason: String,
    pub(crate) message: String,
}

/// What a container's process runs as.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct UserRecord {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
}

/// One container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct ContainerRecord {
    pub(crate) version: u32,
    pub(crate) id: ContainerId,
    pub(crate) delivered: bool,
    /// Nanoseconds since the Unix epoch, here and below; 0 when it has not happened.
    pub(crate) created_at: i64,
    pub(crate) started_at: i64,
    pub(crate) exit: Option<ExitRecord>,
    pub(crate) user: Option<UserRecord>,
    /// Id of the image (digest of its configuration).
    pub(crate) image_id: String,
    /// What the image is called in status: a repository digest, or its id.
    pub(crate) image_ref: String,
    /// Signal that asks it to stop.
    pub(crate) stop_signal: i32,
    pub(crate) config: cri::ContainerConfig,
    /// Where its disk is, in a guest.
    #[serde(default)]
    pub(crate) slot: Option<u32>,
    /// Images that it mounts.
    #[serde(default)]
    pub(crate) image_volumes: Vec<ImageVolume>,
    /// What it has since its resources were changed; none: what `config` says.
    #[serde(default)]
    pub(crate) resources: Option<cri::LinuxContainerResources>,
}

/// A record could not be written or deleted.
#[derive(Debug, thiserror::Error)]
#[error("{what} {}", path.display())]
pub(crate) struct RecordError {
    what: &'static str,
    path: PathBuf,
    #[source]
    source: io::Error,
}

/// The folder of records.
#[derive(Debug, Clone)]
pub(crate) struct Records {
    dir: Arc<Path>,
    /// Something was written since the last flush.
    dirty: Arc<AtomicBool>,
}

impl Records {
    /// Opens the folder, which exists, and reads what is in it.
    pub(crate) fn open_blocking(dir: &Path) -> Result<(Self, Loaded), RecordError> {
        let records = Self { dir: dir.into(), dirty: Arc::default() };
        let loaded = load::load(dir).map_err(|source| RecordError {
            what: "read records in",
            path: dir.to_owned(),
            source,
        })?;
        Ok((records, loaded))
    }

    /// The folder of one pod, which its record shares with the files that its containers see.
    pub(crate) fn pod_dir(&self, pod: &SandboxId) -> PathBuf {
        self.dir.join(pod.as_str())
    }

    /// Where the runtime spec of a container is kept for inspect.
    pub(crate) fn spec_file(&self, pod: &SandboxId, container: &ContainerId) -> PathBuf {
        self.pod_dir(pod).join(format!("{container}.spec.json"))
    }

    fn container_file(&self, pod: &SandboxId, container: &ContainerId) -> PathBuf {
        self.pod_dir(pod).join(format!("{container}.json"))
    }

    /// Writes a pod's record, making its folder if need be.
    pub(crate) fn write_pod_blocking(&self, record: &PodRecord) -> Result<(), RecordError> {
        let dir = self.pod_dir(&record.id);
        match make_dir(&dir) {
            Err(source) if source.kind() != io::ErrorKind::AlreadyExists => {
                Err(RecordError { what: "make", path: dir, source })
            }
            _ => self.replace(&dir.join(POD_FILE), record),
        }
    }

    /// Writes a container's record into its pod's folder, which exists.
    pub(crate) fn write_container_blocking(
        &self,
        pod: &SandboxId,
        record: &ContainerRecord,
    ) -> Result<(), RecordError> {
        self.replace(&self.container_file(pod, &record.id), record)
    }

    /// Writes the runtime spec that inspect shows.
    pub(crate) fn write_spec_blocking(
        &self,
        pod: &SandboxId,
        container: &ContainerId,
        json: &[u8],
    ) -> Result<(), RecordError> {
        self.replace_bytes(&self.spec_file(pod, container), json)
    }

    /// Deletes a container's files; missing ones are fine.
    pub(crate) fn remove_container_blocking(
        &self,
        pod: &SandboxId,
        container: &ContainerId,
    ) -> Result<(), RecordError> {
        self.dirty.store(true, Ordering::Relaxed);
        self.remove_bundle_blocking(pod, container)?;
        remove_file(&self.spec_file(pod, container))?;
        remove_file(&self.container_file(pod, container))
    }

    /// Deletes a pod's folder, the record last, so that an interrupted removal can be repeated.
    pub(crate) fn remove_pod_blocking(&self, pod: &SandboxId) -> Result<(), RecordError> {
        self.dirty.store(true, Ordering::Relaxed);
        let dir = self.pod_dir(pod);
        let entries = match std::fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(source) => return Err(RecordError { what: "read", path: dir, source }),
        };
        for entry in entries.flatten().filter(|e| e.file_name() != POD_FILE) {
            match bundle::is_bundle(&entry.file_name()) {
                true => bundle::remove(entry.path())?,
                false => remove_file(&entry.path())?,
            }
        }
        remove_file(&dir.join(POD_FILE))?;
        match std::fs::remove_dir(&dir) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => {
                Err(RecordError { what: "remove", path: dir, source: e })
            }
            _ => Ok(()),
        }
    }

    /// Flushes records to the disk now and then, until the daemon ends.
    pub(crate) async fn keep_flushed(self) {
        loop {
            tokio::time::sleep(SYNC_INTERVAL).await;
            if !self.dirty.swap(false, Ordering::Relaxed) {
                continue;
            }
            let dir = self.dir.clone();
            let flushed = tokio::task::spawn_blocking(move || {
                // What pods came and went with is not needed until the next ones do.
                sys::give_back_free_memory();
                let folder = std::fs::File::open(&dir)?;
                rustix::fs::syncfs(&folder).map_err(io::Error::from)
            });
            if let Ok(Err(error)) = flushed.await {
                tracing::warn!(%error, "records could not be flushed to the disk");
            }
        }
    }

    fn replace<T: Serialize>(&self, path: &Path, record: &T) -> Result<(), RecordError> {
        let json = serde_json::to_vec(record).map_err(|e| RecordError {
            what: "encode",
            path: path.to_owned(),
            source: e.into(),
        })?;
        self.replace_bytes(path, &json)
    }

    fn replace_bytes(&self, path: &Path, bytes: &[u8]) -> Result<(), RecordError> {
        let fail = |what, path: &Path| {
            let path = path.to_owned();
            move |source| RecordError { what, path, source }
        };
        let temp = path.with_extension("new");
        write_private(&temp, bytes).map_err(fail("write", &temp))?;
        std::fs::rename(&temp, path).map_err(fail("replace", path))?;
        self.dirty.store(true, Ordering::Relaxed);
        Ok(())
    }
}

/// The files that containers see are mounted by root, so nobody else needs to pass through.
fn make_dir(dir: &Path) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().mode(0o700).create(dir)
}

/// Configurations hold what the pod's author put into environment variables, passwords too.
fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    use std::io::Write as _;
    use std::os::unix::fs::OpenOptionsExt as _;
    let mut file =
        std::fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    file.write_all(bytes)
}

fn remove_file(path: &Path) -> Result<(), RecordError> {
    match std::fs::remove_file(path) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => {
            Err(RecordError { what: "remove", path: path.to_owned(), source: e })
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
