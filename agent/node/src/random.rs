//! Random bytes from the kernel.

use std::fmt::Write as _;
use std::fs::File;
use std::io::{self, Read as _};

/// `N` random bytes.
pub(crate) fn bytes<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}

/// `N` random bytes as hexadecimal digits.
pub(crate) fn hex<const N: usize>() -> io::Result<String> {
    let mut text = String::with_capacity(2 * N);
    for byte in bytes::<N>()? {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    Ok(text)
}
