//! The image of the demo: one static program in one layer, made from the copy inside this executable.

use std::io;

use flate2::Compression;
use flate2::write::GzEncoder;
use serde_json::json;
use sha2::{Digest as _, Sha256};

/// Built by the build script from `demo/main.rs`.
pub(super) const PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/hartpod-demo"));

/// Where the program is in the image.
const PATH: &str = "demo";

/// Not root: a demo should look like a pod that one would run.
const FILES: [(&str, &str); 2] = [
    ("etc/passwd", "root:x:0:0:root:/:/demo\ndemo:x:1000:1000:demo:/:/demo\n"),
    ("etc/group", "root:x:0:\ndemo:x:1000:\n"),
];

/// Bytes with their name in a registry.
#[derive(Debug)]
pub(super) struct Blob {
    pub(super) digest: String,
    pub(super) bytes: Vec<u8>,
}

impl Blob {
    fn new(bytes: Vec<u8>) -> Self {
        Self { digest: digest(&bytes), bytes }
    }
}

/// Manifest, configuration and layer.
#[derive(Debug)]
pub(super) struct DemoImage {
    pub(super) manifest: Blob,
    pub(super) config: Blob,
    pub(super) layer: Blob,
}

pub(super) const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";

impl DemoImage {
    /// Packs the image; takes some milliseconds of CPU.
    pub(super) fn pack_blocking() -> io::Result<Self> {
        let tar = tar()?;
        let diff_id = digest(&tar);
        let layer = Blob::new(gzip(&tar)?);
        let config = Blob::new(serde_json::to_vec(&json!({
            "architecture": architecture(),
            "os": "linux",
            "config": { "Entrypoint": [format!("/{PATH}")], "User": "demo", "StopSignal": "SIGTERM" },
            "rootfs": { "type": "layers", "diff_ids": [diff_id] },
        }))?);
        let manifest = Blob::new(serde_json::to_vec(&json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": descriptor("application/vnd.oci.image.config.v1+json", &config),
            "layers": [descriptor("application/vnd.oci.image.layer.v1.tar+gzip", &layer)],
        }))?);
        Ok(Self { manifest, config, layer })
    }
}

fn descriptor(media_type: &str, blob: &Blob) -> serde_json::Value {
    json!({ "mediaType": media_type, "digest": blob.digest, "size": blob.bytes.len() })
}

fn digest(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = String::from("sha256:");
    for byte in Sha256::digest(bytes) {
        let _ = write!(text, "{byte:02x}");
    }
    text
}

fn gzip(bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    io::Write::write_all(&mut encoder, bytes)?;
    encoder.finish()
}

fn tar() -> io::Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::new());
    append(&mut tar, tar::EntryType::Directory, "etc/", 0o755, &[])?;
    append(&mut tar, tar::EntryType::Directory, "tmp/", 0o1777, &[])?;
    for (path, text) in FILES {
        append(&mut tar, tar::EntryType::Regular, path, 0o644, text.as_bytes())?;
    }
    append(&mut tar, tar::EntryType::Regular, PATH, 0o755, PROGRAM)?;
    tar.into_inner()
}

fn append(
    tar: &mut tar::Builder<Vec<u8>>,
    kind: tar::EntryType,
    path: &str,
    mode: u32,
    bytes: &[u8],
) -> io::Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(bytes.len() as u64);
    tar.append_data(&mut header, path, bytes)
}

/// As Go, and so every registry, calls it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn the_parts_of_the_image_name_each_other() {
        let image = DemoImage::pack_blocking().unwrap();
        let manifest: oci_spec::image::ImageManifest = serde_json::from_slice(&image.manifest.bytes).unwrap();
        assert_eq!(manifest.config().digest().to_string(), image.config.digest);
        let [layer] = &manifest.layers()[..] else { panic!("{manifest:?}") };
        assert_eq!(
            (layer.digest().to_string(), layer.size()),
            (image.layer.digest, image.layer.bytes.len() as u64)
        );

        let config: oci_spec::image::ImageConfiguration =
            serde_json::from_slice(&image.config.bytes).unwrap();
        let mut tar = Vec::new();
        flate2::read::GzDecoder::new(&image.layer.bytes[..]).read_to_end(&mut tar).unwrap();
        assert_eq!(config.rootfs().diff_ids(), &[digest(&tar)]);
        let mut archive = tar::Archive::new(&tar[..]);
        let paths: Vec<_> =
            archive.entries().unwrap().map(|e| e.unwrap().path().unwrap().into_owned()).collect();
        assert!(paths.contains(&PATH.into()), "{paths:?}");
    }

    #[test]
    fn a_digest_is_the_one_that_everybody_knows() {
        assert_eq!(digest(b""), "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    }
}
