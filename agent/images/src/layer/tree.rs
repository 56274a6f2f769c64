//! A layer's folder, in which nothing can be reached but what is in it.
//!
//! Nobody else has access to the folder while it is filled (it lies below a folder of mode 0700), so what was looked up stays as it
//! was. What must not be trusted is what the archive itself put there: links above all. Paths are opened with openat2 and
//! `RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS`; only when that fails is the path walked component by component, following links
//! in user space as chroot would (an absolute link starts at the layer's root), and one that climbs out is an error.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat};
use rustix::io::Errno;

use super::archive::Fault;
use super::entry_path::{MAX_DEPTH, join, printable};
use super::error::EntryProblem;
use crate::file_error::{At, FileError};

/// Links that the kernel follows in one path (`MAXSYMLINKS`).
const MAX_LINKS: usize = 40;

/// Marks a folder that hides what lower layers have at its place (Documentation/filesystems/overlayfs.rst).
pub(crate) const OPAQUE: &str = "trusted.overlay.opaque";

pub(super) struct Tree {
    root: OwnedFd,
    /// Where it is, for errors.
    at: PathBuf,
    /// The folder used last: entries of one folder come together.
    last: Option<(Vec<u8>, Folder)>,
    /// Folders that the archive did not list, made because something lies in them. Emptied by whoever writes the file list.
    pub(super) implied: Vec<Vec<u8>>,
    /// The same, in the place of a folder that the archive removed: nothing of the lower layers' shows, nor counts.
    pub(super) replaced: Vec<Vec<u8>>,
}

/// An open folder of the tree.
#[derive(Clone, Debug)]
pub(super) struct Folder {
    fd: Rc<OwnedFd>,
    /// Its path with all links resolved.
    pub(super) path: Vec<u8>,
}

impl AsFd for Folder {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// What stands at a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found {
    Nothing,
    Folder,
    /// A character device 0:0.
    Whiteout,
    Other,
}

/// Whether a lookup may make what is missing.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Missing {
    Make,
    Fail,
}

impl Tree {
    pub(super) fn open(at: &Path) -> Result<Tree, FileError> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let root = rustix::fs::open(at, flags, Mode::empty()).at("open", at)?;
        Ok(Tree { root, at: at.to_owned(), last: None, implied: Vec::new(), replaced: Vec::new() })
    }

    pub(super) fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// The path of something in the tree, for errors.
    pub(super) fn locate(&self, path: &[u8]) -> PathBuf {
        self.at.join(printable(path))
    }

    /// Opens the folder `dir` for the entry `entry` in it, making what is missing of its path.
    pub(super) fn folder(&mut self, dir: &[u8], entry: &[u8]) -> Result<Folder, Fault> {
        if let Some((known, folder)) = &self.last {
            if known == dir {
                return Ok(folder.clone());
            }
        }
        let folder = self.look_up(dir, entry, Missing::Make)?;
        self.last = Some((dir.to_vec(), folder.clone()));
        Ok(folder)
    }

    /// Opens the folder `dir` for the target of a hard link.
    pub(super) fn existing_folder(&mut self, dir: &[u8], entry: &[u8]) -> Result<Folder, Fault> {
        match &self.last {
            Some((known, folder)) if known == dir => Ok(folder.clone()),
            _ => self.look_up(dir, entry, Missing::Fail),
        }
    }

    fn look_up(&mut self, dir: &[u8], entry: &[u8], missing: Missing) -> Result<Folder, Fault> {
        match self.open_plain(dir) {
            Ok(fd) => Ok(Folder { fd: Rc::new(fd), path: dir.to_vec() }),
            // Missing, or below a link or a file: the walk finds out.
            Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR | Errno::XDEV) => self.walk(dir, entry, missing),
            Err(error) => Err(Fault::File(error_at("open", self.locate(dir), error))),
        }
    }

    /// Opens a folder whose path has no links in it.
    fn open_plain(&self, dir: &[u8]) -> rustix::io::Result<OwnedFd> {
        let dir = if dir.is_empty() { b"." } else { dir };
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        retry(|| rustix::fs::openat2(&self.root, dir, flags, Mode::empty(), resolve))
    }

    /// Opens a folder by a path that [`Folder::path`] gave, for its attributes. None when it is no longer there.
    pub(super) fn reopen(&self, path: &[u8]) -> Result<Option<OwnedFd>, FileError> {
        let dir = if path.is_empty() { b"." } else { path };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        match retry(|| rustix::fs::openat2(&self.root, dir, flags, Mode::empty(), resolve)) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::NOENT | Errno::LOOP | Errno::NOTDIR) => Ok(None),
            Err(error) => Err(error_at("open", self.locate(path), error)),
        }
    }

    fn walk(&mut self, dir: &[u8], entry: &[u8], missing: Missing) -> Result<Folder, Fault> {
        let root = self.root.try_clone().at("duplicate", &self.at)?;
        let mut stack = vec![Folder { fd: Rc::new(root), path: Vec::new() }];
        let mut ahead: VecDeque<Vec<u8>> = components(dir).map(<[u8]>::to_vec).collect();
        let mut links = 0;
        let mut link = Vec::new();
        while let (Some(name), Some(here)) = (ahead.pop_front(), stack.last().cloned()) {
            if name == b".." {
                if stack.len() < 2 {
                    let link = printable(&link);
                    return Err(Fault::entry(entry, EntryProblem::LinkEscapes { link }));
                }
                stack.pop();
                continue;
            }
            match self.step(&here, &name, missing).map_err(|error| blame(error, entry))? {
                Step::Folder(_) if stack.len() > MAX_DEPTH => {
                    return Err(Fault::entry(entry, EntryProblem::TooDeep { limit: MAX_DEPTH }));
                }
                Step::Folder(folder) => stack.push(folder),
                Step::Link(_) if links == MAX_LINKS => {
                    return Err(Fault::entry(entry, EntryProblem::LinkLoop));
                }
                Step::Link(target) => {
                    links += 1;
                    if target.starts_with(b"/") {
                        stack.truncate(1);
                    }
                    let target_ahead: Vec<_> = components(&target).map(<[u8]>::to_vec).collect();
                    target_ahead.into_iter().rev().for_each(|name| ahead.push_front(name));
                    link = target;
                }
            }
        }
        stack.pop().ok_or_else(|| Fault::entry(entry, EntryProblem::NoName))
    }

    /// One component of a walk.
    fn step(&mut self, here: &Folder, name: &[u8], missing: Missing) -> Result<Step, StepError> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let path = join(&here.path, name);
        let fd = match rustix::fs::openat(here, name, flags, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::NOENT) if missing == Missing::Make => {
                let folder = self.make_folder(here, name, path)?;
                self.implied.push(folder.path.clone());
                return Ok(Step::Folder(folder));
            }
            Err(Errno::NOENT) => return Err(StepError::Entry(EntryProblem::NotAFolder)),
            Err(error) => return Err(error_at("open", self.locate(&path), error).into()),
        };
        let stat = rustix::fs::fstat(&fd).at("stat", self.locate(&path))?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Ok(Step::Folder(Folder { fd: Rc::new(fd), path })),
            FileType::Symlink => {
                let target =
                    rustix::fs::readlinkat(&fd, "", Vec::new()).at("read link", self.locate(&path))?;
                Ok(Step::Link(target.into_bytes()))
            }
            // The layer removes what was there and puts a folder in its place.
            _ if is_whiteout(&stat) && missing == Missing::Make => {
                rustix::fs::unlinkat(here, name, AtFlags::empty()).at("remove", self.locate(&path))?;
                let folder = self.make_folder(here, name, path)?;
                self.set_opaque(&folder.path)?;
                self.replaced.push(folder.path.clone());
                Ok(Step::Folder(folder))
            }
            _ => Err(StepError::Entry(EntryProblem::NotAFolder)),
        }
    }

    /// 0755 and root's, as containerd makes them; the store corrects that where lower layers say something else.
    fn make_folder(&self, here: &Folder, name: &[u8], path: Vec<u8>) -> Result<Folder, StepError> {
        let mode = Mode::from_raw_mode(0o755);
        rustix::fs::mkdirat(here, name, mode).at("make folder", self.locate(&path))?;
        rustix::fs::chmodat(here, name, mode, AtFlags::empty()).at("set mode of", self.locate(&path))?;
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(here, name, flags, Mode::empty()).at("open", self.locate(&path))?;
        Ok(Folder { fd: Rc::new(fd), path })
    }

    /// What stands at `name`, links not followed.
    pub(super) fn found(&self, folder: &Folder, name: &[u8]) -> Result<Found, FileError> {
        match rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) if is_whiteout(&stat) => Ok(Found::Whiteout),
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => Ok(Found::Folder),
            Ok(_) => Ok(Found::Other),
            Err(Errno::NOENT) => Ok(Found::Nothing),
            Err(error) => Err(error_at("stat", self.locate(&join(&folder.path, name)), error)),
        }
    }

    /// Removes whatever stands at `name`, a folder with all that is in it. Links are removed, not followed.
    pub(super) fn remove(&mut self, folder: &Folder, name: &[u8]) -> Result<(), FileError> {
        match rustix::fs::unlinkat(folder, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            Err(Errno::ISDIR | Errno::PERM) => {}
            Err(error) => return Err(error_at("remove", self.locate(&join(&folder.path, name)), error)),
        }
        // The folder that is remembered may go.
        self.last = None;
        self.remove_folder(folder, name)
    }

    fn remove_folder(&self, folder: &Folder, name: &[u8]) -> Result<(), FileError> {
        let path = join(&folder.path, name);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(folder, name, flags, Mode::empty()).at("open", self.locate(&path))?;
        let listing = rustix::fs::Dir::read_from(&fd).at("list", self.locate(&path))?;
        let inside = Folder { fd: Rc::new(fd), path };
        for entry in listing {
            let entry = entry.at("list", self.locate(&inside.path))?;
            let child = entry.file_name().to_bytes();
            if matches!(child, b"." | b"..") {
                continue;
            }
            match rustix::fs::unlinkat(&inside, child, AtFlags::empty()) {
                Ok(()) => {}
                // At most MAX_DEPTH deep.
                Err(Errno::ISDIR | Errno::PERM) => self.remove_folder(&inside, child)?,
                Err(error) => {
                    return Err(error_at("remove", self.locate(&join(&inside.path, child)), error));
                }
            }
        }
        rustix::fs::unlinkat(folder, name, AtFlags::REMOVEDIR).at("remove", self.locate(&inside.path))
    }

    /// Makes the folder at `path` hide what lower layers have there.
    pub(super) fn set_opaque(&self, path: &[u8]) -> Result<(), FileError> {
        let Some(fd) = self.reopen(path)? else { return Ok(()) };
        rustix::fs::fsetxattr(&fd, OPAQUE, b"y", rustix::fs::XattrFlags::empty())
            .at("mark opaque", self.locate(path))
    }
}

enum Step {
    Folder(Folder),
    Link(Vec<u8>),
}

enum StepError {
    Entry(EntryProblem),
    File(FileError),
}

impl From<FileError> for StepError {
    fn from(error: FileError) -> StepError {
        StepError::File(error)
    }
}

fn blame(error: StepError, entry: &[u8]) -> Fault {
    match error {
        StepError::Entry(problem) => Fault::entry(entry, problem),
        StepError::File(error) => Fault::File(error),
    }
}

fn components(path: &[u8]) -> impl Iterator<Item = &[u8]> {
    path.split(|&b| b == b'/').filter(|component| !matches!(*component, b"" | b"."))
}

pub(super) fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

fn error_at(action: &'static str, path: PathBuf, error: Errno) -> FileError {
    FileError { action, path, source: error.into() }
}

/// openat2 answers EAGAIN when a rename elsewhere raced with it.
fn retry<T>(mut call: impl FnMut() -> rustix::io::Result<T>) -> rustix::io::Result<T> {
    loop {
        match call() {
            Err(Errno::AGAIN | Errno::INTR) => {}
            other => return other,
        }
    }
}
