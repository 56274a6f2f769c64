//! Open folders.

use std::mem::MaybeUninit;
use std::os::fd::AsFd as _;
use std::sync::PoisonError;

use rustix::fs::{AtFlags, FileType, OFlags, RawDir, SeekFrom, StatxFlags, statx};
use rustix::io::Errno;

use super::super::fuse::{Answer, Args};
use super::Server;
use super::handle::Use;
use super::inode::Node;

/// Bytes of entries that the host is asked for at a time.
const CHUNK: usize = 32 << 10;

impl Server {
    pub(super) fn open_folder(&self, node: &Node, answer: &mut Answer<'_>) -> Result<(), Errno> {
        if node.kind != FileType::Directory {
            return Err(Errno::NOTDIR);
        }
        let file = self.reopen(node, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let number = self.handles.insert(file, &node.volume, Use::Folder)?;
        answer.u64(number);
        answer.u64(0);
        Ok(())
    }

    pub(super) fn read_folder(
        &self,
        args: &mut Args<'_>,
        room: usize,
        answer: &mut Answer<'_>,
    ) -> Result<(), Errno> {
        let (handle, offset) = (self.handles.get(args.u64()?)?, args.u64()?);
        let room = usize::try_from(args.u32()?).unwrap_or(room).min(room);
        if !handle.is_folder {
            return Err(Errno::NOTDIR);
        }
        let _reading = handle.reading.lock().unwrap_or_else(PoisonError::into_inner);
        rustix::fs::seek(&handle.file, SeekFrom::Start(offset))?;
        let mut told = statx(&handle.file, c"", AtFlags::EMPTY_PATH, StatxFlags::INO)?;
        let start = answer.0.len();
        let mut buffer = vec![MaybeUninit::uninit(); CHUNK];
        let mut entries = RawDir::new(handle.file.as_fd(), &mut buffer);
        while let Some(entry) = entries.next() {
            let entry = match entry {
                Ok(entry) => entry,
                // What was read is told; the next call says the error.
                Err(_) if answer.0.len() > start => return Ok(()),
                Err(error) => return Err(error),
            };
            let name = entry.file_name().to_bytes();
            // struct fuse_dirent, padded to 8 bytes.
            let length = (24 + name.len()).next_multiple_of(8);
            if answer.0.len() - start + length > room {
                return Ok(());
            }
            told.stx_ino = entry.ino();
            answer.u64(self.inode_number(&told));
            answer.u64(entry.next_entry_cookie());
            answer.u32(u32::try_from(name.len()).unwrap_or(0));
            answer.u32(entry.file_type().as_raw_mode() >> 12);
            answer.bytes(name);
            let end = (answer.0.len() - start).next_multiple_of(8) + start;
            answer.0.resize(end, 0);
        }
        Ok(())
    }
}
