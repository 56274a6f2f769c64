//! What the store tells about an image.

use std::fmt;
use std::str::FromStr;

use oci_spec::image::ImageConfiguration;

use crate::digest::{Digest, InvalidDigest};

/// An image's id: the digest of its configuration, as everywhere in Kubernetes.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ImageId(Digest);

impl ImageId {
    /// The digest of the configuration.
    pub fn digest(&self) -> &Digest {
        &self.0
    }
}

impl From<Digest> for ImageId {
    fn from(digest: Digest) -> ImageId {
        ImageId(digest)
    }
}

impl FromStr for ImageId {
    type Err = InvalidDigest;

    fn from_str(text: &str) -> Result<ImageId, InvalidDigest> {
        text.parse().map(ImageId)
    }
}

impl fmt::Display for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for ImageId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// An image that is complete on disk.
#[derive(Clone, Debug)]
pub struct Image {
    /// Digest of the configuration.
    pub id: ImageId,
    /// Names with a tag: `docker.io/library/busybox:latest`. Sorted.
    pub tags: Vec<String>,
    /// Names with a digest: `docker.io/library/busybox@sha256:..`. Sorted.
    pub digests: Vec<String>,
    /// Bytes of the compressed layers and the configuration, which is what containerd reports.
    pub size: u64,
    /// Folder names below [`ImageStore::layers_dir`](crate::ImageStore::layers_dir), bottom first, each at most once. Empty for
    /// an image without any file.
    pub layers: Vec<String>,
    /// The configuration.
    pub config: ImageConfiguration,
    /// The kubelet must not collect it.
    pub pinned: bool,
}

/// What the store takes on its file system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Bytes, counted in blocks as `du` does.
    pub bytes: u64,
    /// Files, folders, links.
    pub inodes: u64,
}

/// How far a pull is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// One per layer, bottom first; empty until the manifest is known.
    pub layers: Vec<LayerProgress>,
}

/// How far one layer is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LayerProgress {
    /// Digest of the compressed layer.
    pub digest: Digest,
    /// Compressed bytes downloaded.
    pub done: u64,
    /// Compressed bytes in all.
    pub total: u64,
    /// Where it stands.
    pub state: LayerState,
}

/// Where a layer stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerState {
    /// Not begun, or another pull is at it.
    Waiting,
    /// Being downloaded and unpacked.
    Pulling,
    /// Was on disk before.
    Exists,
    /// Downloaded, checked and unpacked.
    Done,
}
