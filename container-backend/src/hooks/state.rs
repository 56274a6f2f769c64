//! The state of a container, which its hooks read.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

use oci_spec::runtime::Spec;
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create, seek};
use serde::Serialize;

use super::{HookFailure, Moment};

/// What is the same at every moment.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct HookState {
    oci_version: String,
    id: String,
    bundle: String,
    #[serde(skip_serializing_if = "serde_json::Value::is_null")]
    annotations: serde_json::Value,
}

/// As runtime.md has it.
#[derive(Serialize)]
struct Full<'a> {
    #[serde(flatten)]
    state: &'a HookState,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<i32>,
}

impl HookState {
    /// That of the container `id`, whose spec is in the folder `bundle`.
    #[must_use]
    pub fn new(id: &str, bundle: &Path, spec: &Spec) -> Self {
        Self {
            oci_version: spec.version().clone(),
            id: id.to_owned(),
            bundle: bundle.to_string_lossy().into_owned(),
            annotations: spec.annotations().as_ref().map(|all| serde_json::json!(all)).unwrap_or_default(),
        }
    }

    /// A file to be a hook's stdin: it can be read to its end whether the hook does or not, where a pipe would have to be fed.
    ///
    /// # Errors
    /// Memory is short.
    pub fn file(&self, moment: Moment, pid: Option<i32>) -> Result<OwnedFd, HookFailure> {
        let json = serde_json::to_vec(&Full { state: self, status: moment.status(), pid });
        let file = json.map_err(io::Error::from).and_then(|json| sealed(&json));
        file.map_err(HookFailure::step("write the container's state"))
    }
}

/// A hook that runs in the container must not be able to write to it.
fn sealed(bytes: &[u8]) -> io::Result<OwnedFd> {
    let file = memfd_create("state.json", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut rest = bytes;
    while !rest.is_empty() {
        let count = rustix::io::write(&file, rest)?;
        rest = rest.get(count..).unwrap_or_default();
    }
    seek(&file, rustix::fs::SeekFrom::Start(0))?;
    fcntl_add_seals(&file, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
    Ok(file)
}
