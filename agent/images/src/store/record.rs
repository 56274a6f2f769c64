//! The file that says that an image is complete: `<root>/images/<hex>.json`.
//!
//! It survives a loss of power: before it is written the file system is synced once, so every layer that it names is on disk; it is
//! written beside, synced, renamed, and its folder is synced.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use oci_spec::image::ImageConfiguration;
use serde::{Deserialize, Serialize};

use crate::digest::{Digest, Hasher};
use crate::file_error::{At, FileError};
use crate::layer::LayerFacts;

/// The version that this program writes, and the only one that it reads.
const VERSION: u32 = 1;
/// The most bytes of a record: a configuration of 8 MiB, every byte of it escaped.
const MAX_RECORD: u64 = 64 << 20;

/// An image on disk.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) version: u32,
    pub(super) id: Digest,
    pub(super) tags: Vec<String>,
    pub(super) digests: Vec<String>,
    pub(super) size: u64,
    /// Milliseconds since 1970. Of two records with the same tag the later has it.
    pub(super) updated: u64,
    /// As in the configuration, bottom first.
    pub(super) layers: Vec<LayerRecord>,
    /// The layer of our own on top of them, where one is needed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) corrections: Option<CorrectionRecord>,
    /// The configuration as it came; its digest is the id.
    pub(super) config: String,
}

/// See `corrections.rs`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct CorrectionRecord {
    pub(super) id: Digest,
    pub(super) facts: LayerFacts,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct LayerRecord {
    pub(super) diff_id: Digest,
    /// Of the compressed layer.
    pub(super) digest: Digest,
    pub(super) size: u64,
    pub(super) facts: LayerFacts,
}

/// Why a record cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum RecordError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("not a record: {0}")]
    Json(#[from] serde_json::Error),
    #[error("version {found}, this program knows only version {VERSION}")]
    Version { found: u32 },
    #[error("the configuration in it does not have the digest {id}")]
    Digest { id: Digest },
    #[error("it is the record of {id}")]
    Name { id: Digest },
}

impl Record {
    pub(super) fn new(id: Digest, config: String) -> Record {
        Record {
            version: VERSION,
            id,
            tags: Vec::new(),
            digests: Vec::new(),
            size: 0,
            updated: 0,
            layers: Vec::new(),
            corrections: None,
            config,
        }
    }

    /// Every layer folder that the image needs, and what is known of it.
    pub(super) fn on_disk(&self) -> impl Iterator<Item = (&Digest, LayerFacts)> {
        let corrections = self.corrections.iter().map(|layer| (&layer.id, layer.facts));
        self.layers.iter().map(|layer| (&layer.diff_id, layer.facts)).chain(corrections)
    }

    /// Reads a record and checks that it is what its name says.
    pub(super) fn read_blocking(path: &Path) -> Result<(Record, ImageConfiguration), RecordError> {
        #[derive(Deserialize)]
        struct Version {
            version: u32,
        }
        let mut bytes = Vec::new();
        File::open(path).at("open", path)?.take(MAX_RECORD).read_to_end(&mut bytes).at("read", path)?;
        let Version { version } = serde_json::from_slice(&bytes)?;
        if version != VERSION {
            return Err(RecordError::Version { found: version });
        }
        let record: Record = serde_json::from_slice(&bytes)?;
        let mut hasher = Hasher::new(record.id.algorithm());
        hasher.update(record.config.as_bytes());
        if hasher.finish() != record.id {
            return Err(RecordError::Digest { id: record.id });
        }
        if path.file_stem().is_none_or(|stem| stem != record.id.hex()) {
            return Err(RecordError::Name { id: record.id });
        }
        let config = serde_json::from_str(&record.config)?;
        Ok((record, config))
    }

    /// Writes the record so that it survives a loss of power. Blocks for as long as the disk takes.
    pub(super) fn write_blocking(&self, path: &Path) -> Result<(), FileError> {
        let text = serde_json::to_vec(self).map_err(std::io::Error::from).at("write", path)?;
        let temp = path.with_extension("tmp");
        let mut file = File::create(&temp).at("create", &temp)?;
        file.write_all(&text).at("write", &temp)?;
        file.sync_all().at("sync", &temp)?;
        std::fs::rename(&temp, path).at("rename to", path)?;
        sync_parent(path)
    }
}

/// Makes a rename or removal in a folder last.
pub(super) fn sync_parent(path: &Path) -> Result<(), FileError> {
    let folder = path.parent().unwrap_or(path);
    File::open(folder).at("open", folder)?.sync_all().at("sync", folder)
}
