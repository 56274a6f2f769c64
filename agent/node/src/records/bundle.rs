//! The bundle of a container that has hooks: a folder beside its record with its spec, as the OCI runtime specification has it.
//!
//! It is there from before the first hook runs until the last one has: so a bundle that is found says that hooks are due.

use std::io;
use std::path::PathBuf;

use hartpod_proto::{ContainerId, SandboxId};

use super::{RecordError, Records, make_dir, write_private};
use crate::scratch;

/// Ending of a bundle's name.
const BUNDLE: &str = ".bundle";

/// In a bundle (runtime-spec, bundle.md).
const SPEC: &str = "config.json";
/// Where hooks find the container's root, by `root.path` of every spec.
const ROOT: &str = "rootfs";

impl Records {
    /// The bundle of a container, whether it exists or not.
    pub(crate) fn bundle_dir(&self, pod: &SandboxId, container: &ContainerId) -> PathBuf {
        self.pod_dir(pod).join(format!("{container}{BUNDLE}"))
    }

    /// Makes a bundle.
    pub(crate) fn write_bundle_blocking(
        &self,
        pod: &SandboxId,
        container: &ContainerId,
        json: &[u8],
    ) -> Result<(), RecordError> {
        let dir = self.bundle_dir(pod, container);
        let made = make_dir(&dir)
            .and_then(|()| make_dir(&dir.join(ROOT)))
            .and_then(|()| write_private(&dir.join(SPEC), json));
        made.map_err(|source| RecordError { what: "make", path: dir, source })
    }

    /// The spec in a bundle; nothing for a container without one.
    pub(crate) fn read_bundle_blocking(
        &self,
        pod: &SandboxId,
        container: &ContainerId,
    ) -> Result<Option<Vec<u8>>, RecordError> {
        let path = self.bundle_dir(pod, container).join(SPEC);
        match std::fs::read(&path) {
            Ok(json) => Ok(Some(json)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(RecordError { what: "read", path, source }),
        }
    }

    /// Deletes a bundle, with what hooks have left in it but not what they have mounted there; a missing one is fine.
    pub(crate) fn remove_bundle_blocking(
        &self,
        pod: &SandboxId,
        container: &ContainerId,
    ) -> Result<(), RecordError> {
        remove(self.bundle_dir(pod, container))
    }
}

/// Whether this is the name of a bundle.
pub(super) fn is_bundle(name: &std::ffi::OsStr) -> bool {
    name.as_encoded_bytes().ends_with(BUNDLE.as_bytes())
}

pub(super) fn remove(path: PathBuf) -> Result<(), RecordError> {
    scratch::remove_blocking(&path).map_err(|error| {
        let source = io::Error::other(crate::chain(&error));
        RecordError { what: "remove", path, source }
    })
}
