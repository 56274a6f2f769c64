//! The header of a kernel Image (Linux Documentation/arch/riscv/boot-image-header.rst).

/// Bytes of the header.
pub const HEADER_SIZE: usize = 64;
/// "RSC\x05", little-endian.
const MAGIC2: u32 = 0x0543_5352;
/// Bit 0 of flags: the kernel is big-endian.
const FLAG_BIG_ENDIAN: u64 = 1;
/// Linux puts 2 MiB on 64-bit machines; more than 1 GiB is no kernel.
const MAX_TEXT_OFFSET: u64 = 1 << 30;
/// Distribution kernels have some 30 MiB.
const MAX_IMAGE_SIZE: u64 = 1 << 30;
const PAGE: u64 = 4096;

/// What a loader needs of the header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageHeader {
    /// Where the image goes, from a 2 MiB boundary of RAM. A multiple of 4096.
    pub text_offset: u64,
    /// Bytes from its start to the end of its BSS: more than the file has.
    pub image_size: u64,
}

/// Why a file is no Image for this machine.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ImageError {
    #[error("{size} bytes are too short for an Image")]
    Short { size: u64 },
    #[error("it is compressed ({how}); it must be the plain Image")]
    Compressed { how: &'static str },
    #[error("no riscv Image: its magic number is {found:#010x}")]
    Magic { found: u32 },
    #[error("it is for a big-endian machine")]
    BigEndian,
    #[error("its text offset {0:#x} is no multiple of 4096 below 1 GiB")]
    TextOffset(u64),
    #[error("its size in memory is said to be {image_size:#x}, which is below 64 bytes or above 1 GiB")]
    ImageSize { image_size: u64 },
    #[error("the file has {file} bytes, more than the {image_size} that it says it takes in memory")]
    Longer { file: u64, image_size: u64 },
}

impl ImageHeader {
    /// Reads the header of a file of `file` bytes.
    ///
    /// # Errors
    /// It is no plain little-endian Image, or its sizes make no sense.
    pub fn parse(header: &[u8; HEADER_SIZE], file: u64) -> Result<Self, ImageError> {
        if file < HEADER_SIZE as u64 {
            return Err(ImageError::Short { size: file });
        }
        if let Some(how) = compression(header) {
            return Err(ImageError::Compressed { how });
        }
        let magic = u32_at(header, 56);
        if magic != MAGIC2 {
            return Err(ImageError::Magic { found: magic });
        }
        let (text_offset, image_size, flags) = (u64_at(header, 8), u64_at(header, 16), u64_at(header, 24));
        if flags & FLAG_BIG_ENDIAN != 0 {
            return Err(ImageError::BigEndian);
        }
        if text_offset % PAGE != 0 || text_offset > MAX_TEXT_OFFSET {
            return Err(ImageError::TextOffset(text_offset));
        }
        if !(HEADER_SIZE as u64..=MAX_IMAGE_SIZE).contains(&image_size) {
            return Err(ImageError::ImageSize { image_size });
        }
        if file > image_size {
            return Err(ImageError::Longer { file, image_size });
        }
        Ok(Self { text_offset, image_size })
    }
}

/// By the first bytes, for a message that helps.
fn compression(header: &[u8]) -> Option<&'static str> {
    const KNOWN: [(&[u8], &str); 5] = [
        (b"\x1f\x8b", "gzip"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
        (b"\xfd7zXZ", "xz"),
        (b"\x02\x21\x4c\x18", "lz4"),
        (b"\x04\x22\x4d\x18", "lz4"),
    ];
    // An EFI zboot image: MZ, then "zimg".
    if header.get(4..8) == Some(b"zimg") {
        return Some("EFI zboot");
    }
    KNOWN.iter().find(|(magic, _)| header.starts_with(magic)).map(|(_, how)| *how)
}

fn u32_at(header: &[u8; HEADER_SIZE], at: usize) -> u32 {
    u32::from_le_bytes(std::array::from_fn(|i| header[at + i]))
}

fn u64_at(header: &[u8; HEADER_SIZE], at: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|i| header[at + i]))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Debian 13's kernel has it.
    fn debian() -> [u8; HEADER_SIZE] {
        let mut header = [0; HEADER_SIZE];
        header[..2].copy_from_slice(b"MZ");
        header[8..16].copy_from_slice(&0x20_0000_u64.to_le_bytes());
        header[16..24].copy_from_slice(&0x1e6_b000_u64.to_le_bytes());
        header[32..36].copy_from_slice(&2_u32.to_le_bytes());
        header[48..56].copy_from_slice(b"RISCV\0\0\0");
        header[56..60].copy_from_slice(b"RSC\x05");
        header
    }

    #[test]
    fn the_stock_kernels_header_is_read() {
        let header = ImageHeader::parse(&debian(), 31_165_952).unwrap();
        assert_eq!(header, ImageHeader { text_offset: 0x20_0000, image_size: 0x1e6_b000 });
    }

    #[test]
    fn headers_that_lie_are_refused() {
        let with = |at: usize, bytes: &[u8]| {
            let mut header = debian();
            header[at..at + bytes.len()].copy_from_slice(bytes);
            ImageHeader::parse(&header, 31_165_952)
        };
        assert_eq!(with(56, b"ARM\x64"), Err(ImageError::Magic { found: 0x644d_5241 }));
        assert_eq!(with(24, &[1]), Err(ImageError::BigEndian));
        assert!(matches!(with(8, &[1]), Err(ImageError::TextOffset(_))));
        assert!(matches!(with(8, &[0xff; 8]), Err(ImageError::TextOffset(_))));
        assert!(matches!(with(16, &[0xff; 8]), Err(ImageError::ImageSize { .. })));
        assert!(matches!(with(16, &[0; 8]), Err(ImageError::ImageSize { .. })));
        assert!(matches!(with(16, &0x1000_u64.to_le_bytes()), Err(ImageError::Longer { .. })));
    }

    #[test]
    fn a_compressed_kernel_is_told_by_name() {
        let mut header = debian();
        header[..2].copy_from_slice(b"\x1f\x8b");
        assert_eq!(ImageHeader::parse(&header, 9000), Err(ImageError::Compressed { how: "gzip" }));
        let mut header = debian();
        header[4..8].copy_from_slice(b"zimg");
        assert_eq!(ImageHeader::parse(&header, 9000), Err(ImageError::Compressed { how: "EFI zboot" }));
    }

    #[test]
    fn an_empty_file_is_too_short() {
        assert_eq!(ImageHeader::parse(&[0; HEADER_SIZE], 0), Err(ImageError::Short { size: 0 }));
    }
}
