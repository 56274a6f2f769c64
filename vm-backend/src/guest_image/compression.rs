//! How distributions pack kernels and modules, told by the first bytes.

use std::io::{self, Read};

use flate2::read::GzDecoder;
use lzma_rust2::XzReader;

/// Memory for unpacking xz, whose header says how much it wants: twice the dictionary of 128 MiB that kernels are packed with (scripts/xz_wrap.sh).
const XZ_MEMORY_KIB: u32 = 256 << 10;

/// A format that can be unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compression {
    Gzip,
    Xz,
    Zstd,
}

impl Compression {
    const MAGICS: [(&'static [u8], Self); 3] = [
        (&[0x1f, 0x8b, 0x08], Self::Gzip),
        (&[0xfd, b'7', b'z', b'X', b'Z', 0x00], Self::Xz),
        (&[0x28, 0xb5, 0x2f, 0xfd], Self::Zstd),
    ];

    /// What these bytes are packed with, if they are.
    pub(super) fn of(bytes: &[u8]) -> Option<Self> {
        Self::MAGICS.into_iter().find(|(magic, _)| bytes.starts_with(magic)).map(|(_, kind)| kind)
    }

    /// The contents, of at most `limit` bytes; more is an error, whatever the header promises. What follows them is left alone: the
    /// payload of an EFI zboot image is followed by its size.
    pub(super) fn unpack(self, packed: &[u8], limit: usize) -> io::Result<Vec<u8>> {
        match self {
            Self::Gzip => read(GzDecoder::new(packed), limit),
            Self::Xz => read(XzReader::new_mem_limit(packed, false, XZ_MEMORY_KIB), limit),
            Self::Zstd => read(zstd::Decoder::with_buffer(packed)?.single_frame(), limit),
        }
    }
}

fn read(contents: impl Read, limit: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    contents.take(limit as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > limit {
        let problem = format!("it unpacks to more than {limit} bytes");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, problem));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    /// `printf %s 'guest guest guest' | xz --check=crc32`
    const XZ: &[u8] = &[
        0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00, 0x00, 0x01, 0x69, 0x22, 0xde, 0x36, 0x02, 0x00, 0x21, 0x01, 0x16,
        0x00, 0x00, 0x00, 0x74, 0x2f, 0xe5, 0xa3, 0xe0, 0x00, 0x10, 0x00, 0x0c, 0x5d, 0x00, 0x33, 0x9d, 0x48,
        0xce, 0xf5, 0x8a, 0x02, 0x76, 0x4f, 0x8b, 0x00, 0x00, 0x00, 0x32, 0x17, 0xd6, 0x92, 0x00, 0x01, 0x24,
        0x11, 0x7f, 0x74, 0xde, 0xbb, 0x90, 0x42, 0x99, 0x0d, 0x01, 0x00, 0x00, 0x00, 0x00, 0x01, 0x59, 0x5a,
    ];

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn packed_bytes_come_back_whatever_follows_them() {
        let zstd = zstd::encode_all(&b"guest"[..], 1).unwrap();
        for (packed, kind) in [(gzip(b"guest"), Compression::Gzip), (zstd, Compression::Zstd)] {
            assert_eq!(Compression::of(&packed), Some(kind));
            let followed = [&packed[..], &[5, 0, 0, 0]].concat();
            assert_eq!(kind.unpack(&followed, 5).unwrap(), b"guest", "{kind:?}");
        }
        assert_eq!(Compression::of(XZ), Some(Compression::Xz));
        assert_eq!(Compression::Xz.unpack(XZ, 100).unwrap(), b"guest guest guest");
        assert_eq!(Compression::of(b"\x7fELF"), None);
        assert_eq!(Compression::of(b""), None);
    }

    #[test]
    fn a_bomb_and_a_torn_file_are_errors() {
        let bomb = gzip(&vec![0; 1 << 20]);
        assert_eq!(Compression::Gzip.unpack(&bomb, 1024).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        for (packed, kind) in [(gzip(&[7; 100]), Compression::Gzip), (XZ.to_vec(), Compression::Xz)] {
            let torn = &packed[..packed.len() / 2];
            assert!(kind.unpack(torn, 1024).is_err(), "{kind:?}");
        }
    }
}
