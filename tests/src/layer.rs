//! Image layers, entry by entry: honest ones and hostile ones.

use std::io::Write as _;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};
use tar::{Builder, EntryType, Header};

/// `sha256:` and 64 hexadecimal digits.
pub fn digest(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// How a layer's blob is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    Plain,
    Gzip,
    Zstd,
}

/// A layer that is being put together.
pub struct LayerBuilder {
    tar: Builder<Vec<u8>>,
}

impl std::fmt::Debug for LayerBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("LayerBuilder").field("bytes", &self.tar.get_ref().len()).finish()
    }
}

/// A finished layer.
#[derive(Debug, Clone)]
pub struct Layer {
    pub media_type: &'static str,
    pub blob: Vec<u8>,
    /// Digest of the unpacked tar.
    pub diff_id: String,
}

/// Who owns an entry and what may be done with it.
#[derive(Debug, Clone, Copy)]
pub struct Attributes {
    pub mode: u32,
    pub uid: u64,
    pub gid: u64,
}

impl Attributes {
    /// Root's, with this mode.
    pub const fn mode(mode: u32) -> Self {
        Self { mode, uid: 0, gid: 0 }
    }
}

impl Default for LayerBuilder {
    fn default() -> Self {
        Self::new()
    }
}

impl LayerBuilder {
    pub fn new() -> Self {
        Self { tar: Builder::new(Vec::new()) }
    }

    pub fn dir(self, path: &str, mode: u32) -> Result<Self> {
        self.entry(path, EntryType::Directory, Attributes::mode(mode), "", b"")
    }

    pub fn file(self, path: &str, mode: u32, content: &[u8]) -> Result<Self> {
        self.entry(path, EntryType::Regular, Attributes::mode(mode), "", content)
    }

    pub fn owned_file(self, path: &str, attributes: Attributes, content: &[u8]) -> Result<Self> {
        self.entry(path, EntryType::Regular, attributes, "", content)
    }

    pub fn symlink(self, path: &str, target: &str) -> Result<Self> {
        self.entry(path, EntryType::Symlink, Attributes::mode(0o777), target, b"")
    }

    pub fn hard_link(self, path: &str, target: &str) -> Result<Self> {
        self.entry(path, EntryType::Link, Attributes::mode(0o755), target, b"")
    }

    /// A whiteout: the lower layers' `path` is gone.
    pub fn without(self, path: &str) -> Result<Self> {
        let (dir, name) = path.rsplit_once('/').map_or(("", path), |(dir, name)| (dir, name));
        let slash = if dir.is_empty() { "" } else { "/" };
        self.file(&format!("{dir}{slash}.wh.{name}"), 0o644, b"")
    }

    /// An opaque folder: nothing of the lower layers' `dir` shows.
    pub fn opaque(self, dir: &str) -> Result<Self> {
        self.dir(dir, 0o755)?.file(&format!("{dir}/.wh..wh..opq"), 0o644, b"")
    }

    pub fn char_device(mut self, path: &str, major: u32, minor: u32) -> Result<Self> {
        let mut header = header(path, EntryType::Char, Attributes::mode(0o666), "", 0)?;
        header.set_device_major(major)?;
        header.set_device_minor(minor)?;
        header.set_cksum();
        self.tar.append(&header, &b""[..]).with_context(|| format!("add {path}"))?;
        Ok(self)
    }

    /// Any entry, its name and link target as they are: `..`, absolute paths, anything.
    pub fn entry(
        mut self,
        path: &str,
        kind: EntryType,
        attributes: Attributes,
        link: &str,
        content: &[u8],
    ) -> Result<Self> {
        let header = header(path, kind, attributes, link, content.len() as u64)?;
        self.tar.append(&header, content).with_context(|| format!("add {path}"))?;
        Ok(self)
    }

    /// An entry whose header promises `size` bytes of zeros.
    pub fn zeros(mut self, path: &str, size: u64) -> Result<Self> {
        let header = header(path, EntryType::Regular, Attributes::mode(0o644), "", size)?;
        self.tar.append(&header, std::io::Read::take(std::io::repeat(0), size))?;
        Ok(self)
    }

    pub fn build(self, packing: Packing) -> Result<Layer> {
        let tar = self.tar.into_inner().context("close tar")?;
        let (media_type, blob) = match packing {
            Packing::Plain => ("application/vnd.oci.image.layer.v1.tar", tar.clone()),
            Packing::Gzip => ("application/vnd.oci.image.layer.v1.tar+gzip", gzip(&tar)?),
            Packing::Zstd => (
                "application/vnd.oci.image.layer.v1.tar+zstd",
                zstd::encode_all(&tar[..], 1).context("zstd")?,
            ),
        };
        Ok(Layer { media_type, blob, diff_id: digest(&tar) })
    }
}

fn gzip(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).context("gzip")?;
    encoder.finish().context("gzip")
}

/// The name is written byte for byte: `Header::set_path` refuses what a hostile layer has.
fn header(path: &str, kind: EntryType, attributes: Attributes, link: &str, size: u64) -> Result<Header> {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(attributes.mode);
    header.set_uid(attributes.uid);
    header.set_gid(attributes.gid);
    header.set_mtime(1_000_000_000);
    header.set_size(size);
    let old = header.as_old_mut();
    anyhow::ensure!(path.len() <= old.name.len() && link.len() <= old.linkname.len(), "{path} is too long");
    old.name[..path.len()].copy_from_slice(path.as_bytes());
    old.linkname[..link.len()].copy_from_slice(link.as_bytes());
    header.set_cksum();
    Ok(header)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hostile_name_stays_as_it_is() {
        let layer =
            LayerBuilder::new().file("../../etc/x", 0o644, b"hi").unwrap().build(Packing::Plain).unwrap();
        let mut archive = tar::Archive::new(&layer.blob[..]);
        let entry = archive.entries().unwrap().next().unwrap().unwrap();
        assert_eq!(&*entry.path_bytes(), b"../../etc/x");
        assert_eq!(layer.diff_id, digest(&layer.blob));
    }

    #[test]
    fn every_packing_holds_the_same_tar() {
        let layer = |packing| LayerBuilder::new().file("a", 0o644, b"hi").unwrap().build(packing).unwrap();
        let plain = layer(Packing::Plain);
        let gzip = layer(Packing::Gzip);
        let zstd = layer(Packing::Zstd);
        assert_eq!([&gzip.diff_id, &zstd.diff_id], [&plain.diff_id; 2]);
        assert_eq!(gzip.blob[..2], [0x1f, 0x8b]);
        assert_eq!(zstd.blob[..4], [0x28, 0xb5, 0x2f, 0xfd]);
    }
}
