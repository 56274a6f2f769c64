//! FUSE as the kernel speaks it (include/uapi/linux/fuse.h): numbers and layouts. All integers are the machine's own.

use std::ffi::CStr;

use rustix::io::Errno;

/// The version whose layouts are used here; a guest's kernel may be newer or older.
pub const MAJOR: u32 = 7;
pub const MINOR: u32 = 36;
/// The oldest kernel that is talked to: 5.4 (which has virtio-fs) speaks 7.31.
pub const OLDEST_MINOR: u32 = 31;

/// struct fuse_in_header, struct fuse_out_header.
pub const IN_HEADER: usize = 40;
pub const OUT_HEADER: usize = 16;

/// The node of the file system's root.
pub const ROOT: u64 = 1;

/// enum fuse_opcode.
pub mod op {
    pub const LOOKUP: u32 = 1;
    pub const FORGET: u32 = 2;
    pub const GETATTR: u32 = 3;
    pub const SETATTR: u32 = 4;
    pub const READLINK: u32 = 5;
    pub const SYMLINK: u32 = 6;
    pub const MKNOD: u32 = 8;
    pub const MKDIR: u32 = 9;
    pub const UNLINK: u32 = 10;
    pub const RMDIR: u32 = 11;
    pub const RENAME: u32 = 12;
    pub const LINK: u32 = 13;
    pub const OPEN: u32 = 14;
    pub const READ: u32 = 15;
    pub const WRITE: u32 = 16;
    pub const STATFS: u32 = 17;
    pub const RELEASE: u32 = 18;
    pub const FSYNC: u32 = 20;
    pub const SETXATTR: u32 = 21;
    pub const GETXATTR: u32 = 22;
    pub const LISTXATTR: u32 = 23;
    pub const REMOVEXATTR: u32 = 24;
    pub const FLUSH: u32 = 25;
    pub const INIT: u32 = 26;
    pub const OPENDIR: u32 = 27;
    pub const READDIR: u32 = 28;
    pub const RELEASEDIR: u32 = 29;
    pub const FSYNCDIR: u32 = 30;
    pub const CREATE: u32 = 35;
    pub const INTERRUPT: u32 = 36;
    pub const DESTROY: u32 = 38;
    pub const BATCH_FORGET: u32 = 42;
    pub const FALLOCATE: u32 = 43;
    pub const RENAME2: u32 = 45;
    pub const LSEEK: u32 = 46;
    pub const COPY_FILE_RANGE: u32 = 47;
}

/// What INIT agrees on.
pub mod init {
    pub const ASYNC_READ: u32 = 1;
    pub const ATOMIC_O_TRUNC: u32 = 1 << 3;
    pub const BIG_WRITES: u32 = 1 << 5;
    pub const AUTO_INVAL_DATA: u32 = 1 << 12;
    pub const ASYNC_DIO: u32 = 1 << 15;
    pub const PARALLEL_DIROPS: u32 = 1 << 18;
    pub const MAX_PAGES: u32 = 1 << 22;
    pub const HANDLE_KILLPRIV_V2: u32 = 1 << 28;
}

/// FATTR_*: what SETATTR sets.
pub mod fattr {
    pub const MODE: u32 = 1;
    pub const UID: u32 = 1 << 1;
    pub const GID: u32 = 1 << 2;
    pub const SIZE: u32 = 1 << 3;
    pub const ATIME: u32 = 1 << 4;
    pub const MTIME: u32 = 1 << 5;
    pub const FH: u32 = 1 << 6;
    pub const ATIME_NOW: u32 = 1 << 7;
    pub const MTIME_NOW: u32 = 1 << 8;
    pub const KILL_SUIDGID: u32 = 1 << 11;
}

/// FUSE_WRITE_CACHE: delayed from a mapping, of nobody in particular. And FUSE_WRITE_KILL_SUIDGID.
pub const WRITE_CACHE: u32 = 1;
pub const WRITE_KILL_SUIDGID: u32 = 1 << 2;
/// FUSE_OPEN_KILL_SUIDGID
pub const OPEN_KILL_SUIDGID: u32 = 1;
/// FUSE_FSYNC_FDATASYNC
pub const FSYNC_FDATASYNC: u32 = 1;
/// FOPEN_NOFLUSH: closing it needs no word.
pub const FOPEN_NOFLUSH: u32 = 1 << 5;
/// FUSE_GETATTR_FH
pub const GETATTR_FH: u32 = 1;

/// struct fuse_in_header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    pub opcode: u32,
    pub unique: u64,
    pub node: u64,
    pub uid: u32,
    pub gid: u32,
}

impl Header {
    /// Of a request; `None` where it is shorter than a header, or its length is not what the header says.
    #[must_use]
    pub fn parse(request: &[u8]) -> Option<(Self, Args<'_>)> {
        let (header, rest) = request.split_at_checked(IN_HEADER)?;
        let mut args = Args(header);
        let length = args.u32().ok()?;
        let opcode = args.u32().ok()?;
        let unique = args.u64().ok()?;
        let node = args.u64().ok()?;
        let (uid, gid) = (args.u32().ok()?, args.u32().ok()?);
        let fits = usize::try_from(length).is_ok_and(|length| length == request.len());
        fits.then_some((Self { opcode, unique, node, uid, gid }, Args(rest)))
    }
}

/// Arguments of a request; whatever is missing is EINVAL.
#[derive(Debug, Clone, Copy)]
pub struct Args<'a>(pub &'a [u8]);

impl<'a> Args<'a> {
    pub fn u32(&mut self) -> Result<u32, Errno> {
        self.array().map(u32::from_ne_bytes)
    }

    pub fn u64(&mut self) -> Result<u64, Errno> {
        self.array().map(u64::from_ne_bytes)
    }

    /// `N` numbers of 32 bits.
    pub fn words<const N: usize>(&mut self) -> Result<[u32; N], Errno> {
        let mut words = [0; N];
        for word in &mut words {
            *word = self.u32()?;
        }
        Ok(words)
    }

    /// Up to a NUL, which is taken off too.
    pub fn text(&mut self) -> Result<&'a CStr, Errno> {
        let text = CStr::from_bytes_until_nul(self.0).map_err(|_| Errno::INVAL)?;
        self.0 = &self.0[text.count_bytes() + 1..];
        Ok(text)
    }

    /// The name of something in a folder: one component of a path, that leads down.
    pub fn name(&mut self) -> Result<&'a CStr, Errno> {
        let name = self.text()?;
        match name.to_bytes() {
            b"" | b"." | b".." => Err(Errno::INVAL),
            bytes if bytes.contains(&b'/') => Err(Errno::INVAL),
            bytes if bytes.len() > NAME_MAX => Err(Errno::NAMETOOLONG),
            _ => Ok(name),
        }
    }

    /// The next `count` bytes.
    pub fn bytes(&mut self, count: usize) -> Result<&'a [u8], Errno> {
        let (bytes, rest) = self.0.split_at_checked(count).ok_or(Errno::INVAL)?;
        self.0 = rest;
        Ok(bytes)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Errno> {
        self.bytes(N)?.try_into().map_err(|_| Errno::INVAL)
    }
}

/// Bytes of a name: what the kernel takes.
const NAME_MAX: usize = 255;

/// An answer: what is put behind its header.
#[derive(Debug)]
pub struct Answer<'b>(pub &'b mut Vec<u8>);

impl Answer<'_> {
    pub fn u16(&mut self, value: u16) {
        self.0.extend(value.to_ne_bytes());
    }

    pub fn u32(&mut self, value: u32) {
        self.0.extend(value.to_ne_bytes());
    }

    pub fn u64(&mut self, value: u64) {
        self.0.extend(value.to_ne_bytes());
    }

    pub fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend(bytes);
    }
}

/// Makes `answer` a whole message: its header goes into the room that was left for it at `start`.
pub fn finish(answer: &mut Vec<u8>, start: usize, unique: u64, outcome: Result<(), Errno>) {
    let error = match outcome {
        Ok(()) => 0,
        Err(error) => {
            answer.truncate(start + OUT_HEADER);
            -error.raw_os_error()
        }
    };
    let length = u32::try_from(answer.len() - start).unwrap_or(u32::MAX);
    let header = &mut answer[start..start + OUT_HEADER];
    header[..4].copy_from_slice(&length.to_ne_bytes());
    header[4..8].copy_from_slice(&error.to_ne_bytes());
    header[8..].copy_from_slice(&unique.to_ne_bytes());
}

/// An answer that is an error and nothing else.
#[must_use]
pub fn error_answer(unique: u64, error: Errno) -> [u8; OUT_HEADER] {
    let mut answer = vec![0; OUT_HEADER];
    finish(&mut answer, 0, unique, Err(error));
    answer.try_into().unwrap_or([0; OUT_HEADER])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_lead_down_are_names() {
        let name = |bytes: &'static [u8]| Args(bytes).name().map(CStr::to_bytes);
        assert_eq!(name(b"a\0b"), Ok(&b"a"[..]));
        assert_eq!(name(b"...\0"), Ok(&b"..."[..]));
        for refused in [&b"\0"[..], b".\0", b"..\0", b"a/b\0", b"/\0", b"a", b""] {
            assert_eq!(name(refused), Err(Errno::INVAL), "{refused:?}");
        }
        let long: &'static [u8] = vec![b'x'; 256].leak();
        let long: &'static [u8] = [long, b"\0"].concat().leak();
        assert_eq!(name(long), Err(Errno::NAMETOOLONG));
        assert!(name(&long[1..]).is_ok());
    }

    #[test]
    fn a_header_whose_length_is_not_the_requests_is_none() {
        let mut request = vec![0; IN_HEADER + 4];
        request[..4].copy_from_slice(&44_u32.to_ne_bytes());
        assert!(Header::parse(&request).is_some());
        assert!(Header::parse(&request[..43]).is_none());
        assert!(Header::parse(&request[..8]).is_none());
    }

    #[test]
    fn an_error_leaves_nothing_behind_the_header() {
        let mut answer = vec![7; 8];
        answer.extend([0; OUT_HEADER]);
        answer.extend([9; 100]);
        finish(&mut answer, 8, 5, Err(Errno::NOENT));
        assert_eq!(answer.len(), 8 + OUT_HEADER);
        assert_eq!(answer[8..12], 16_u32.to_ne_bytes());
        assert_eq!(answer[12..16], (-2_i32).to_ne_bytes());
        assert_eq!(answer[16..24], 5_u64.to_ne_bytes());
        assert_eq!(error_answer(5, Errno::NOENT), answer[8..]);
    }
}
