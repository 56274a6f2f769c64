//! The steps of a pull: index, manifest, configuration, layers.

use std::sync::Arc;

use oci_spec::image::{ImageConfiguration, ImageManifest};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::failure::Failure;
use super::invalid::InvalidImage;
use super::layers::{LayerJob, LayerPull};
use super::manifest::{self, BlobRef, Document};
use super::platform::{Wanted, describe};
use super::source::{Source, unique};
use crate::config::ImagesConfig;
use crate::digest::Digest;
use crate::image::{LayerProgress, LayerState, Progress};
use crate::layer::StreamFacts;
use crate::reference::Reference;
use crate::registry::Fetched;
use crate::store::{LayerTable, Lease};

/// Indexes in indexes that are followed. Real images have one.
const MAX_INDEXES: usize = 4;

/// An image whose layers are all present, and stay so as long as the lease lives.
pub(crate) struct Pulled {
    /// Digest of what the reference names: an index or a manifest.
    pub(crate) top: Digest,
    pub(crate) id: Digest,
    pub(crate) config: ImageConfiguration,
    /// As it came: its digest is the id.
    pub(crate) config_text: String,
    /// Compressed layers and configuration.
    pub(crate) size: u64,
    /// Bottom first.
    pub(crate) layers: Vec<StreamFacts>,
    pub(crate) lease: Lease,
}

/// Pulls everything but the record. On an error, layers that came meanwhile are present and unused.
pub(crate) async fn pull(
    table: &Arc<LayerTable>,
    settings: &ImagesConfig,
    source: &Source,
    reference: &Reference,
    progress: &watch::Sender<Progress>,
    cancel: &CancellationToken,
) -> Result<Pulled, (Failure, Option<Lease>)> {
    let known =
        cancellable(cancel, describe_image(source, reference)).await.map_err(|failure| (failure, None))?;
    let diff_ids: Vec<_> = known.layers.iter().map(|layer| layer.diff_id.clone()).collect();
    // From here on nobody removes a layer that this image has.
    let lease = table.lease(unique(diff_ids));
    progress.send_replace(Progress { layers: known.layers.iter().map(waiting).collect() });
    let layers = LayerPull {
        table,
        source,
        progress,
        cancel: cancel.child_token(),
        max_bytes: settings.max_layer_bytes,
        parallel: settings.parallel_layers,
    };
    match layers.all(jobs(&known.layers)).await {
        Ok(()) => Ok(Pulled {
            top: known.top,
            id: known.id,
            config: known.config,
            config_text: known.config_text,
            size: known.size,
            layers: known.layers,
            lease,
        }),
        Err(failure) => Err((failure, Some(lease))),
    }
}

async fn cancellable<T>(
    cancel: &CancellationToken,
    step: impl Future<Output = Result<T, Failure>>,
) -> Result<T, Failure> {
    tokio::select! {
        biased;
        () = cancel.cancelled() => Err(Failure::Cancelled),
        result = step => result,
    }
}

/// What is known of an image before its layers come.
struct Known {
    top: Digest,
    id: Digest,
    config: ImageConfiguration,
    config_text: String,
    size: u64,
    layers: Vec<StreamFacts>,
}

async fn describe_image(source: &Source, reference: &Reference) -> Result<Known, Failure> {
    let wanted = Wanted::here();
    let top = source.top(reference).await?;
    let top_digest = top.digest.clone();
    let (manifest, digest) = image_of(source, top, &wanted).await?;
    let config = manifest::config(&manifest, &digest)?;
    let blobs = manifest::layers(&manifest, &digest)?;
    let size = blobs.iter().chain([&config]).fold(0u64, |sum, blob| sum.saturating_add(blob.size));
    let config_bytes = source.config(&config).await?;
    let id = config.digest;
    let (config, config_text) = configuration(&id, config_bytes, &wanted)?;
    let layers = pair(&id, blobs, &config)?;
    Ok(Known { top: top_digest, id, config, config_text, size, layers })
}

/// Follows indexes to the manifest for this machine.
async fn image_of(
    source: &Source,
    mut fetched: Fetched,
    wanted: &Wanted,
) -> Result<(ImageManifest, Digest), Failure> {
    for _ in 0..=MAX_INDEXES {
        let index = match manifest::parse(&fetched)? {
            Document::Image(manifest) => return Ok((*manifest, fetched.digest)),
            Document::Index(index) => index,
        };
        let Some(chosen) = wanted.choose(index.manifests()) else {
            let mut offered: Vec<_> = index
                .manifests()
                .iter()
                .filter_map(|entry| entry.platform().as_ref().map(describe))
                .collect();
            offered.sort();
            offered.dedup();
            offered.truncate(50);
            return Err(Failure::NoPlatform { wanted: wanted.to_string(), offered });
        };
        fetched = source.manifest(&manifest::blob(chosen, &fetched.digest)?).await?;
    }
    Err(InvalidImage::TooDeep { digest: fetched.digest, limit: MAX_INDEXES }.into())
}

fn configuration(
    id: &Digest,
    bytes: Vec<u8>,
    wanted: &Wanted,
) -> Result<(ImageConfiguration, String), Failure> {
    let malformed = |source| InvalidImage::Json { what: "configuration", digest: id.clone(), source };
    let config: ImageConfiguration = serde_json::from_slice(&bytes).map_err(malformed)?;
    let (os, architecture) = (config.os().to_string(), config.architecture().to_string());
    if !wanted.runs(&os, &architecture) {
        let offered = vec![format!("{os}/{architecture}")];
        return Err(Failure::NoPlatform { wanted: wanted.to_string(), offered });
    }
    // JSON that serde accepts is UTF-8.
    let text = String::from_utf8(bytes).map_err(|_| malformed(serde::de::Error::custom("not UTF-8")))?;
    Ok((config, text))
}

/// Puts the compressed layers of the manifest and the diff-ids of the configuration together.
fn pair(
    id: &Digest,
    blobs: Vec<BlobRef>,
    config: &ImageConfiguration,
) -> Result<Vec<StreamFacts>, InvalidImage> {
    let diff_ids = config.rootfs().diff_ids();
    if blobs.len() != diff_ids.len() {
        return Err(InvalidImage::LayerCount { layers: blobs.len(), diff_ids: diff_ids.len() });
    }
    let pairs = blobs.into_iter().zip(diff_ids).map(|(blob, diff_id)| {
        let diff_id = diff_id.parse();
        let diff_id = diff_id.map_err(|source| InvalidImage::Digest { of: id.clone(), source })?;
        Ok(StreamFacts { digest: blob.digest, size: blob.size, diff_id })
    });
    pairs.collect()
}

fn waiting(layer: &StreamFacts) -> LayerProgress {
    LayerProgress { digest: layer.digest.clone(), done: 0, total: layer.size, state: LayerState::Waiting }
}

/// One job per diff-id.
fn jobs(layers: &[StreamFacts]) -> Vec<LayerJob> {
    let mut jobs: Vec<LayerJob> = Vec::new();
    for (place, facts) in layers.iter().enumerate() {
        match jobs.iter_mut().find(|job| job.facts.diff_id == facts.diff_id) {
            Some(job) => job.places.push(place),
            None => jobs.push(LayerJob { facts: facts.clone(), places: vec![place] }),
        }
    }
    jobs
}
