//! What files are like: attributes, extended ones, and the space that there is.

use std::ffi::CStr;
use std::os::fd::AsFd as _;

use rustix::fs::{
    AtFlags, CWD, FileType, Gid, Mode, OFlags, Statx, StatxTimestamp, Timespec, Timestamps, UTIME_NOW,
    UTIME_OMIT, Uid, XattrFlags,
};
use rustix::io::Errno;

use super::super::fuse::{Answer, Args, ROOT, fattr};
use super::Server;
use super::identity::killing_privileges;
use super::inode::Node;

/// Bytes of an extended attribute (XATTR_SIZE_MAX, XATTR_LIST_MAX).
const XATTR_MAX: usize = 64 << 10;
/// Access lists of the host's: a guest's kernel that does not know them would not heed them, so it is told that there are none.
const ACCESS_LISTS: &[u8] = b"system.posix_acl_";

impl Server {
    /// struct fuse_attr_out, valid for no time.
    pub(super) fn tell_attributes(&self, told: &Statx, answer: &mut Answer<'_>) -> Result<(), Errno> {
        answer.u64(0);
        answer.u64(0);
        self.attributes(told, answer);
        Ok(())
    }

    /// struct fuse_attr.
    pub(super) fn attributes(&self, told: &Statx, answer: &mut Answer<'_>) {
        let seconds = |time: StatxTimestamp| u64::from_ne_bytes(time.tv_sec.to_ne_bytes());
        let times = [told.stx_atime, told.stx_mtime, told.stx_ctime];
        answer.u64(self.inode_number(told));
        answer.u64(told.stx_size);
        answer.u64(told.stx_blocks);
        times.iter().for_each(|time| answer.u64(seconds(*time)));
        times.iter().for_each(|time| answer.u32(time.tv_nsec));
        answer.u32(told.stx_mode.into());
        answer.u32(told.stx_nlink);
        answer.u32(told.stx_uid);
        answer.u32(told.stx_gid);
        // The guest opens its own device of that number, so it has none (fuse: new_encode_dev).
        answer.u32(0);
        answer.u32(told.stx_blksize);
        answer.u32(0);
    }

    /// The root: a folder that may be passed through.
    pub(super) fn tell_root(answer: &mut Answer<'_>) {
        answer.u64(0);
        answer.u64(0);
        for word in [ROOT, 0, 0, 0, 0, 0] {
            answer.u64(word);
        }
        let mode = FileType::Directory.as_raw_mode() | 0o711;
        for word in [0, 0, 0, mode, 2, 0, 0, 0, 4096, 0] {
            answer.u32(word);
        }
    }

    pub(super) fn set_attributes(
        &self,
        node: &Node,
        args: &mut Args<'_>,
        answer: &mut Answer<'_>,
    ) -> Result<(), Errno> {
        let [valid, _] = args.words()?;
        let (handle, size, _lock) = (args.u64()?, args.u64()?, args.u64()?);
        let seconds = [args.u64()?, args.u64()?, args.u64()?];
        let [atime, mtime, _ctime, mode, _, uid, gid, _] = args.words()?;
        let has = |bit: u32| valid & bit != 0;
        Self::changeable(node)?;
        if has(fattr::MODE) {
            rustix::fs::chmodat(
                CWD,
                self.path_of(node),
                Mode::from_raw_mode(mode & 0o7777),
                AtFlags::empty(),
            )?;
        }
        if has(fattr::UID) || has(fattr::GID) {
            let id = |bit, id: u32| match has(bit) {
                true if id == u32::MAX => Err(Errno::INVAL),
                true => Ok(Some(id)),
                false => Ok(None),
            };
            let (uid, gid) =
                (id(fattr::UID, uid)?.map(Uid::from_raw), id(fattr::GID, gid)?.map(Gid::from_raw));
            rustix::fs::chownat(node, c"", uid, gid, AtFlags::EMPTY_PATH)?;
        }
        if has(fattr::SIZE) {
            let handle = has(fattr::FH).then_some(handle);
            killing_privileges(has(fattr::KILL_SUIDGID), || self.resize(node, handle, size))?;
        }
        let time = |set, now, seconds: u64, nanos: u32| Timespec {
            tv_sec: i64::from_ne_bytes(seconds.to_ne_bytes()),
            tv_nsec: match (has(now), has(set)) {
                (true, _) => UTIME_NOW,
                (false, true) => nanos.into(),
                (false, false) => UTIME_OMIT,
            },
        };
        let times = Timestamps {
            last_access: time(fattr::ATIME, fattr::ATIME_NOW, seconds[0], atime),
            last_modification: time(fattr::MTIME, fattr::MTIME_NOW, seconds[1], mtime),
        };
        if has(fattr::ATIME | fattr::ATIME_NOW | fattr::MTIME | fattr::MTIME_NOW) {
            rustix::fs::utimensat(CWD, self.path_of(node), &times, AtFlags::empty())?;
        }
        self.tell_attributes(&node.look()?, answer)
    }

    fn resize(&self, node: &Node, handle: Option<u64>, size: u64) -> Result<(), Errno> {
        if let Some(handle) = handle.and_then(|number| self.handles.get(number).ok()) {
            if handle.writable && !handle.is_folder {
                return rustix::fs::ftruncate(&handle.file, size);
            }
        }
        match node.kind {
            FileType::RegularFile => rustix::fs::ftruncate(self.reopen(node, OFlags::WRONLY)?, size),
            FileType::Directory => Err(Errno::ISDIR),
            _ => Err(Errno::INVAL),
        }
    }

    /// struct fuse_statfs_out.
    pub(super) fn tell_space(node: Option<&Node>, answer: &mut Answer<'_>) -> Result<(), Errno> {
        let Some(node) = node else {
            answer.bytes(&[0; 40]);
            for word in [4096_u32, 255, 4096, 0, 0, 0, 0, 0, 0, 0] {
                answer.u32(word);
            }
            return Ok(());
        };
        let space = rustix::fs::fstatvfs(node.as_fd())?;
        for count in [space.f_blocks, space.f_bfree, space.f_bavail, space.f_files, space.f_ffree] {
            answer.u64(count);
        }
        for size in [space.f_bsize, space.f_namemax, space.f_frsize] {
            answer.u32(u32::try_from(size).unwrap_or(u32::MAX));
        }
        answer.bytes(&[0; 28]);
        Ok(())
    }

    pub(super) fn set_xattr(&self, node: &Node, args: &mut Args<'_>) -> Result<(), Errno> {
        let [size, flags] = args.words()?;
        let name = xattr_name(args)?;
        let value = args.bytes(usize::try_from(size).map_err(|_| Errno::INVAL)?)?;
        Self::changeable(node)?;
        let flags = XattrFlags::from_bits(flags).ok_or(Errno::INVAL)?;
        rustix::fs::setxattr(self.path_of(node), name, value, flags)
    }

    pub(super) fn get_xattr(
        &self,
        node: &Node,
        args: &mut Args<'_>,
        room: usize,
        answer: &mut Answer<'_>,
    ) -> Result<(), Errno> {
        let [size, _] = args.words()?;
        let name = xattr_name(args)?;
        let path = self.path_of(node);
        tell_some(size, room, answer, |buffer| rustix::fs::getxattr(path.as_str(), name, buffer))
    }

    pub(super) fn list_xattrs(
        &self,
        node: &Node,
        args: &mut Args<'_>,
        room: usize,
        answer: &mut Answer<'_>,
    ) -> Result<(), Errno> {
        let [size, _] = args.words()?;
        let path = self.path_of(node);
        tell_some(size, room, answer, |buffer| rustix::fs::listxattr(path.as_str(), buffer))
    }

    pub(super) fn remove_xattr(&self, node: &Node, args: &mut Args<'_>) -> Result<(), Errno> {
        let name = xattr_name(args)?;
        Self::changeable(node)?;
        rustix::fs::removexattr(self.path_of(node), name)
    }
}

fn xattr_name<'a>(args: &mut Args<'a>) -> Result<&'a CStr, Errno> {
    let name = args.text()?;
    if name.to_bytes().starts_with(ACCESS_LISTS) { Err(Errno::OPNOTSUPP) } else { Ok(name) }
}

/// What there is, if it fits; asked for nothing, how much it is (struct fuse_getxattr_out).
fn tell_some(
    size: u32,
    room: usize,
    answer: &mut Answer<'_>,
    get: impl FnOnce(&mut [u8]) -> Result<usize, Errno>,
) -> Result<(), Errno> {
    let size = usize::try_from(size).unwrap_or(usize::MAX).min(XATTR_MAX).min(room);
    let mut buffer = vec![0; if size == 0 { XATTR_MAX } else { size }];
    let found = get(&mut buffer)?;
    if size == 0 {
        answer.u32(u32::try_from(found).unwrap_or(u32::MAX));
        answer.u32(0);
    } else {
        answer.bytes(buffer.get(..found).ok_or(Errno::RANGE)?);
    }
    Ok(())
}
