//! An OCI image layout folder (image-spec, image-layout.md) as a source of images.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use oci_spec::image::{Descriptor, ImageIndex};

use super::failure::Failure;
use super::invalid::InvalidImage;
use super::manifest::{self, BlobRef};
use crate::digest::{Digest, Hasher};
use crate::file_error::{At, FileError};
use crate::reference::Reference;
use crate::registry::{Fetched, MAX_MANIFEST};

/// How the layout's entries are named.
const NAME_ANNOTATIONS: [&str; 2] = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];

/// A layout folder.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    folder: PathBuf,
}

impl Layout {
    pub(crate) fn new(folder: &Path) -> Layout {
        Layout { folder: folder.to_owned() }
    }

    /// The manifest or index that the reference names. Blocks.
    pub(crate) fn top_blocking(&self, reference: &Reference) -> Result<Fetched, Failure> {
        let path = self.folder.join("index.json");
        let bytes = read_bounded(&path)?;
        let digest = Digest::of(&bytes);
        let index: ImageIndex = serde_json::from_slice(&bytes).map_err(|source| InvalidImage::Json {
            what: "index",
            digest: digest.clone(),
            source,
        })?;
        let named: Vec<_> = index.manifests().iter().filter(|entry| is_named(entry, reference)).collect();
        let chosen = match (named.as_slice(), index.manifests().as_slice()) {
            ([one], _) => *one,
            // A layout of one image need not name it; a reference with a digest must get that digest.
            ([], [one]) if reference.digest().is_none() && !has_name(one) => one,
            (several, _) => {
                return Err(InvalidImage::Layout { name: reference.to_string(), found: several.len() }.into());
            }
        };
        self.manifest_blocking(&manifest::blob(chosen, &digest)?)
    }

    /// A manifest by digest. Blocks.
    pub(crate) fn manifest_blocking(&self, blob: &BlobRef) -> Result<Fetched, Failure> {
        let bytes = self.small_blocking(blob)?.into();
        Ok(Fetched { bytes, media_type: None, digest: blob.digest.clone() })
    }

    /// A manifest or configuration, checked. Blocks.
    pub(crate) fn small_blocking(&self, blob: &BlobRef) -> Result<Vec<u8>, Failure> {
        let bytes = read_bounded(&self.path(&blob.digest))?;
        let found = bytes.len() as u64;
        if found != blob.size {
            let (digest, expected) = (blob.digest.clone(), blob.size);
            return Err(InvalidImage::Size { digest, expected, found }.into());
        }
        let mut hasher = Hasher::new(blob.digest.algorithm());
        hasher.update(&bytes);
        match hasher.finish() {
            found if found == blob.digest => Ok(bytes),
            found => Err(InvalidImage::WrongDigest { expected: blob.digest.clone(), found }.into()),
        }
    }

    /// Where a blob lies.
    pub(crate) fn path(&self, digest: &Digest) -> PathBuf {
        self.folder.join("blobs").join(digest.algorithm().name()).join(digest.hex())
    }
}

fn read_bounded(path: &Path) -> Result<Vec<u8>, FileError> {
    let mut bytes = Vec::new();
    let file = File::open(path).at("open", path)?;
    file.take(MAX_MANIFEST as u64 + 1).read_to_end(&mut bytes).at("read", path)?;
    Ok(bytes)
}

fn has_name(entry: &Descriptor) -> bool {
    NAME_ANNOTATIONS.iter().any(|key| annotation(entry, key).is_some())
}

fn is_named(entry: &Descriptor, reference: &Reference) -> bool {
    if let Some(digest) = reference.digest() {
        return entry.digest().to_string() == digest.to_string();
    }
    let names = NAME_ANNOTATIONS.iter().filter_map(|key| annotation(entry, key));
    names.into_iter().any(|name| {
        Some(name) == reference.tag() || name.parse::<Reference>().is_ok_and(|named| named == *reference)
    })
}

fn annotation<'a>(entry: &'a Descriptor, key: &str) -> Option<&'a str> {
    entry.annotations().as_ref()?.get(key).map(String::as_str)
}
