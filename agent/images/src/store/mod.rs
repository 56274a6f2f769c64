//! The images of a node: memory for questions, disk for the rest.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

use crate::auth::Auth;
use crate::config::ImagesConfig;
use crate::file_error::FileError;
use crate::image::{Image, ImageId, Progress, Usage};
use crate::pull::error::PullError;
use crate::pull::failure::Failure;
use crate::pull::{Layout, Source, pull};
use crate::reference::Reference;
use crate::registry::{Registry, RegistryOptions};

mod commit;
mod corrections;
mod erofs;
mod flights;
mod index;
mod layer_table;
mod open;
mod paths;
mod pinned;
mod record;

pub use erofs::LayerFileError;
use flights::{Flight, Flights, Key, Outcome, Pilot};
use index::Index;
use pinned::Pinned;

pub(crate) use layer_table::{LayerTable, Lease};
pub(crate) use paths::TempLayer;

/// How long the layers of a pull that failed for a passing reason wait for the next try. The kubelet's back-off between tries goes
/// up to 5 minutes.
const KEEP_FOR_RETRY: Duration = Duration::from_secs(600);

/// The images of a node. Clones share it.
#[derive(Clone, Debug)]
pub struct ImageStore {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    config: ImagesConfig,
    pinned: Pinned,
    table: Arc<LayerTable>,
    /// Guards the images in memory. Held for a few lines, never over a disk access.
    index: Mutex<Index>,
    flights: Flights,
    /// Held while records change.
    commit: tokio::sync::Mutex<()>,
    _lock: File,
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
        let pinned = Pinned::parse(&config.pinned)?;
        let found = open::open_blocking(&config.root)?;
        let inner = Inner {
            config,
            pinned,
            table: Arc::new(found.table),
            index: Mutex::default(),
            flights: Flights::default(),
            commit: tokio::sync::Mutex::default(),
            _lock: found.lock,
        };
        for (record, config) in found.records {
            let entry = inner.entry(&record, config);
            for (layer, facts) in record.on_disk() {
                inner.table.set_present(layer, facts);
                if let Ok(file) = std::fs::metadata(inner.table.paths().erofs(layer)) {
                    inner.table.set_file(layer, file.len());
                }
            }
            inner.table.add_image(&entry.diff_ids);
            inner.index().put(entry);
        }
        Ok(ImageStore { inner: Arc::new(inner) })
    }

    /// Pulls `reference` for this machine's platform. Pulls of the same reference with the same credentials at the same time are
    /// one, and pulls that share layers do each layer once.
    ///
    /// Dropping the future cancels the pull, unless others wait for it too. `progress` is told about every change.
    ///
    /// # Errors
    /// See [`PullError`]. Whatever the error, no half image is left; complete layers are kept for some minutes when another try may
    /// go better.
    pub async fn pull(
        &self,
        reference: &Reference,
        auth: Option<Auth>,
        progress: Option<watch::Sender<Progress>>,
    ) -> Result<Arc<Image>, PullError> {
        let key = Key { reference: reference.clone(), auth };
        let (flight, pilot) = self.inner.flights.join(&key);
        if let Some(pilot) = pilot {
            let inner = Arc::clone(&self.inner);
            tokio::spawn(async move {
                let outcome = inner.pull(&key, &pilot).await;
                inner.flights.landed(&key);
                pilot.outcome.send_replace(Some(outcome));
            });
        }
        flight.wait(progress).await
    }

    /// Takes the image that `reference` names from an OCI image layout folder, with the same checks as a pull.
    ///
    /// The entry of `index.json` is the one with the reference's digest, or with the reference or its tag in the annotation
    /// `org.opencontainers.image.ref.name` (or containerd's `io.containerd.image.name`), or the only one if that has no name.
    ///
    /// # Errors
    /// As [`pull`](Self::pull).
    pub async fn import_layout(&self, layout: &Path, reference: &Reference) -> Result<Arc<Image>, PullError> {
        let (flight, pilot) = Flight::start(reference);
        let source = Source::Layout(Layout::new(layout));
        let (inner, reference) = (Arc::clone(&self.inner), reference.clone());
        tokio::spawn(async move {
            let outcome = inner.pull_from(&source, &reference, &pilot).await;
            pilot.outcome.send_replace(Some(outcome));
        });
        flight.wait(None).await
    }

    /// All images, sorted by id. From memory: waits for no pull.
    pub fn list(&self) -> Vec<Arc<Image>> {
        self.inner.index().list()
    }

    /// Finds an image by id (`sha256:..` or only the hex digits, shortened down to 12 digits if that is unique), or by a
    /// reference with a tag or a digest. From memory.
    pub fn resolve(&self, text: &str) -> Option<Arc<Image>> {
        self.inner.index().resolve(text).map(|entry| Arc::clone(&entry.image))
    }

    /// Removes an image with all its names, and the layers that no other image uses. A missing image is no error.
    ///
    /// It does not know of containers: whoever runs them asks first.
    ///
    /// # Errors
    /// When the record cannot be deleted; the image is then still there.
    pub async fn remove(&self, image: &ImageId) -> Result<(), RemoveError> {
        let (inner, id) = (Arc::clone(&self.inner), image.clone());
        undropped(image, async move { inner.remove(&id).await }).await
    }

    /// Takes one name from its image; the image goes with its last name. A missing name is no error.
    ///
    /// # Errors
    /// As [`remove`](Self::remove).
    pub async fn untag(&self, reference: &Reference) -> Result<(), RemoveError> {
        let (inner, name) = (Arc::clone(&self.inner), reference.name());
        let Some(image) = inner.index().by_name(&name).map(|entry| entry.image.id.clone()) else {
            return Ok(());
        };
        undropped(&image, async move { inner.untag(&name).await }).await
    }

    /// What the store takes on disk. From counters that unpacking kept: cheap.
    pub fn usage(&self) -> Usage {
        /// The store's own folders and its lock.
        const FOLDERS: u64 = 7;
        /// A record with its configuration fits a few blocks.
        const RECORD_BYTES: u64 = 8192;
        let layers = self.inner.table.usage();
        let images = self.inner.index().len() as u64;
        Usage {
            bytes: layers.bytes.saturating_add(images * RECORD_BYTES + FOLDERS * 4096),
            inodes: layers.inodes.saturating_add(images + FOLDERS),
        }
    }

    /// The folder of layer folders, named by the hex digits of their diff-id.
    pub fn layers_dir(&self) -> &Path {
        &self.inner.table.paths().layers
    }
}

/// Runs a change of the store to its end even when the caller goes away.
async fn undropped(
    image: &ImageId,
    change: impl Future<Output = Result<(), RemoveError>> + Send + 'static,
) -> Result<(), RemoveError> {
    tokio::spawn(change).await.unwrap_or_else(|error| {
        let source = FileError { action: "remove", path: image.to_string().into(), source: error.into() };
        Err(RemoveError { image: image.clone(), source })
    })
}

impl Inner {
    fn index(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn pull(self: &Arc<Self>, key: &Key, pilot: &Pilot) -> Outcome {
        let options = RegistryOptions {
            hosts_dir: self.config.hosts_dir.clone(),
            progress_timeout: self.config.progress_timeout,
        };
        let registry = Registry::open(&key.reference, key.auth.clone(), &options).await;
        let registry = registry.map_err(|error| Failure::Settings(error).of(&key.reference))?;
        if let Some(image) = self.up_to_date(&registry, &key.reference, pilot).await {
            return Ok(image);
        }
        self.pull_from(&Source::Registry(registry), &key.reference, pilot).await
    }

    /// The image, if the registry says that the reference still means the one that is here, and that these credentials may have it.
    async fn up_to_date(
        &self,
        registry: &Registry,
        reference: &Reference,
        pilot: &Pilot,
    ) -> Option<Arc<Image>> {
        let known = self.index().by_name(&reference.name()).map(|entry| Arc::clone(&entry.image))?;
        let head = tokio::select! {
            () = pilot.cancel.cancelled() => None,
            head = registry.head() => head,
        };
        head.filter(|digest| known.digests.contains(&reference.digest_name(digest))).map(|_| known)
    }

    async fn pull_from(self: &Arc<Self>, source: &Source, reference: &Reference, pilot: &Pilot) -> Outcome {
        let Pilot { progress, cancel, .. } = pilot;
        match pull(&self.table, &self.config, source, reference, progress, cancel).await {
            Ok(pulled) => {
                let committed = self.commit(pulled, reference).await;
                committed.map_err(|error| Failure::File(error).of(reference))
            }
            Err((failure, lease)) => {
                if let Some(lease) = lease {
                    self.give_back(lease, failure.is_passing()).await;
                }
                Err(failure.of(reference))
            }
        }
    }

    /// Removes what a failed pull brought, at once or after a while.
    async fn give_back(self: &Arc<Self>, lease: Lease, keep: bool) {
        let diff_ids = lease.diff_ids().to_vec();
        drop(lease);
        if !keep {
            return self.collect(&diff_ids).await;
        }
        let inner = Arc::downgrade(self);
        tokio::spawn(async move {
            tokio::time::sleep(KEEP_FOR_RETRY).await;
            if let Some(inner) = inner.upgrade() {
                inner.collect(&diff_ids).await;
            }
        });
    }
}

#[cfg(test)]
mod tests;
