//! The kernel that a guest boots: an uncompressed riscv64 Image, however the distribution packs it.

use std::path::Path;

use super::compression::Compression;
use super::file_error::{FileError, read_file};

/// Larger than any kernel: a file with more is not one, nor a packed one that unpacks to more.
const KERNEL_MAX: usize = 512 << 20;

/// Layers of packing that are taken off: a gzip file that holds an EFI zboot image that holds the kernel.
const PACKINGS_MAX: usize = 3;

/// Where the header of an Image has `RSC\x05` (Documentation/arch/riscv/boot-image-header.rst).
const RISCV_MAGIC_AT: usize = 0x38;
const RISCV_MAGIC: &[u8] = b"RSC\x05";

/// Where the header of an EFI zboot image has `zimg`, and then where its payload begins and how long it is
/// (drivers/firmware/efi/libstub/zboot-header.S).
const ZBOOT_MAGIC_AT: usize = 4;
const ZBOOT_MAGIC: &[u8] = b"zimg";
const ZBOOT_PAYLOAD_AT: usize = 8;
const ZBOOT_LENGTH_AT: usize = 12;

/// Bytes of a release at most (__NEW_UTS_LEN).
const RELEASE_MAX: usize = 64;

/// What the kernel says first, followed by its release (init/version.c).
const BANNER: &[u8] = b"Linux version ";

/// Why a file is no kernel for a guest.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    #[error(transparent)]
    File(#[from] FileError),
    #[error("unpack the kernel")]
    Unpack(#[source] std::io::Error),
    #[error(
        "the kernel is an EFI zboot image whose header makes no sense, or whose payload is packed with something else than gzip, xz or zstd"
    )]
    Zboot,
    #[error("the file is {what}: guests boot a riscv64 Image (plain, gzip, xz, zstd or EFI zboot)")]
    Format { what: &'static str },
    #[error("the kernel does not tell its release")]
    NoRelease,
}

/// A kernel as a guest boots it.
#[derive(Debug)]
pub(super) struct Kernel {
    pub(super) image: Vec<u8>,
    /// `6.12.107+deb13-riscv64`.
    pub(super) release: String,
}

impl Kernel {
    pub(super) fn read(path: &Path) -> Result<Self, KernelError> {
        let image = unpack(read_file(path, KERNEL_MAX)?)?;
        let release = release(&image).ok_or(KernelError::NoRelease)?;
        Ok(Self { image, release })
    }
}

fn unpack(mut bytes: Vec<u8>) -> Result<Vec<u8>, KernelError> {
    for _ in 0..PACKINGS_MAX {
        if holds(&bytes, ZBOOT_MAGIC_AT, ZBOOT_MAGIC) {
            let payload = zboot_payload(&bytes).ok_or(KernelError::Zboot)?;
            let compression = Compression::of(payload).ok_or(KernelError::Zboot)?;
            bytes = compression.unpack(payload, KERNEL_MAX).map_err(KernelError::Unpack)?;
        } else if let Some(compression) = Compression::of(&bytes) {
            bytes = compression.unpack(&bytes, KERNEL_MAX).map_err(KernelError::Unpack)?;
        } else {
            break;
        }
    }
    if holds(&bytes, RISCV_MAGIC_AT, RISCV_MAGIC) {
        Ok(bytes)
    } else {
        Err(KernelError::Format { what: what_it_is(&bytes) })
    }
}

fn holds(bytes: &[u8], at: usize, magic: &[u8]) -> bool {
    bytes.get(at..at + magic.len()) == Some(magic)
}

fn number(bytes: &[u8], at: usize) -> Option<usize> {
    let bytes = bytes.get(at..at + 4)?.try_into().ok()?;
    usize::try_from(u32::from_le_bytes(bytes)).ok()
}

fn zboot_payload(bytes: &[u8]) -> Option<&[u8]> {
    let (at, length) = (number(bytes, ZBOOT_PAYLOAD_AT)?, number(bytes, ZBOOT_LENGTH_AT)?);
    bytes.get(at..at.checked_add(length)?)
}

fn what_it_is(bytes: &[u8]) -> &'static str {
    // Each at the place that the format's own documentation names.
    const KNOWN: [(usize, &[u8], &str); 4] = [
        (0, b"\x7fELF", "an ELF file (a vmlinux, not an Image)"),
        (0x202, b"HdrS", "an x86 bzImage"),
        (RISCV_MAGIC_AT, b"ARM\x64", "an arm64 Image"),
        (0, b"MZ", "a PE file, but no kernel that is known here"),
    ];
    let known = KNOWN.into_iter().find(|(at, magic, _)| holds(bytes, *at, magic));
    known.map_or("no kernel that is known here", |(_, _, what)| what)
}

fn release(image: &[u8]) -> Option<String> {
    // The text is there more than once, once as a format: `Linux version %s`.
    let mut rest = image;
    loop {
        let at = memchr::memmem::find(rest, BANNER)?;
        rest = rest.get(at + BANNER.len()..)?;
        let length = rest.iter().position(|byte| byte.is_ascii_whitespace() || *byte == 0)?;
        let release = std::str::from_utf8(rest.get(..length)?).unwrap_or_default();
        if is_release(release) {
            return Some(release.to_owned());
        }
    }
}

/// It becomes part of paths and messages.
fn is_release(text: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b".+-_~".contains(&byte);
    text.len() <= RELEASE_MAX && text.starts_with(|c: char| c.is_ascii_digit()) && text.bytes().all(plain)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// What begins and speaks like a riscv64 kernel of `release`.
    pub(in super::super) fn image(release: &str) -> Vec<u8> {
        let mut image = vec![0; 4096];
        image[..2].copy_from_slice(b"MZ");
        image[RISCV_MAGIC_AT..][..4].copy_from_slice(RISCV_MAGIC);
        image.extend_from_slice(b"\0Linux version %s (%s)\0\x016Linux version ");
        image.extend_from_slice(release.as_bytes());
        image.extend_from_slice(b" (builder@host)\0");
        image
    }

    fn zboot(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0; 512];
        image[..2].copy_from_slice(b"MZ");
        image[4..8].copy_from_slice(b"zimg");
        image[8..12].copy_from_slice(&512_u32.to_le_bytes());
        image[12..16].copy_from_slice(&u32::try_from(payload.len()).unwrap().to_le_bytes());
        [&image, payload, b"PE sections"].concat()
    }

    #[test]
    fn every_packing_gives_the_same_image() {
        let plain = image("6.12.1-riscv64");
        let zstd = zstd::encode_all(&plain[..], 1).unwrap();
        for packed in
            [plain.clone(), zstd.clone(), zboot(&zstd), zstd::encode_all(&zboot(&zstd)[..], 1).unwrap()]
        {
            assert_eq!(unpack(packed).unwrap(), plain);
        }
        assert_eq!(release(&plain).unwrap(), "6.12.1-riscv64");
    }

    #[test]
    fn what_is_no_riscv_image_is_named() {
        let at = |at: usize, magic: &[u8]| [&vec![0; at][..], magic].concat();
        for (bytes, what) in [
            (at(0, b"\x7fELF\x02"), "an ELF file (a vmlinux, not an Image)"),
            (at(0x202, b"HdrS"), "an x86 bzImage"),
            (at(0x38, b"ARM\x64"), "an arm64 Image"),
            (Vec::new(), "no kernel that is known here"),
        ] {
            match unpack(bytes) {
                Err(KernelError::Format { what: told }) => assert_eq!(told, what),
                other => panic!("{what}: {other:?}"),
            }
        }
    }

    #[test]
    fn a_zboot_header_that_lies_is_an_error() {
        for (at, value) in [(8, u32::MAX), (12, u32::MAX), (8, 4)] {
            let mut lie = zboot(&zstd::encode_all(&b"x"[..], 1).unwrap());
            lie[at..at + 4].copy_from_slice(&value.to_le_bytes());
            assert!(matches!(unpack(lie), Err(KernelError::Zboot)), "{at} {value}");
        }
    }

    #[test]
    fn only_a_file_of_a_kernels_size_is_read() {
        let error = Kernel::read(Path::new("/dev/zero")).unwrap_err();
        assert!(
            matches!(&error, KernelError::File(e) if e.source.kind() == std::io::ErrorKind::InvalidInput)
        );
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vmlinux");
        std::fs::File::create(&path).unwrap().set_len(KERNEL_MAX as u64 + 1).unwrap();
        let error = Kernel::read(&path).unwrap_err();
        assert!(
            matches!(&error, KernelError::File(e) if e.source.kind() == std::io::ErrorKind::FileTooLarge)
        );
    }

    #[test]
    fn a_kernel_that_says_nothing_has_no_release() {
        assert_eq!(release(b"Linux version %s\0Linux version "), None);
        assert_eq!(release(b""), None);
        assert_eq!(release(b"Linux version 6/../../../etc \0Linux version 6.1 "), Some("6.1".to_owned()));
        assert_eq!(release(format!("Linux version {} ", "6".repeat(65)).as_bytes()), None);
    }
}
