//! Entries of a tar archive, read from a stream.
//!
//! The `tar` crate gives the header layouts; the loop is ours, because its iterator reads the body of an extended header into
//! memory whatever its size, and follows the size that the header of a link has, where Go (which writes nearly all layers) does not.

use std::io::{self, ErrorKind, Read};

use tar::Header;

use super::entry_path::printable;
use super::error::EntryProblem;
use super::pax::Overrides;

const BLOCK: usize = 512;
/// The most bytes of extended headers and long names before one entry. Go's archive/tar has the same limit.
const MAX_EXTENSION: u64 = 1 << 20;

/// What is wrong while reading or unpacking an archive. The caller knows which layer it was.
#[derive(Debug)]
pub(super) enum Fault {
    /// The stream below failed.
    Stream(io::Error),
    /// No tar archive.
    Archive(&'static str),
    /// One entry.
    Entry { path: String, problem: EntryProblem },
    /// An entry says that it is larger than what is allowed.
    TooLarge,
    /// Too many of them.
    TooManyEntries { limit: u64 },
    /// Too many folders with too long names.
    TooManyNames { limit: usize },
    /// The disk.
    File(crate::file_error::FileError),
}

impl From<crate::file_error::FileError> for Fault {
    fn from(error: crate::file_error::FileError) -> Fault {
        Fault::File(error)
    }
}

impl Fault {
    pub(super) fn entry(path: &[u8], problem: EntryProblem) -> Fault {
        Fault::Entry { path: printable(path), problem }
    }
}

/// What an entry is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    File,
    HardLink,
    Symlink,
    /// Character or block device.
    Device,
    Folder,
    Fifo,
}

/// The header of one entry, extensions applied.
#[derive(Debug)]
pub(super) struct Entry {
    /// As it stands in the archive.
    pub(super) path: Vec<u8>,
    pub(super) kind: Kind,
    /// Permission bits and setuid, setgid, sticky.
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Seconds and nanoseconds.
    pub(super) mtime: (i64, u32),
    /// Bytes of a file; 0 for all else.
    pub(super) size: u64,
    /// Target of a link.
    pub(super) link: Vec<u8>,
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Reads entries one by one. The current entry's data is read through [`Read`].
pub(super) struct Archive<R> {
    stream: R,
    /// Data bytes of the current entry that were not read yet.
    data: u64,
    /// Bytes from the end of its data to the next header.
    padding: u64,
    entries: u64,
    max_entries: u64,
}

impl<R: Read> Archive<R> {
    pub(super) fn new(stream: R, max_entries: u64) -> Archive<R> {
        Archive { stream, data: 0, padding: 0, entries: 0, max_entries }
    }

    pub(super) fn into_stream(self) -> R {
        self.stream
    }

    pub(super) fn stream(&self) -> &R {
        &self.stream
    }

    /// The next entry; what was not read of the current one is skipped.
    pub(super) fn next_entry(&mut self) -> Result<Option<Entry>, Fault> {
        let mut extensions = Extensions::default();
        loop {
            let rest = self.data + self.padding;
            self.skip(rest)?;
            (self.data, self.padding) = (0, 0);
            let Some(header) = self.header()? else {
                return match extensions.used {
                    0 => Ok(None),
                    _ => Err(Fault::Archive("an extended header at the end")),
                };
            };
            self.entries += 1;
            if self.entries > self.max_entries {
                return Err(Fault::TooManyEntries { limit: self.max_entries });
            }
            let size = number(&header.as_old().size).ok_or(Fault::Archive("a size that is no number"))?;
            match header.as_old().linkflag[0] {
                b'x' => {
                    let body = self.extension(&header, size, &mut extensions)?;
                    let added = extensions.pax.add(&body);
                    added.map_err(|problem| Fault::entry(&header.path_bytes(), problem))?;
                }
                b'L' => extensions.path = Some(cut(self.extension(&header, size, &mut extensions)?)),
                b'K' => extensions.link = Some(cut(self.extension(&header, size, &mut extensions)?)),
                // Global headers hold comments (git archive); containerd passes over them too.
                b'g' => drop(self.extension(&header, size, &mut extensions)?),
                _ => return self.entry(&header, size, extensions).map(Some),
            }
        }
    }

    /// A header block; None at the end of the archive.
    fn header(&mut self) -> Result<Option<Header>, Fault> {
        let mut header = Header::new_old();
        match self.fill(header.as_mut_bytes())? {
            0 => return Ok(None),
            BLOCK => {}
            _ => return Err(Fault::Archive("it ends within a header")),
        }
        if header.as_bytes().iter().all(|&b| b == 0) {
            // Two blocks of zeros are the end, and so is one at the end of the stream.
            let mut second = [0; BLOCK];
            let read = self.fill(&mut second)?;
            return match second[..read].iter().all(|&b| b == 0) {
                true => Ok(None),
                false => Err(Fault::Archive("something follows its end")),
            };
        }
        match checksum_fits(&header) {
            true => Ok(Some(header)),
            false => Err(Fault::Archive("a header with a wrong checksum")),
        }
    }

    fn extension(
        &mut self,
        header: &Header,
        size: u64,
        extensions: &mut Extensions,
    ) -> Result<Vec<u8>, Fault> {
        extensions.used = extensions.used.saturating_add(size.max(1));
        if extensions.used > MAX_EXTENSION {
            let problem = EntryProblem::ExtendedHeaderTooLong { limit: MAX_EXTENSION };
            return Err(Fault::entry(&header.path_bytes(), problem));
        }
        self.open_data(size);
        let mut body = Vec::new();
        let read = (&mut *self).take(size).read_to_end(&mut body).map_err(Fault::Stream)?;
        match read as u64 == size {
            true => Ok(body),
            false => Err(Fault::Archive("it ends within an extended header")),
        }
    }

    fn entry(&mut self, header: &Header, size: u64, extensions: Extensions) -> Result<Entry, Fault> {
        let Extensions { pax, path, link, .. } = extensions;
        let path = pax.path.or(path).unwrap_or_else(|| header.path_bytes().into_owned());
        let old = header.as_old();
        let kind = match old.linkflag[0] {
            // Before POSIX a folder was a file with a slash at its end.
            b'0' | b'\0' | b'7' if path.ends_with(b"/") => Kind::Folder,
            b'0' | b'\0' | b'7' => Kind::File,
            b'1' => Kind::HardLink,
            b'2' => Kind::Symlink,
            b'3' | b'4' => Kind::Device,
            b'5' => Kind::Folder,
            b'6' => Kind::Fifo,
            b'S' => return Err(Fault::entry(&path, EntryProblem::Sparse)),
            kind => return Err(Fault::entry(&path, EntryProblem::UnsupportedType { kind })),
        };
        if pax.sparse {
            return Err(Fault::entry(&path, EntryProblem::Sparse));
        }
        // Go's reader: only files have data, whatever the header of a link says.
        let size = if kind == Kind::File { pax.size.unwrap_or(size) } else { 0 };
        self.open_data(size);
        let owner = |pax: Option<u64>, field: &[u8]| {
            let id = pax.or_else(|| number(field)).and_then(|id| u32::try_from(id).ok());
            id.filter(|&id| id != u32::MAX).ok_or_else(|| Fault::entry(&path, EntryProblem::Owner))
        };
        Ok(Entry {
            kind,
            mode: (number(&old.mode).unwrap_or(0) & 0o7777) as u32,
            uid: owner(pax.uid, &old.uid)?,
            gid: owner(pax.gid, &old.gid)?,
            mtime: pax.mtime.unwrap_or_else(|| (seconds(&old.mtime), 0)),
            size,
            link: pax.link.or(link).unwrap_or_else(|| {
                header.link_name_bytes().map(|name| name.into_owned()).unwrap_or_default()
            }),
            xattrs: pax.xattrs,
            path,
        })
    }

    fn open_data(&mut self, size: u64) {
        let block = BLOCK as u64;
        (self.data, self.padding) = (size, (block - size % block) % block);
    }

    fn skip(&mut self, bytes: u64) -> Result<(), Fault> {
        let skipped =
            io::copy(&mut (&mut self.stream).take(bytes), &mut io::sink()).map_err(Fault::Stream)?;
        match skipped == bytes {
            true => Ok(()),
            false => Err(Fault::Archive("it ends within a file")),
        }
    }

    /// Fills the buffer as far as the stream goes.
    fn fill(&mut self, buffer: &mut [u8]) -> Result<usize, Fault> {
        let mut filled = 0;
        while filled < buffer.len() {
            match self.stream.read(&mut buffer[filled..]) {
                Ok(0) => break,
                Ok(read) => filled += read,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(Fault::Stream(error)),
            }
        }
        Ok(filled)
    }
}

impl<R: Read> Read for Archive<R> {
    /// Data of the current entry.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.data).unwrap_or(usize::MAX).min(buffer.len());
        let read = self.stream.read(&mut buffer[..most])?;
        self.data -= read as u64;
        Ok(read)
    }
}

/// What stood before an entry.
#[derive(Default)]
struct Extensions {
    pax: Overrides,
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    used: u64,
}

/// GNU long names end with a NUL.
fn cut(mut name: Vec<u8>) -> Vec<u8> {
    let end = name.iter().position(|&b| b == 0).unwrap_or(name.len());
    name.truncate(end);
    name
}

/// An octal field, padded with spaces and NULs, or GNU's base-256. An empty field is 0, as in Go.
fn number(field: &[u8]) -> Option<u64> {
    if let [first @ 0x80..=0xbf, rest @ ..] = field {
        return rest.iter().try_fold(u64::from(first & 0x3f), |sum, &byte| {
            sum.checked_mul(256)?.checked_add(u64::from(byte))
        });
    }
    let text = std::str::from_utf8(field).ok()?;
    let text = text.split('\0').find(|part| !part.trim().is_empty()).unwrap_or("").trim();
    match text {
        "" => Some(0),
        octal if octal.bytes().all(|b| b.is_ascii_digit()) => u64::from_str_radix(octal, 8).ok(),
        _ => None,
    }
}

/// A time; those before 1970 are base-256 with the sign bit, and nobody cares for more than that they are old.
fn seconds(field: &[u8]) -> i64 {
    number(field).and_then(|seconds| i64::try_from(seconds).ok()).unwrap_or(0)
}

/// The sum of all bytes, those of the sum itself taken as spaces; some old tars summed signed bytes.
fn checksum_fits(header: &Header) -> bool {
    const FIELD: std::ops::Range<usize> = 148..156;
    let mut unsigned = 0u64;
    let mut signed = 0i64;
    for (place, &byte) in header.as_bytes().iter().enumerate() {
        let byte = if FIELD.contains(&place) { b' ' } else { byte };
        unsigned += u64::from(byte);
        signed += i64::from(byte as i8);
    }
    let Some(found) = number(&header.as_old().cksum) else { return false };
    found == unsigned || i64::try_from(found).is_ok_and(|found| found == signed)
}

#[cfg(test)]
mod tests;
