//! The list of a layer's files, kept beside it so that `images check` can tell later whether the disk still holds what was pulled.
//!
//! zstd-compressed lines, fields separated by one space, bytes outside of `!`..`~` and backslashes as `\xHH`:
//!
//! ```text
//! hartpod-layer 1
//! d <mode> <uid> <gid> <path>
//! f <mode> <uid> <gid> <size> <sha256> <path>
//! l <uid> <gid> <target> <path>          symlink
//! h <target> <path>                      hard link
//! p <mode> <uid> <gid> <path>            fifo
//! w <path>                               whiteout
//! o <path>                               opaque folder
//! i <path>                               folder that the archive did not list
//! ```
//!
//! A later line about a path replaces earlier ones.

use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use crate::file_error::{At, FileError};

const HEADER: &str = "hartpod-layer 1";
/// Hashes do not compress and names compress well at any level.
const LEVEL: i32 = 1;

/// What one line says besides the path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ListedKind<'a> {
    Folder { mode: u32, uid: u32, gid: u32 },
    File { mode: u32, uid: u32, gid: u32, size: u64, sha256: &'a str },
    Symlink { uid: u32, gid: u32, target: &'a [u8] },
    HardLink { target: &'a [u8] },
    Fifo { mode: u32, uid: u32, gid: u32 },
    Whiteout,
    Opaque,
    Implied,
}

/// Writes a list.
pub(crate) struct FileList {
    out: zstd::Encoder<'static, BufWriter<File>>,
    path: PathBuf,
}

impl FileList {
    pub(crate) fn create(path: &Path) -> Result<FileList, FileError> {
        let file = File::options().write(true).create_new(true).open(path).at("create", path)?;
        let out = zstd::Encoder::new(BufWriter::new(file), LEVEL).at("compress", path)?;
        let mut list = FileList { out, path: path.to_owned() };
        list.line(HEADER)?;
        Ok(list)
    }

    pub(crate) fn add(&mut self, path: &[u8], kind: ListedKind<'_>) -> Result<(), FileError> {
        let path = escape(path);
        self.line(&match kind {
            ListedKind::Folder { mode, uid, gid } => format!("d {mode:04o} {uid} {gid} {path}"),
            ListedKind::File { mode, uid, gid, size, sha256 } => {
                format!("f {mode:04o} {uid} {gid} {size} {sha256} {path}")
            }
            ListedKind::Symlink { uid, gid, target } => format!("l {uid} {gid} {} {path}", escape(target)),
            ListedKind::HardLink { target } => format!("h {} {path}", escape(target)),
            ListedKind::Fifo { mode, uid, gid } => format!("p {mode:04o} {uid} {gid} {path}"),
            ListedKind::Whiteout => format!("w {path}"),
            ListedKind::Opaque => format!("o {path}"),
            ListedKind::Implied => format!("i {path}"),
        })
    }

    fn line(&mut self, line: &str) -> Result<(), FileError> {
        self.out.write_all(line.as_bytes()).and_then(|()| self.out.write_all(b"\n")).at("write", &self.path)
    }

    /// Completes the file and tells its size.
    pub(crate) fn finish(self) -> Result<u64, FileError> {
        let out = self.out.finish().at("write", &self.path)?;
        let file = out.into_inner().map_err(|error| error.into_error()).at("write", &self.path)?;
        Ok(file.metadata().at("stat", &self.path)?.len())
    }
}

/// Reads a list and hands every path with its fields (first the kind) to `each`.
pub(crate) fn read_list(path: &Path, mut each: impl FnMut(Vec<u8>, &[&str])) -> Result<(), FileError> {
    let broken = || std::io::Error::new(std::io::ErrorKind::InvalidData, "not a list of a layer's files");
    let file = File::open(path).at("open", path)?;
    let decoder = zstd::Decoder::new(file).at("decompress", path)?;
    let mut lines = BufReader::new(decoder);
    let mut line = String::new();
    let mut first = true;
    loop {
        line.clear();
        // The longest line has a target and a path, each byte of them escaped.
        let read = (&mut lines).take(64 << 10).read_line(&mut line).at("read", path)?;
        if read == 0 && !first {
            return Ok(());
        }
        let text = line.strip_suffix('\n').ok_or_else(broken).at("read", path)?;
        if std::mem::take(&mut first) {
            if text != HEADER {
                return Err(broken()).at("read", path);
            }
            continue;
        }
        let fields: Vec<&str> = text.split(' ').collect();
        let (name, fields) = fields.split_last().ok_or_else(broken).at("read", path)?;
        each(unescape(name).ok_or_else(broken).at("read", path)?, fields);
    }
}

fn escape(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for &byte in bytes {
        match byte {
            b'!'..=b'~' if byte != b'\\' => text.push(char::from(byte)),
            other => text.push_str(&format!("\\x{other:02x}")),
        }
    }
    text
}

fn unescape(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        if first != b'\\' {
            bytes.push(first);
            rest = after;
            continue;
        }
        let digits = std::str::from_utf8(after.strip_prefix(b"x")?.get(..2)?).ok()?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = &after[3..];
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_reads_back_whatever_the_names() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("list");
        let odd: Vec<u8> = (1..=255).filter(|&b| b != b'/').collect();
        let mut list = FileList::create(&path).unwrap();
        list.add(&odd, ListedKind::File { mode: 0o4755, uid: 1, gid: 2, size: 3, sha256: "ab" }).unwrap();
        list.add(b"a b", ListedKind::Symlink { uid: 0, gid: 0, target: b"x y" }).unwrap();
        list.add(b"", ListedKind::Opaque).unwrap();
        list.finish().unwrap();

        let mut seen = Vec::new();
        read_list(&path, |name, fields| seen.push((name, fields.join(" ")))).unwrap();
        assert_eq!(
            seen,
            [
                (odd, "f 4755 1 2 3 ab".to_owned()),
                (b"a b".to_vec(), "l 0 0 x\\x20y".to_owned()),
                (b"".to_vec(), "o".to_owned()),
            ]
        );
    }

    #[test]
    fn another_file_is_no_list() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("list");
        for content in [&b""[..], b"hartpod-layer 2\n", b"hartpod-layer 1\nd", b"hartpod-layer 1\nw \\x\n"] {
            std::fs::write(&path, zstd::encode_all(content, 1).unwrap()).unwrap();
            assert!(read_list(&path, |_, _| {}).is_err(), "{}", content.escape_ascii());
        }
    }
}
