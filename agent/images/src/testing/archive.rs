//! Tar archives as attackers and image builders write them.

use std::io::Write;

use tar::Header;

use crate::digest::Digest;

/// Builds an archive entry by entry. Names are bytes, and nothing is checked.
#[derive(Clone, Default)]
pub(crate) struct Tar {
    bytes: Vec<u8>,
}

impl Tar {
    pub(crate) fn new() -> Tar {
        Tar::default()
    }

    /// An entry of any kind; `adjust` has the last word on the header.
    pub(crate) fn entry(
        mut self,
        kind: u8,
        name: &str,
        data: &[u8],
        adjust: impl FnOnce(&mut Header),
    ) -> Tar {
        let mut header = Header::new_ustar();
        let field = &mut header.as_old_mut().name;
        let length = name.len().min(field.len());
        field[..length].copy_from_slice(&name.as_bytes()[..length]);
        header.as_old_mut().linkflag = [kind];
        header.set_mode(if kind == b'5' { 0o755 } else { 0o644 });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_000_000_000);
        header.set_size(data.len() as u64);
        adjust(&mut header);
        header.set_cksum();
        self.bytes.extend_from_slice(header.as_bytes());
        self.bytes.extend_from_slice(data);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self
    }

    pub(crate) fn file(self, name: &str, data: &[u8]) -> Tar {
        self.entry(b'0', name, data, |_| {})
    }

    pub(crate) fn folder(self, name: &str) -> Tar {
        self.entry(b'5', name, b"", |_| {})
    }

    pub(crate) fn symlink(self, name: &str, target: &str) -> Tar {
        self.link(b'2', name, target)
    }

    pub(crate) fn hard_link(self, name: &str, target: &str) -> Tar {
        self.link(b'1', name, target)
    }

    fn link(self, kind: u8, name: &str, target: &str) -> Tar {
        self.entry(kind, name, b"", |header| {
            header.as_old_mut().linkname[..target.len()].copy_from_slice(target.as_bytes());
        })
    }

    /// A PAX extended header for the next entry.
    pub(crate) fn pax(self, records: &[(&str, &[u8])]) -> Tar {
        let mut body = Vec::new();
        for (key, value) in records {
            let rest = key.len() + value.len() + 3;
            let length =
                (1..).map(|digits| rest + digits).find(|total| total.to_string().len() + rest == *total);
            body.extend_from_slice(format!("{} {key}=", length.unwrap()).as_bytes());
            body.extend_from_slice(value);
            body.push(b'\n');
        }
        self.entry(b'x', "pax", &body, |_| {})
    }

    /// The archive with its end.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.bytes.resize(self.bytes.len() + 1024, 0);
        self.bytes
    }

    /// The archive without its end.
    pub(crate) fn cut(self) -> Vec<u8> {
        self.bytes
    }
}

/// A layer with the digests that a manifest and a configuration say it has.
#[derive(Clone, Debug)]
pub(crate) struct Layer {
    pub(crate) blob: Vec<u8>,
    pub(crate) digest: Digest,
    pub(crate) diff_id: Digest,
}

impl Layer {
    pub(crate) fn plain(tar: &[u8]) -> Layer {
        Layer { blob: tar.to_vec(), digest: Digest::of(tar), diff_id: Digest::of(tar) }
    }

    pub(crate) fn gzip(tar: &[u8]) -> Layer {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(tar).unwrap();
        Layer::compressed(encoder.finish().unwrap(), tar)
    }

    pub(crate) fn zstd(tar: &[u8]) -> Layer {
        Layer::compressed(zstd::encode_all(tar, 1).unwrap(), tar)
    }

    fn compressed(blob: Vec<u8>, tar: &[u8]) -> Layer {
        Layer { digest: Digest::of(&blob), diff_id: Digest::of(tar), blob }
    }
}
