//! A disk of several files and a synthesized partition table.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::fs::{FallocateFlags, OFlags};
use rustix::io::Errno;

use super::BlockError;
use super::gpt::{self, SECTOR};
use crate::virtio::chain::Buffers;
use crate::virtio::sys::{self, At};

/// A file that is a partition of a disk.
#[derive(Debug)]
pub struct BlockExtent {
    /// Open for reading, and for writing at any place (no O_APPEND) unless `read_only`. It may be O_DIRECT.
    pub file: OwnedFd,
    /// The guest's writes fail, whatever the descriptor allows.
    pub read_only: bool,
}

/// The disk as the guest sees it.
#[derive(Debug)]
pub struct Disk {
    /// Parts that do not overlap, in the order in which they lie. What lies between them reads as zeros.
    parts: Vec<Part>,
    sectors: u64,
    id: [u8; 16],
}

#[derive(Debug)]
struct Part {
    start: u64,
    length: u64,
    content: Content,
}

#[derive(Debug)]
enum Content {
    Table(Vec<u8>),
    File(File),
}

#[derive(Debug)]
struct File {
    file: OwnedFd,
    writable: bool,
    direct: bool,
    /// Written since the last flush.
    dirty: AtomicBool,
}

/// A stretch of a request: within one part or within a gap.
struct Stretch<'d> {
    part: Option<&'d Part>,
    /// Bytes from the beginning of the part.
    offset: u64,
    length: u64,
}

impl Disk {
    /// Lays out the files.
    ///
    /// # Errors
    /// See [`BlockError`].
    pub fn new(extents: Vec<BlockExtent>) -> Result<Self, BlockError> {
        let sizes = extents.iter().enumerate().map(|(index, extent)| size(index, extent));
        let sizes = sizes.collect::<Result<Vec<_>, _>>()?;
        let table = match sizes.len() {
            0 => return Err(BlockError::NoExtents),
            _ => gpt::lay_out(&sizes).ok_or(BlockError::TooLarge { extents: sizes.len() })?,
        };
        let mut parts = Vec::with_capacity(extents.len() + table.pieces.len());
        for (start, bytes) in table.pieces {
            parts.push(Part { start, length: bytes.len() as u64, content: Content::Table(bytes) });
        }
        for (index, (extent, place)) in extents.into_iter().zip(table.partitions).enumerate() {
            let flags = checked_flags(index, &extent)?;
            let file = File {
                writable: !extent.read_only,
                direct: flags.contains(OFlags::DIRECT),
                dirty: AtomicBool::new(false),
                file: extent.file,
            };
            parts.push(Part { start: place.start, length: place.length, content: Content::File(file) });
        }
        parts.sort_by_key(|part| part.start);
        Ok(Self { parts, sectors: table.sectors, id: table.id })
    }

    /// Sectors of 512 bytes.
    #[must_use]
    pub fn sectors(&self) -> u64 {
        self.sectors
    }

    /// The GUID of the disk, the same for the same layout.
    #[must_use]
    pub fn id(&self) -> [u8; 16] {
        self.id
    }

    /// Whether any part can be written.
    #[must_use]
    pub fn writable(&self) -> bool {
        self.files().any(|file| file.writable)
    }

    /// Fills `target` from byte `start` on.
    ///
    /// # Errors
    /// That of the file.
    pub fn read(&self, start: u64, mut target: Buffers<'_>) -> io::Result<()> {
        for stretch in self.stretches(start, target.len()) {
            let mut piece = target.take(stretch.length).map_err(io::Error::other)?;
            match stretch.part.map(|part| &part.content) {
                None => piece.fill_zero(),
                Some(Content::Table(bytes)) => {
                    let bytes = usize::try_from(stretch.offset).ok().and_then(|offset| bytes.get(offset..));
                    let length = usize::try_from(stretch.length).ok();
                    let bytes = bytes.zip(length).and_then(|(bytes, length)| bytes.get(..length));
                    piece.write(bytes.unwrap_or_default()).map_err(io::Error::other)?;
                }
                Some(Content::File(file)) => file.read(stretch.offset, piece)?,
            }
        }
        Ok(())
    }

    /// Writes `source` from byte `start` on, or nothing where not all of that may be written.
    ///
    /// # Errors
    /// `PermissionDenied` for what may not be written, else that of the file.
    pub fn write(&self, start: u64, mut source: Buffers<'_>) -> io::Result<()> {
        for (file, offset, length) in self.writable_stretches(start, source.len())? {
            file.write(offset, source.take(length).map_err(io::Error::other)?)?;
        }
        Ok(())
    }

    /// Makes `length` bytes from `start` on read as zeros and gives their storage back.
    ///
    /// # Errors
    /// As [`write`](Self::write); `Unsupported` where the file system cannot.
    pub fn punch(&self, start: u64, length: u64) -> io::Result<()> {
        for (file, offset, length) in self.writable_stretches(start, length)? {
            file.dirty.store(true, Ordering::Relaxed);
            let how = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
            rustix::fs::fallocate(&file.file, how, offset, length)?;
        }
        Ok(())
    }

    /// Puts what was written on the storage below.
    ///
    /// # Errors
    /// That of the first file that fails; the others were tried too.
    pub fn flush(&self) -> io::Result<()> {
        let mut result = Ok(());
        for file in self.files().filter(|file| file.dirty.swap(false, Ordering::Relaxed)) {
            if let Err(failure) = rustix::fs::fdatasync(&file.file) {
                file.dirty.store(true, Ordering::Relaxed);
                result = result.and(Err(failure.into()));
            }
        }
        result
    }

    /// Whether anything was written since the last flush.
    #[cfg(test)]
    pub(super) fn is_dirty(&self) -> bool {
        self.files().any(|file| file.dirty.load(Ordering::Relaxed))
    }

    fn files(&self) -> impl Iterator<Item = &File> {
        self.parts.iter().filter_map(|part| match &part.content {
            Content::File(file) => Some(file),
            Content::Table(_) => None,
        })
    }

    fn writable_stretches(&self, start: u64, length: u64) -> io::Result<Vec<(&File, u64, u64)>> {
        let stretches =
            self.stretches(start, length).map(|stretch| match stretch.part.map(|part| &part.content) {
                Some(Content::File(file)) if file.writable => Ok((file, stretch.offset, stretch.length)),
                _ => Err(io::ErrorKind::PermissionDenied.into()),
            });
        stretches.collect()
    }

    /// Cuts bytes at the borders of parts.
    fn stretches(&self, start: u64, length: u64) -> impl Iterator<Item = Stretch<'_>> {
        let end = start.saturating_add(length);
        let mut at = start;
        std::iter::from_fn(move || {
            if at >= end {
                return None;
            }
            let after = self.parts.partition_point(|part| part.start <= at);
            let part = after.checked_sub(1).map(|index| &self.parts[index]);
            let part = part.filter(|part| at < part.start + part.length);
            let border = match part {
                Some(part) => part.start + part.length,
                None => self.parts.get(after).map_or(end, |next| next.start),
            };
            let stretch = Stretch {
                part,
                offset: part.map_or(0, |part| at - part.start),
                length: border.min(end) - at,
            };
            at = border.min(end);
            Some(stretch)
        })
    }
}

impl File {
    /// What lies past the file's end reads as zeros.
    fn read(&self, mut offset: u64, mut target: Buffers<'_>) -> io::Result<()> {
        while !target.is_empty() {
            let done = self.call(|| sys::read_into(self.file.as_fd(), target.slices(), at(offset)?))?;
            if done == 0 {
                target.fill_zero();
                return Ok(());
            }
            offset += done as u64;
            target.take(done as u64).map_err(io::Error::other)?;
        }
        Ok(())
    }

    fn write(&self, mut offset: u64, mut source: Buffers<'_>) -> io::Result<()> {
        self.dirty.store(true, Ordering::Relaxed);
        while !source.is_empty() {
            let done = self.call(|| sys::write_from(self.file.as_fd(), source.slices(), at(offset)?))?;
            if done == 0 {
                return Err(io::ErrorKind::WriteZero.into());
            }
            offset += done as u64;
            source.take(done as u64).map_err(io::Error::other)?;
        }
        Ok(())
    }

    /// Calls; where O_DIRECT does not take the request (its place, its length, or where the guest's buffers lie) calls again without. The
    /// kernel keeps the two ways of one file coherent.
    fn call(&self, mut call: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
        let refused = match call() {
            Err(e) if self.direct && Errno::from_io_error(&e) == Some(Errno::INVAL) => e,
            done => return done,
        };
        let flags = rustix::fs::fcntl_getfl(&self.file)?;
        if !flags.contains(OFlags::DIRECT) {
            return Err(refused);
        }
        rustix::fs::fcntl_setfl(&self.file, flags - OFlags::DIRECT)?;
        let done = call();
        rustix::fs::fcntl_setfl(&self.file, flags)?;
        done
    }
}

fn at(offset: u64) -> io::Result<At> {
    i64::try_from(offset).map(At::Offset).map_err(io::Error::other)
}

/// How the file is open. O_APPEND would put writes behind the file's end, whatever their place is, and so let a guest make it grow.
fn checked_flags(index: usize, extent: &BlockExtent) -> Result<OFlags, BlockError> {
    let flags = rustix::fs::fcntl_getfl(&extent.file).map_err(|source| BlockError::File {
        index,
        what: "read the flags",
        source: source.into(),
    })?;
    let access = flags & OFlags::RWMODE;
    let missing = match access {
        _ if flags.contains(OFlags::PATH) || access == OFlags::WRONLY => Some("reading"),
        _ if extent.read_only => None,
        OFlags::RDWR if flags.contains(OFlags::APPEND) => Some("writing at any place"),
        OFlags::RDWR => None,
        _ => Some("writing"),
    };
    missing.map_or(Ok(flags), |what| Err(BlockError::Mode { index, what }))
}

fn size(index: usize, extent: &BlockExtent) -> Result<u64, BlockError> {
    // Of a block device fstat tells no size; the position that this moves is used by nobody.
    let size = rustix::fs::seek(&extent.file, rustix::fs::SeekFrom::End(0))
        .map_err(|source| BlockError::File { index, what: "find the end", source: source.into() })?;
    match size {
        0 => Err(BlockError::Empty { index }),
        size if !extent.read_only && size % SECTOR != 0 => Err(BlockError::Unaligned { index, size }),
        size => Ok(size),
    }
}
