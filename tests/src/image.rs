//! OCI images made in memory from layers, for one platform or several.

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::layer::{Layer, LayerBuilder, Packing, digest};
use crate::skip::BUSYBOX;

pub const MANIFEST_TYPE: &str = "application/vnd.oci.image.manifest.v1+json";
pub const INDEX_TYPE: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";

/// This machine's architecture as images name it.
pub const ARCHITECTURE: &str = if cfg!(target_arch = "x86_64") {
    "amd64"
} else if cfg!(target_arch = "riscv64") {
    "riscv64"
} else {
    "arm64"
};

/// A manifest or index: what is pushed under a tag, and the blobs that it needs.
#[derive(Debug, Clone)]
pub struct Image {
    pub media_type: &'static str,
    pub manifest: Vec<u8>,
    /// Digest and content of the config and the layers.
    pub blobs: Vec<(String, Vec<u8>)>,
    /// An index's manifests.
    pub children: Vec<Image>,
}

/// An image that is being put together; fields may be changed to make it wrong.
#[derive(Debug, Clone)]
pub struct ImageBuilder {
    pub architecture: String,
    /// The `config` object of the image config: `Env`, `Cmd`, `User`, `StopSignal` ..
    pub config: Value,
    pub layers: Vec<Layer>,
}

impl ImageBuilder {
    pub fn new(layers: Vec<Layer>) -> Self {
        let path = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
        let config = json!({ "Env": [path], "Cmd": ["sh"] });
        Self { architecture: ARCHITECTURE.into(), config, layers }
    }

    /// Sets one key of the config, such as `User`.
    #[must_use]
    pub fn with(mut self, key: &str, value: Value) -> Self {
        self.config[key] = value;
        self
    }

    #[must_use]
    pub fn layer(mut self, layer: Layer) -> Self {
        self.layers.push(layer);
        self
    }

    #[must_use]
    pub fn architecture(mut self, architecture: &str) -> Self {
        architecture.clone_into(&mut self.architecture);
        self
    }

    pub fn build(self) -> Result<Image> {
        let diff_ids: Vec<&str> = self.layers.iter().map(|layer| layer.diff_id.as_str()).collect();
        let config = serde_json::to_vec(&json!({
            "architecture": self.architecture, "os": "linux", "created": "2026-01-01T00:00:00Z",
            "config": self.config, "rootfs": { "type": "layers", "diff_ids": diff_ids },
        }))?;
        let layers: Vec<Value> =
            self.layers.iter().map(|layer| descriptor(layer.media_type, &layer.blob)).collect();
        let manifest = serde_json::to_vec(&json!({
            "schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": descriptor(CONFIG_TYPE, &config), "layers": layers,
        }))?;
        let mut blobs = vec![(digest(&config), config)];
        blobs.extend(self.layers.into_iter().map(|layer| (digest(&layer.blob), layer.blob)));
        Ok(Image { media_type: MANIFEST_TYPE, manifest, blobs, children: Vec::new() })
    }
}

impl Image {
    /// An index over images and the architectures that they are for.
    pub fn index(children: Vec<(&str, Image)>) -> Result<Self> {
        let entry = |(architecture, image): &(&str, Image)| {
            let mut entry = descriptor(image.media_type, &image.manifest);
            entry["platform"] = json!({ "architecture": architecture, "os": "linux" });
            entry
        };
        let manifests: Vec<Value> = children.iter().map(entry).collect();
        let manifest = serde_json::to_vec(&json!({
            "schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": manifests,
        }))?;
        let children = children.into_iter().map(|(_, image)| image).collect();
        Ok(Self { media_type: INDEX_TYPE, manifest, blobs: Vec::new(), children })
    }

    /// The digest that a reference by digest names.
    pub fn digest(&self) -> String {
        digest(&self.manifest)
    }

    /// The image's id: the digest of its config.
    pub fn id(&self) -> Result<String> {
        let (digest, _) = self.blobs.first().context("an index has no config of its own")?;
        Ok(digest.clone())
    }
}

fn descriptor(media_type: &str, content: &[u8]) -> Value {
    json!({ "mediaType": media_type, "digest": digest(content), "size": content.len() })
}

/// Users and groups of the test image: `app` is in `audio` and `games` besides its own group.
const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\n\
    nobody:x:65534:65534:nobody:/:/bin/false\n\
    app:x:1000:1000:app:/home/app:/bin/sh\n";
const GROUP: &str =
    "root:x:0:\nnobody:x:65534:\napp:x:1000:\naudio:x:29:app\ngames:x:60:app,root\nwheel:x:10:\n";

/// Programs that Debian's static busybox has; each is a link to it.
const APPLETS: &[&str] = &[
    "sh", "ash", "cat", "chmod", "chown", "cp", "cut", "date", "dd", "df", "echo", "env", "expr", "false",
    "find", "grep", "head", "hostname", "httpd", "id", "ip", "kill", "ln", "ls", "mkdir", "mknod", "mkfifo",
    "mount", "mv", "nc", "nproc", "ping", "printf", "ps", "pwd", "readlink", "rm", "sed", "seq", "setsid",
    "sleep", "sort", "stat", "sync", "tail", "test", "timeout", "touch", "tr", "true", "umount", "uname",
    "unshare", "usleep", "wc", "wget", "which", "whoami", "yes", "hexdump", "mktemp",
];

/// The image that most tests run: busybox in a gzip layer, files in a zstd layer, whiteouts in a plain one.
pub fn busybox() -> Result<ImageBuilder> {
    Ok(ImageBuilder::new(vec![system_layer()?, files_layer()?, whiteout_layer()?]))
}

fn system_layer() -> Result<Layer> {
    let busybox = std::fs::read(BUSYBOX).with_context(|| format!("read {BUSYBOX}"))?;
    let mut layer = LayerBuilder::new();
    for dir in ["bin", "dev", "etc", "home", "proc", "root", "run", "sys", "usr", "usr/bin", "var", "var/log"]
    {
        layer = layer.dir(dir, 0o755)?;
    }
    layer = layer.dir("tmp", 0o1777)?.file("bin/busybox", 0o755, &busybox)?;
    for applet in APPLETS {
        layer = layer.hard_link(&format!("bin/{applet}"), "bin/busybox")?;
    }
    layer.build(Packing::Gzip)
}

fn files_layer() -> Result<Layer> {
    let app = crate::layer::Attributes { mode: 0o640, uid: 1000, gid: 29 };
    LayerBuilder::new()
        .file("etc/passwd", 0o644, PASSWD.as_bytes())?
        .file("etc/group", 0o644, GROUP.as_bytes())?
        .dir("home/app", 0o755)?
        .owned_file("home/app/notes", app, b"notes\n")?
        .file("etc/gone", 0o644, b"the next layer takes this away\n")?
        .dir("opt", 0o755)?
        .dir("opt/hidden", 0o755)?
        .file("opt/hidden/below", 0o644, b"an opaque folder hides this\n")?
        .file("etc/not-executable", 0o644, b"#!/bin/sh\n")?
        .symlink("etc/absolute", "/etc/passwd")?
        .symlink("etc/upwards", "../../../../etc/passwd")?
        .build(Packing::Zstd)
}

fn whiteout_layer() -> Result<Layer> {
    LayerBuilder::new()
        .without("etc/gone")?
        .opaque("opt/hidden")?
        .file("opt/hidden/above", 0o644, b"seen\n")?
        .build(Packing::Plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_names_the_manifests_of_its_children() {
        let layer = LayerBuilder::new().file("a", 0o644, b"x").unwrap().build(Packing::Gzip).unwrap();
        let image = ImageBuilder::new(vec![layer]).with("User", "app".into()).build().unwrap();
        let index = Image::index(vec![("riscv64", image.clone()), ("amd64", image.clone())]).unwrap();
        let parsed: Value = serde_json::from_slice(&index.manifest).unwrap();
        assert_eq!(parsed["manifests"][1]["digest"], image.digest());
        assert_eq!(parsed["manifests"][0]["platform"]["architecture"], "riscv64");
        let config: Value = serde_json::from_slice(&image.blobs[0].1).unwrap();
        assert_eq!(config["config"]["User"], "app");
        assert_eq!(image.id().unwrap(), digest(&image.blobs[0].1));
    }
}
