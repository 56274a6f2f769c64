//! Manifests and indexes: what they are, and what of them a pull needs.

use oci_spec::image::{Descriptor, ImageIndex, ImageManifest};
use serde::Deserialize;

use super::invalid::InvalidImage;
use crate::digest::{Digest, shorten};
use crate::registry::{Fetched, MAX_MANIFEST};

/// The most layers of an image: what overlayfs can stack (`OVL_MAX_STACK`).
const MAX_LAYERS: usize = 500;

/// What a document is.
pub(crate) enum Document {
    Index(Box<ImageIndex>),
    Image(Box<ImageManifest>),
}

/// A blob that a manifest names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BlobRef {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
}

/// The fields that tell what a document is.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shape {
    media_type: Option<String>,
    manifests: Option<serde::de::IgnoredAny>,
    layers: Option<serde::de::IgnoredAny>,
    config: Option<serde::de::IgnoredAny>,
    fs_layers: Option<serde::de::IgnoredAny>,
}

/// Reads a manifest or index. What it has counts, not what the HTTP header calls it; where it says itself what it is, that must fit.
pub(crate) fn parse(fetched: &Fetched) -> Result<Document, InvalidImage> {
    let digest = &fetched.digest;
    let malformed = |what| move |source| InvalidImage::Json { what, digest: digest.clone(), source };
    let shape: Shape = serde_json::from_slice(&fetched.bytes).map_err(malformed("manifest"))?;
    let is_index = shape.manifests.is_some();
    let is_image = shape.layers.is_some() || shape.config.is_some();
    if is_index && (is_image || shape.fs_layers.is_some()) {
        return Err(InvalidImage::Ambiguous { digest: digest.clone() });
    }
    let named = shape.media_type.as_deref();
    let fits = |known: &[&str]| named.is_none_or(|named| known.contains(&named));
    if is_index && fits(&INDEX_TYPES) {
        return serde_json::from_slice(&fetched.bytes)
            .map(|index| Document::Index(Box::new(index)))
            .map_err(malformed("index"));
    }
    if is_image && fits(&IMAGE_TYPES) {
        return serde_json::from_slice(&fetched.bytes)
            .map(|image| Document::Image(Box::new(image)))
            .map_err(malformed("manifest"));
    }
    let media_type = named.or(fetched.media_type.as_deref()).unwrap_or("unknown");
    let media_type = match shape.fs_layers {
        Some(_) => "application/vnd.docker.distribution.manifest.v1+json",
        None => media_type,
    };
    Err(InvalidImage::MediaType { digest: digest.clone(), media_type: shorten(media_type) })
}

const INDEX_TYPES: [&str; 2] =
    ["application/vnd.oci.image.index.v1+json", "application/vnd.docker.distribution.manifest.list.v2+json"];
const IMAGE_TYPES: [&str; 2] =
    ["application/vnd.oci.image.manifest.v1+json", "application/vnd.docker.distribution.manifest.v2+json"];

/// The configuration of an image, checked for size.
pub(crate) fn config(manifest: &ImageManifest, of: &Digest) -> Result<BlobRef, InvalidImage> {
    let config = blob(manifest.config(), of)?;
    match config.size > MAX_MANIFEST as u64 {
        true => Err(InvalidImage::TooLarge { digest: config.digest, size: config.size, limit: MAX_MANIFEST }),
        false => Ok(config),
    }
}

/// The layers of an image, bottom first.
pub(crate) fn layers(manifest: &ImageManifest, of: &Digest) -> Result<Vec<BlobRef>, InvalidImage> {
    let layers = manifest.layers();
    if layers.len() > MAX_LAYERS {
        return Err(InvalidImage::TooManyLayers { layers: layers.len(), limit: MAX_LAYERS });
    }
    layers
        .iter()
        .map(|descriptor| {
            let blob = blob(descriptor, of)?;
            let media_type = descriptor.media_type().to_string();
            match is_layer(&media_type) {
                true => Ok(blob),
                false => {
                    Err(InvalidImage::LayerType { digest: blob.digest, media_type: shorten(&media_type) })
                }
            }
        })
        .collect()
}

/// The digest and size of a descriptor.
pub(crate) fn blob(descriptor: &Descriptor, of: &Digest) -> Result<BlobRef, InvalidImage> {
    let digest = descriptor.digest().to_string().parse();
    let digest = digest.map_err(|source| InvalidImage::Digest { of: of.clone(), source })?;
    Ok(BlobRef { digest, size: descriptor.size() })
}

/// Everything that is a tar, whatever compression it claims: that is seen from the first bytes.
fn is_layer(media_type: &str) -> bool {
    let base = media_type.split('+').next().unwrap_or(media_type);
    let suffix = media_type.split_once('+').map_or("", |(_, suffix)| suffix);
    match base {
        "application/vnd.oci.image.layer.v1.tar"
        | "application/vnd.oci.image.layer.nondistributable.v1.tar" => {
            matches!(suffix, "" | "gzip" | "zstd")
        }
        "application/vnd.docker.image.rootfs.diff.tar"
        | "application/vnd.docker.image.rootfs.diff.tar.gzip"
        | "application/vnd.docker.image.rootfs.diff.tar.zstd"
        | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip" => suffix.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fetched(json: &str) -> Fetched {
        Fetched { bytes: json.to_owned().into(), media_type: None, digest: Digest::of(json.as_bytes()) }
    }

    #[test]
    fn documents_are_told_apart_by_what_they_have() {
        let digest = Digest::of(b"");
        let index = r#"{"schemaVersion":2,"manifests":[]}"#;
        assert!(matches!(parse(&fetched(index)), Ok(Document::Index(_))));
        let image = format!(
            r#"{{"schemaVersion":2,"mediaType":"application/vnd.docker.distribution.manifest.v2+json","layers":[],
            "config":{{"mediaType":"application/vnd.docker.container.image.v1+json","size":2,"digest":"{digest}"}}}}"#
        );
        let Ok(Document::Image(manifest)) = parse(&fetched(&image)) else { panic!("no image") };
        assert_eq!(config(&manifest, &digest).unwrap(), BlobRef { digest, size: 2 });
    }

    #[test]
    fn what_is_no_image_is_refused() {
        for (json, part) in [
            ("", "manifest sha256:e3b0"),
            ("[]", "is malformed"),
            ("{}", "\"unknown\", which is no image"),
            (r#"{"schemaVersion":1,"fsLayers":[]}"#, "manifest.v1+json"),
            (r#"{"manifests":[],"layers":[]}"#, "at the same time"),
            (r#"{"manifests":[],"fsLayers":[]}"#, "at the same time"),
            (
                r#"{"mediaType":"application/vnd.oci.image.manifest.v1+json","manifests":[]}"#,
                "which is no image",
            ),
            (r#"{"schemaVersion":2,"layers":[]}"#, "is malformed"),
        ] {
            let Err(error) = parse(&fetched(json)) else { panic!("{json} was accepted") };
            assert!(error.to_string().contains(part), "{json}: {error}");
        }
    }

    #[test]
    fn layers_are_tar_archives() {
        for (media_type, fits) in [
            ("application/vnd.oci.image.layer.v1.tar", true),
            ("application/vnd.oci.image.layer.v1.tar+zstd", true),
            ("application/vnd.docker.image.rootfs.diff.tar.gzip", true),
            ("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip", true),
            ("application/vnd.oci.image.layer.v1.tar+encrypted", false),
            ("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", false),
            ("application/vnd.in-toto+json", false),
            ("application/wasm", false),
        ] {
            assert_eq!(is_layer(media_type), fits, "{media_type}");
        }
    }
}
