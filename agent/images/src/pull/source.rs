//! Where an image comes from: a registry, or a folder. The steps of a pull are the same for both.

use tokio::task::JoinError;

use super::failure::Failure;
use super::invalid::InvalidImage;
use super::layout::Layout;
use super::manifest::BlobRef;
use crate::digest::{Digest, Hasher};
use crate::file_error::FileError;
use crate::reference::Reference;
use crate::registry::{BlobError, Fetched, Registry};

pub(crate) enum Source {
    Registry(Registry),
    Layout(Layout),
}

impl Source {
    /// The manifest or index that the reference names.
    pub(crate) async fn top(&self, reference: &Reference) -> Result<Fetched, Failure> {
        match self {
            Source::Registry(registry) => Ok(registry.top().await?),
            Source::Layout(layout) => {
                let (layout, reference) = (layout.clone(), reference.clone());
                blocking(move || layout.top_blocking(&reference)).await
            }
        }
    }

    /// A manifest by digest.
    pub(crate) async fn manifest(&self, blob: &BlobRef) -> Result<Fetched, Failure> {
        match self {
            Source::Registry(registry) => Ok(registry.by_digest(&blob.digest).await?),
            Source::Layout(layout) => {
                let (layout, blob) = (layout.clone(), blob.clone());
                blocking(move || layout.manifest_blocking(&blob)).await
            }
        }
    }

    /// A configuration, checked. Its size was found small enough before.
    pub(crate) async fn config(&self, blob: &BlobRef) -> Result<Vec<u8>, Failure> {
        match self {
            Source::Registry(registry) => loop {
                let mut download = registry.blob(&blob.digest, blob.size);
                match config_bytes(&mut download, blob).await {
                    Err(Failure::Invalid(_)) if download.distrust() => {}
                    other => return other,
                }
            },
            Source::Layout(layout) => {
                let (layout, blob) = (layout.clone(), blob.clone());
                blocking(move || layout.small_blocking(&blob)).await
            }
        }
    }
}

async fn config_bytes(download: &mut crate::registry::Blob<'_>, blob: &BlobRef) -> Result<Vec<u8>, Failure> {
    let (digest, expected) = (blob.digest.clone(), blob.size);
    let bytes = match download.bytes().await {
        Ok(bytes) => bytes,
        Err(BlobError::Refused(refusals)) => return Err(refusals.into()),
        Err(BlobError::Truncated { found }) => {
            return Err(InvalidImage::Size { digest, expected, found }.into());
        }
        Err(BlobError::TooLong) => {
            return Err(InvalidImage::Size { digest, expected, found: expected + 1 }.into());
        }
    };
    let mut hasher = Hasher::new(digest.algorithm());
    hasher.update(&bytes);
    match hasher.finish() {
        found if found == digest => Ok(bytes),
        found => Err(InvalidImage::WrongDigest { expected: digest, found }.into()),
    }
}

/// Runs a blocking step; a panic in it is an error like others.
pub(crate) async fn blocking<T: Send + 'static, E: Send + 'static + From<FileError>>(
    step: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, E> {
    tokio::task::spawn_blocking(step).await.unwrap_or_else(|error| Err(crashed(error).into()))
}

fn crashed(error: JoinError) -> FileError {
    FileError { action: "run a step on", path: "the image store".into(), source: error.into() }
}

/// The digest of a fetched document, as a blob.
impl From<&Fetched> for BlobRef {
    fn from(fetched: &Fetched) -> BlobRef {
        BlobRef { digest: fetched.digest.clone(), size: fetched.bytes.len() as u64 }
    }
}

/// Digests that several layers have once only, the order kept.
pub(crate) fn unique(digests: impl IntoIterator<Item = Digest>) -> Vec<Digest> {
    let mut seen = std::collections::HashSet::new();
    digests.into_iter().filter(|digest| seen.insert(digest.clone())).collect()
}
