//! What can be wrong with an image as such.

use crate::digest::{Digest, InvalidDigest};
use crate::layer::LayerError;
use crate::pull::error::Attempts;

/// Why an image is not what it should be.
#[derive(Debug, thiserror::Error)]
pub enum InvalidImage {
    /// The hosts sent something else than what its digest says.
    #[error("wrong content: {tried}")]
    Wrong {
        /// What each host said, or did.
        tried: Attempts,
    },
    /// A manifest, index or configuration that is not the JSON that it should be.
    #[error("{what} {digest} is malformed")]
    Json {
        /// `manifest`, `index` or `configuration`.
        what: &'static str,
        /// Which one.
        digest: Digest,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// A manifest that could be read as an index too (CVE-2021-41190).
    #[error("manifest {digest} is an index at the same time")]
    Ambiguous {
        /// Which one.
        digest: Digest,
    },
    /// Something else than an image.
    #[error("{digest} has the media type {media_type:?}, which is no image")]
    MediaType {
        /// The content.
        digest: Digest,
        /// What it says it is.
        media_type: String,
    },
    /// Indexes in indexes.
    #[error("index {digest} lies in more than {limit} other indexes")]
    TooDeep {
        /// The innermost one looked at.
        digest: Digest,
        /// The limit.
        limit: usize,
    },
    /// A digest in a manifest or configuration that is none.
    #[error("a digest in {of} is malformed")]
    Digest {
        /// The manifest or configuration.
        of: Digest,
        /// What is wrong with it.
        #[source]
        source: InvalidDigest,
    },
    /// A layer of an unknown kind.
    #[error("layer {digest} has the media type {media_type:?}, which cannot be unpacked")]
    LayerType {
        /// The layer.
        digest: Digest,
        /// What it says it is.
        media_type: String,
    },
    /// More layers than overlayfs can stack.
    #[error("the image has {layers} layers, the limit is {limit}")]
    TooManyLayers {
        /// How many.
        layers: usize,
        /// The limit.
        limit: usize,
    },
    /// Manifest and configuration do not fit each other.
    #[error("the manifest has {layers} layers and the configuration {diff_ids}")]
    LayerCount {
        /// In the manifest.
        layers: usize,
        /// In the configuration.
        diff_ids: usize,
    },
    /// A manifest or configuration that is larger than any real one.
    #[error("{digest} has {size} bytes, the limit is {limit}")]
    TooLarge {
        /// Which one.
        digest: Digest,
        /// Its size.
        size: u64,
        /// The limit.
        limit: usize,
    },
    /// A configuration or file of a layout of another length than its descriptor says.
    #[error("{digest} has {found} bytes instead of {expected}")]
    Size {
        /// Which one.
        digest: Digest,
        /// In the descriptor.
        expected: u64,
        /// What there is.
        found: u64,
    },
    /// A configuration or file of a layout with another digest than its name.
    #[error("{expected} has the wrong digest {found}")]
    WrongDigest {
        /// What was asked for.
        expected: Digest,
        /// What came.
        found: Digest,
    },
    /// A layout's index.json names no such image, or several.
    #[error("the layout has {found} images that are named {name:?}")]
    Layout {
        /// What was looked for.
        name: String,
        /// How many fit.
        found: usize,
    },
    /// A layer.
    #[error(transparent)]
    Layer(#[from] LayerError),
}

impl InvalidImage {
    /// The bytes are not those that were asked for: another host may have them.
    pub(crate) fn is_wrong_bytes(&self) -> bool {
        matches!(
            self,
            InvalidImage::Layer(
                LayerError::Digest { .. } | LayerError::Truncated { .. } | LayerError::TooLong { .. }
            )
        )
    }
}
