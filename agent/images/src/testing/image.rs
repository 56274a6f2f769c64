//! Images for tests.

use serde_json::json;

use super::archive::Layer;
use crate::digest::Digest;

pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// An image for this machine.
#[derive(Clone, Debug)]
pub(crate) struct TestImage {
    pub(crate) layers: Vec<Layer>,
    pub(crate) config: Vec<u8>,
    pub(crate) manifest: Vec<u8>,
}

/// This machine's architecture as Go calls it.
pub(crate) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

impl TestImage {
    pub(crate) fn new(layers: Vec<Layer>) -> TestImage {
        let config = json!({
            "architecture": architecture(), "os": "linux",
            "config": {"Cmd": ["/bin/sh"], "Labels": {"layers": layers.len().to_string()}},
            "rootfs": {"type": "layers", "diff_ids": layers.iter().map(|l| l.diff_id.to_string()).collect::<Vec<_>>()},
        });
        TestImage::with_config(layers, config)
    }

    pub(crate) fn with_config(layers: Vec<Layer>, config: serde_json::Value) -> TestImage {
        let config = config.to_string().into_bytes();
        let descriptors = layers.iter().map(|layer| {
            json!({
                "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
                "digest": layer.digest.to_string(), "size": layer.blob.len(),
            })
        });
        let manifest = json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": {
                "mediaType": "application/vnd.oci.image.config.v1+json",
                "digest": Digest::of(&config).to_string(), "size": config.len(),
            },
            "layers": descriptors.collect::<Vec<_>>(),
        });
        TestImage { layers, config, manifest: manifest.to_string().into_bytes() }
    }

    pub(crate) fn id(&self) -> String {
        Digest::of(&self.config).to_string()
    }

    pub(crate) fn digest(&self) -> Digest {
        Digest::of(&self.manifest)
    }

    /// An index with this image for this machine, and nothing behind the other platforms.
    pub(crate) fn index(&self) -> Vec<u8> {
        let entry = |digest: &Digest, architecture: &str| {
            json!({
                "mediaType": MANIFEST, "digest": digest.to_string(), "size": self.manifest.len(),
                "platform": {"os": "linux", "architecture": architecture},
            })
        };
        let missing = Digest::of(b"missing");
        json!({
            "schemaVersion": 2, "mediaType": INDEX,
            "manifests": [entry(&missing, "s390x"), entry(&self.digest(), architecture()), entry(&missing, "unknown")],
        })
        .to_string()
        .into_bytes()
    }

    /// Writes an OCI image layout.
    pub(crate) fn write_layout(&self, folder: &std::path::Path, name: Option<&str>) {
        let blobs = folder.join("blobs/sha256");
        std::fs::create_dir_all(&blobs).unwrap();
        let all = self.layers.iter().map(|layer| &layer.blob).chain([&self.config, &self.manifest]);
        for blob in all {
            std::fs::write(blobs.join(Digest::of(blob).hex()), blob).unwrap();
        }
        let mut entry = json!({
            "mediaType": MANIFEST, "digest": self.digest().to_string(), "size": self.manifest.len(),
        });
        if let Some(name) = name {
            entry["annotations"] = json!({"org.opencontainers.image.ref.name": name});
        }
        let index = json!({"schemaVersion": 2, "manifests": [entry]});
        std::fs::write(folder.join("index.json"), index.to_string()).unwrap();
        std::fs::write(folder.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
    }
}
