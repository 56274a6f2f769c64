//! The container's root while it is put together. Every path in it comes from an image or a spec, so each is resolved
//! with this folder as its root: a symlink of the image, absolute or full of `..`, cannot lead out.

use std::ffi::OsStr;
use std::os::fd::{AsFd as _, AsRawFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use rustix::fs::{Mode, OFlags, ResolveFlags, fstat, fstatfs, mkdirat, openat, openat2, readlinkat};

use crate::errno::Errno;

/// Like the kernel's own limit on symlinks in one path, but for missing folders and dangling links together.
const MAX_STEPS: usize = 255;
/// linux/magic.h
const PROC_SUPER_MAGIC: i64 = 0x9fa0;

/// A folder that is the root of what is resolved in it.
#[derive(Debug)]
pub(crate) struct Root {
    fd: OwnedFd,
    /// Where it is in this process's mount namespace, while it is attached somewhere.
    mounted_at: PathBuf,
}

/// What a mount point is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PointKind {
    Folder,
    File,
}

impl Root {
    /// The root of the mount that is attached at this path.
    pub(crate) fn open(mounted_at: impl Into<PathBuf>) -> Result<Self, Errno> {
        let mounted_at = mounted_at.into();
        let fd =
            rustix::fs::open(&mounted_at, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
        Ok(Self { fd, mounted_at })
    }

    /// Whether both are the same folder of the same mount.
    pub(crate) fn is_same_mount(&self, other: &Self) -> Result<bool, Errno> {
        use rustix::fs::{AtFlags, StatxFlags, statx};

        let id = |root: &Self| {
            let found = statx(&root.fd, "", AtFlags::EMPTY_PATH, StatxFlags::MNT_ID | StatxFlags::INO)?;
            Ok::<_, Errno>((found.stx_mnt_id, found.stx_ino))
        };
        Ok(id(self)? == id(other)?)
    }

    /// A reference to what a path leads to, symlinks followed.
    pub(crate) fn resolve(&self, path: &Path) -> Result<OwnedFd, Errno> {
        self.resolve_with(path, OFlags::PATH, ResolveFlags::empty())
    }

    /// As [`Root::resolve`], but a symlink anywhere is ELOOP.
    pub(crate) fn resolve_without_symlinks(&self, path: &Path) -> Result<OwnedFd, Errno> {
        self.resolve_with(path, OFlags::PATH, ResolveFlags::NO_SYMLINKS)
    }

    /// Opens a plain file for reading. FIFOs and devices do not block, and are refused with EINVAL.
    pub(crate) fn open_file(&self, path: &Path) -> Result<OwnedFd, Errno> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY;
        let fd = self.resolve_with(path, flags, ResolveFlags::empty())?;
        let is_file = rustix::fs::FileType::from_raw_mode(fstat(&fd)?.st_mode).is_file();
        if is_file { Ok(fd) } else { Err(Errno::INVAL) }
    }

    fn resolve_with(&self, path: &Path, flags: OFlags, resolve: ResolveFlags) -> Result<OwnedFd, Errno> {
        let resolve = resolve | ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        open_confined(self.fd.as_fd(), path, flags, Mode::empty(), resolve)
    }

    /// A reference to a path, which is made if it is missing: folders with mode 0755, files (empty) with 0644. A dangling
    /// symlink gets what it points to.
    pub(crate) fn resolve_or_make(&self, path: &Path, kind: PointKind) -> Result<OwnedFd, Errno> {
        let mut steps = MAX_STEPS;
        self.make(path, kind, &mut steps)
    }

    fn make(&self, path: &Path, kind: PointKind, steps: &mut usize) -> Result<OwnedFd, Errno> {
        *steps = steps.checked_sub(1).ok_or(Errno::LOOP)?;
        match self.resolve(path) {
            Err(Errno::NOENT) => {}
            found => return found,
        }
        let name = path.file_name().ok_or(Errno::NOENT)?;
        if !matches!(path.components().next_back(), Some(Component::Normal(_))) {
            return Err(Errno::NOENT);
        }
        let parent = self.make(path.parent().unwrap_or(Path::new("/")), PointKind::Folder, steps)?;
        let made = match kind {
            PointKind::Folder => mkdirat(&parent, name, Mode::from_raw_mode(0o755)),
            PointKind::File => {
                let flags =
                    OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                openat(&parent, name, flags, Mode::from_raw_mode(0o644)).map(drop)
            }
        };
        match made {
            Ok(()) => {}
            // It was not there when followed, but the name is taken.
            Err(rustix::io::Errno::EXIST) => {
                let target = self.link_target(&parent, name)?;
                return self.make(&target, kind, steps);
            }
            Err(e) => return Err(e.into()),
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        Ok(openat(&parent, name, flags, Mode::empty())?)
    }

    /// Where a symlink points to, as a path from this root.
    fn link_target(&self, parent: &OwnedFd, name: &OsStr) -> Result<PathBuf, Errno> {
        use std::os::unix::ffi::OsStrExt as _;

        let target = readlinkat(parent, name, Vec::new())?;
        let target = Path::new(OsStr::from_bytes(target.to_bytes()));
        let here = std::fs::read_link(format!("/proc/self/fd/{}", parent.as_raw_fd()))?;
        let here = here.strip_prefix(&self.mounted_at).map_err(|_| Errno::NOENT)?;
        Ok(Path::new("/").join(here).join(target))
    }
}

/// `openat2(2)`. A `..` cannot be checked while anything is renamed or mounted anywhere on the node; the kernel then says
/// EAGAIN and it has to be tried again.
pub(crate) fn open_confined(
    dir: BorrowedFd<'_>,
    path: &Path,
    flags: OFlags,
    mode: Mode,
    resolve: ResolveFlags,
) -> Result<OwnedFd, Errno> {
    /// More would be an attack.
    const TRIES: usize = 128;
    for _ in 1..TRIES {
        match openat2(dir, path, flags | OFlags::CLOEXEC, mode, resolve) {
            Err(rustix::io::Errno::AGAIN) => {}
            other => return Ok(other?),
        }
    }
    Ok(openat2(dir, path, flags | OFlags::CLOEXEC, mode, resolve)?)
}

/// Whether this is part of a procfs.
pub(crate) fn is_procfs(fd: BorrowedFd<'_>) -> Result<bool, Errno> {
    Ok(fstatfs(fd)?.f_type as i64 == PROC_SUPER_MAGIC)
}

pub(crate) fn kind_of(fd: BorrowedFd<'_>) -> Result<PointKind, Errno> {
    let folder = rustix::fs::FileType::from_raw_mode(fstat(fd)?.st_mode).is_dir();
    Ok(if folder { PointKind::Folder } else { PointKind::File })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use super::*;

    fn root() -> (tempfile::TempDir, Root) {
        let outside = tempfile::tempdir().unwrap();
        let dir = outside.path().join("root");
        fs::create_dir(&dir).unwrap();
        let root = Root::open(dir).unwrap();
        (outside, root)
    }

    fn same(fd: &OwnedFd, path: &Path) -> bool {
        let (a, b) = (fstat(fd).unwrap(), rustix::fs::stat(path).unwrap());
        (a.st_dev, a.st_ino) == (b.st_dev, b.st_ino)
    }

    #[test]
    fn links_that_lead_out_stay_inside() {
        let (outside, root) = root();
        let dir = outside.path().join("root");
        symlink("../../../../..", dir.join("up")).unwrap();
        symlink("/", dir.join("top")).unwrap();
        for path in ["/up", "/top", "/../..", "up/../top"] {
            assert!(same(&root.resolve(Path::new(path)).unwrap(), &dir), "{path}");
        }
        root.resolve_or_make(Path::new("/up/etc/made"), PointKind::File).unwrap();
        assert!(dir.join("etc/made").is_file());
    }

    #[test]
    fn a_dangling_link_gets_its_target_inside() {
        let (outside, root) = root();
        let dir = outside.path().join("root");
        fs::create_dir_all(dir.join("etc/deep")).unwrap();
        symlink("../../run/resolve/stub.conf", dir.join("etc/deep/resolv.conf")).unwrap();
        symlink("/var/none", dir.join("etc/abs")).unwrap();
        let made = root.resolve_or_make(Path::new("/etc/deep/resolv.conf"), PointKind::File).unwrap();
        assert!(same(&made, &dir.join("run/resolve/stub.conf")));
        root.resolve_or_make(Path::new("/etc/abs/x"), PointKind::Folder).unwrap();
        assert!(dir.join("var/none/x").is_dir());
    }

    #[test]
    fn loops_and_missing_parents_of_dots_are_errors() {
        let (outside, root) = root();
        symlink("b", outside.path().join("root/a")).unwrap();
        symlink("a", outside.path().join("root/b")).unwrap();
        assert_eq!(root.resolve_or_make(Path::new("/a"), PointKind::File).unwrap_err(), Errno::LOOP);
        assert_eq!(root.resolve_or_make(Path::new("/no/.."), PointKind::Folder).unwrap_err(), Errno::NOENT);
        assert!(!outside.path().join("root/no").exists());
    }

    #[test]
    fn a_fifo_is_not_read() {
        let (outside, root) = root();
        let fifo = outside.path().join("root/passwd");
        rustix::fs::mknodat(rustix::fs::CWD, fifo, rustix::fs::FileType::Fifo, Mode::RUSR, 0).unwrap();
        assert_eq!(root.open_file(Path::new("/passwd")).unwrap_err(), Errno::INVAL);
    }
}
