//! Layers as files: what guests attach as read-only disks.
//!
//! A layer's folder becomes an EROFS file at its first use in a guest, and that file serves all guests from the host's cache. It goes with
//! its layer.

use std::env;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

use super::{ImageStore, LayerTable};
use crate::digest::Digest;
use crate::file_error::{At, FileError};
use crate::image::Image;
use crate::pull::blocking;

/// Of erofs-utils.
const PROGRAM: &str = "mkfs.erofs";
/// Where the tools of the administrator are; not in everybody's PATH.
const SYSTEM_FOLDERS: [&str; 2] = ["/usr/sbin", "/sbin"];

/// Why a layer cannot be had as a file.
#[derive(Debug, thiserror::Error)]
pub enum LayerFileError {
    /// The disk fails.
    #[error(transparent)]
    File(#[from] FileError),
    /// mkfs.erofs is not installed, most likely.
    #[error("run {PROGRAM} (of erofs-utils)")]
    Run(#[source] io::Error),
    /// What mkfs.erofs said.
    #[error("make a file of layer {layer}: {PROGRAM} failed ({status}): {said}")]
    Failed { layer: String, status: ExitStatus, said: String },
    /// The image was removed meanwhile.
    #[error("layer {0} is not in the store")]
    NoLayer(String),
}

impl ImageStore {
    /// An EROFS file for each layer of `image`, bottom first: made now unless they are there. Callers who want the same layer wait for one
    /// conversion. The image must not be removed meanwhile.
    ///
    /// # Errors
    /// See [`LayerFileError`]; nothing half made is left.
    pub async fn layer_files(&self, image: &Image) -> Result<Vec<PathBuf>, LayerFileError> {
        let table = &self.inner.table;
        let mut files = Vec::new();
        for layer in &image.layers {
            let digest = digest(layer).ok_or_else(|| LayerFileError::NoLayer(layer.clone()))?;
            let file = table.paths().erofs(&digest);
            if !file.exists() {
                let gate = table.gate(&digest);
                // Held by the conversion, which goes on when the caller does not wait for it any more.
                let turn = gate.lock_owned().await;
                let (table, digest) = (table.clone(), digest.clone());
                let conversion = move || {
                    let made = convert_blocking(&table, &digest);
                    drop(turn);
                    made
                };
                blocking(conversion).await?;
            }
            files.push(file);
        }
        Ok(files)
    }
}

/// The name of a layer is the hexadecimal part of its digest.
fn digest(layer: &str) -> Option<Digest> {
    let algorithm = if layer.len() == 128 { "sha512" } else { "sha256" };
    format!("{algorithm}:{layer}").parse().ok()
}

fn convert_blocking(table: &LayerTable, digest: &Digest) -> Result<(), LayerFileError> {
    let paths = table.paths();
    let (folder, file) = (paths.layer(digest), paths.erofs(digest));
    if file.exists() {
        return Ok(());
    }
    if table.facts(digest).is_none() || !folder.is_dir() {
        return Err(LayerFileError::NoLayer(digest.to_string()));
    }
    let temp = paths.temp();
    let made = make_blocking(digest, &folder, &temp)
        .and_then(|bytes| Ok(std::fs::rename(&temp, &file).at("rename to", &file).map(|()| bytes)?));
    match made {
        Ok(bytes) => table.set_file(digest, bytes),
        Err(error) => {
            let _ = std::fs::remove_file(&temp);
            return Err(error);
        }
    }
    Ok(())
}

/// The size of the new file.
fn make_blocking(digest: &Digest, folder: &Path, temp: &Path) -> Result<u64, LayerFileError> {
    let began = std::time::Instant::now();
    let output = Command::new(PROGRAM)
        .arg("--quiet")
        .args([temp, folder])
        .env_clear()
        .env("PATH", search_path())
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(LayerFileError::Run)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        let said = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ");
        return Err(LayerFileError::Failed { layer: digest.to_string(), status: output.status, said });
    }
    // Its name must never stand for less than the layer, whenever the power fails.
    let file = File::open(temp).at("open", temp)?;
    file.sync_all().at("sync", temp)?;
    let bytes = file.metadata().at("stat", temp)?.len();
    let took_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
    tracing::info!(layer = %digest, took_ms, "made a file of a layer for guests");
    Ok(bytes)
}

fn search_path() -> OsString {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).chain(SYSTEM_FOLDERS.into_iter().map(PathBuf::from));
    env::join_paths(folders).unwrap_or(path)
}
