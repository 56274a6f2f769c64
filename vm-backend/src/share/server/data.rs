//! Open files.

use std::io::IoSlice;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use rustix::fs::{FallocateFlags, FileType, OFlags, SeekFrom};
use rustix::io::{Errno, ReadWriteFlags};

use super::super::fuse::{
    Answer, Args, FOPEN_NOFLUSH, FSYNC_FDATASYNC, Header, OPEN_KILL_SUIDGID, WRITE_CACHE, WRITE_KILL_SUIDGID,
};
use super::Server;
use super::handle::{Handle, Use};
use super::identity::killing_privileges;
use super::inode::{Node, Volume};

/// How a file is to be opened, of what the guest's program said: never in a way that waits, follows, or goes past the cache.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    flags: OFlags,
    writable: bool,
    truncate: bool,
    exclusive: bool,
}

impl Wanted {
    fn parse(said: u32) -> Result<Self, Errno> {
        let said = OFlags::from_bits_retain(said);
        let (access, writable) = match said & OFlags::RWMODE {
            mode if mode == OFlags::RDONLY => (OFlags::RDONLY, false),
            mode if mode == OFlags::WRONLY => (OFlags::WRONLY, true),
            mode if mode == OFlags::RDWR => (OFlags::RDWR, true),
            _ => return Err(Errno::INVAL),
        };
        let kept = said & (OFlags::SYNC | OFlags::DSYNC);
        let (truncate, exclusive) = (said.contains(OFlags::TRUNC), said.contains(OFlags::EXCL));
        Ok(Self { flags: access | kept, writable, truncate, exclusive })
    }
}

impl Server {
    pub(super) fn open(
        &self,
        node: &Node,
        args: &mut Args<'_>,
        answer: &mut Answer<'_>,
    ) -> Result<(), Errno> {
        let [flags, more] = args.words()?;
        self.open_node(node, Wanted::parse(flags)?, more, answer)
    }

    /// Opens a file that is there.
    fn open_node(
        &self,
        node: &Node,
        wanted: Wanted,
        more: u32,
        answer: &mut Answer<'_>,
    ) -> Result<(), Errno> {
        match node.kind {
            FileType::RegularFile => {}
            FileType::Directory => return Err(Errno::ISDIR),
            // Those are the guest's own affair; a device would be the host's.
            _ => return Err(Errno::NXIO),
        }
        if (wanted.writable || wanted.truncate) && node.volume.read_only {
            return Err(Errno::ROFS);
        }
        let truncate = if wanted.truncate { OFlags::TRUNC } else { OFlags::empty() };
        let kill = more & OPEN_KILL_SUIDGID != 0;
        let file = killing_privileges(kill, || self.reopen(node, wanted.flags | truncate))?;
        self.tell_open(file, &node.volume, wanted.writable, answer)
    }

    /// struct fuse_open_out.
    fn tell_open(
        &self,
        file: OwnedFd,
        volume: &Arc<Volume>,
        writable: bool,
        answer: &mut Answer<'_>,
    ) -> Result<(), Errno> {
        let wanted = if writable { Use::Write } else { Use::Read };
        let number = self.handles.insert(file, volume, wanted)?;
        answer.u64(number);
        answer.u32(if writable { 0 } else { FOPEN_NOFLUSH });
        answer.u32(0);
        Ok(())
    }

    pub(super) fn create(
        &self,
        header: Header,
        folder: &Node,
        args: &mut Args<'_>,
        answer: &mut Answer<'_>,
    ) -> Result<(), Errno> {
        let [flags, mode, _umask, more] = args.words()?;
        let name = args.name()?;
        let wanted = Wanted::parse(flags)?;
        Self::changeable_folder(folder)?;
        let start = answer.0.len();
        let opened = match self.make_file(header, folder, name, (wanted.flags, mode)) {
            Ok(file) => {
                self.tell_of_made(folder, file.as_fd(), answer)?;
                self.tell_open(file, &folder.volume, wanted.writable, answer)
            }
            // It came to be meanwhile. It may be anything, so it is looked at before it is opened.
            Err(Errno::EXIST) if !wanted.exclusive => {
                self.tell_of(folder, name, answer)?;
                let node = self.nodes.get(told_node(answer, start))?;
                self.open_node(&node, wanted, more, answer)
            }
            Err(error) => return Err(error),
        };
        // The guest never hears of it.
        let told = told_node(answer, start);
        opened.inspect_err(|_| drop(self.nodes.forget(told, 1)))
    }

    fn file(&self, number: u64) -> Result<Arc<Handle>, Errno> {
        self.handles
            .get(number)
            .and_then(|handle| if handle.is_folder { Err(Errno::ISDIR) } else { Ok(handle) })
    }

    fn writable_file(&self, number: u64) -> Result<Arc<Handle>, Errno> {
        self.file(number).and_then(|handle| if handle.writable { Ok(handle) } else { Err(Errno::BADF) })
    }

    pub(super) fn read(
        &self,
        args: &mut Args<'_>,
        room: usize,
        answer: &mut Answer<'_>,
    ) -> Result<(), Errno> {
        let (handle, offset) = (self.file(args.u64()?)?, args.u64()?);
        let size = usize::try_from(args.u32()?).unwrap_or(room).min(room);
        let start = answer.0.len();
        answer.0.resize(start + size, 0);
        let mut done = 0;
        while done < size {
            let at = offset.checked_add(done as u64).ok_or(Errno::INVAL)?;
            match rustix::io::pread(&handle.file, &mut answer.0[start + done..], at) {
                Ok(0) => break,
                Ok(count) => done += count,
                Err(Errno::INTR) => {}
                Err(_) if done > 0 => break,
                Err(error) => return Err(error),
            }
        }
        answer.0.truncate(start + done);
        Ok(())
    }

    pub(super) fn write(&self, args: &mut Args<'_>, answer: &mut Answer<'_>) -> Result<(), Errno> {
        let (handle, offset) = (self.writable_file(args.u64()?)?, args.u64()?);
        let [size, how] = args.words()?;
        let _lock = args.u64()?;
        let [flags, _] = args.words()?;
        let data = args.bytes(usize::try_from(size).map_err(|_| Errno::INVAL)?)?;
        // What comes from a mapping goes where it says, whoever opened the file.
        let append = how & WRITE_CACHE == 0 && OFlags::from_bits_retain(flags).contains(OFlags::APPEND);
        let written = killing_privileges(how & WRITE_KILL_SUIDGID != 0, || {
            rustix::io::retry_on_intr(|| match append {
                true => {
                    rustix::io::pwritev2(&handle.file, &[IoSlice::new(data)], offset, ReadWriteFlags::APPEND)
                }
                false => rustix::io::pwrite(&handle.file, data, offset),
            })
        })?;
        answer.u32(u32::try_from(written).unwrap_or(u32::MAX));
        answer.u32(0);
        Ok(())
    }

    /// A program closes its file: an error of what it wrote may be told now (as NFS does), and only now.
    pub(super) fn flush(&self, args: &mut Args<'_>) -> Result<(), Errno> {
        let handle = self.file(args.u64()?)?;
        let copy = rustix::io::fcntl_dupfd_cloexec(&handle.file, 3)?;
        nix::unistd::close(copy).map_err(|error| Errno::from_raw_os_error(error as i32))
    }

    pub(super) fn sync(&self, args: &mut Args<'_>) -> Result<(), Errno> {
        let (handle, flags) = (self.handles.get(args.u64()?)?, args.u32()?);
        match flags & FSYNC_FDATASYNC {
            0 => rustix::fs::fsync(&handle.file),
            _ => rustix::fs::fdatasync(&handle.file),
        }
    }

    pub(super) fn allocate(&self, args: &mut Args<'_>) -> Result<(), Errno> {
        let handle = self.writable_file(args.u64()?)?;
        let (offset, length) = (args.u64()?, args.u64()?);
        let known = FallocateFlags::KEEP_SIZE
            | FallocateFlags::PUNCH_HOLE
            | FallocateFlags::COLLAPSE_RANGE
            | FallocateFlags::ZERO_RANGE
            | FallocateFlags::INSERT_RANGE;
        let mode = FallocateFlags::from_bits(args.u32()?).filter(|mode| known.contains(*mode));
        rustix::fs::fallocate(&handle.file, mode.ok_or(Errno::OPNOTSUPP)?, offset, length)
    }

    /// Where data begins or ends; other positions are the guest's own to keep.
    pub(super) fn seek(&self, args: &mut Args<'_>, answer: &mut Answer<'_>) -> Result<(), Errno> {
        let (handle, offset) = (self.file(args.u64()?)?, args.u64()?);
        let to = match i32::try_from(args.u32()?) {
            Ok(libc::SEEK_DATA) => SeekFrom::Data(offset),
            Ok(libc::SEEK_HOLE) => SeekFrom::Hole(offset),
            _ => return Err(Errno::INVAL),
        };
        answer.u64(rustix::fs::seek(&handle.file, to)?);
        Ok(())
    }

    pub(super) fn copy(&self, args: &mut Args<'_>, answer: &mut Answer<'_>) -> Result<(), Errno> {
        let (from, mut from_at) = (self.file(args.u64()?)?, args.u64()?);
        let _node = args.u64()?;
        let (to, mut to_at) = (self.writable_file(args.u64()?)?, args.u64()?);
        // The kernel's answer has 32 bits; and nobody else of the volume waits for too long.
        let length = args.u64()?.min(MAX_COPY);
        if args.u64()? != 0 {
            return Err(Errno::INVAL);
        }
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        let copied =
            rustix::fs::copy_file_range(&from.file, Some(&mut from_at), &to.file, Some(&mut to_at), length)?;
        answer.u32(u32::try_from(copied).unwrap_or(u32::MAX));
        answer.u32(0);
        Ok(())
    }
}

/// The node of the entry that an answer begins with.
fn told_node(answer: &Answer<'_>, start: usize) -> u64 {
    let number = answer.0.get(start..start + 8).and_then(|bytes| bytes.try_into().ok());
    number.map_or(0, u64::from_ne_bytes)
}

/// Bytes of one copy.
const MAX_COPY: u64 = 64 << 20;
