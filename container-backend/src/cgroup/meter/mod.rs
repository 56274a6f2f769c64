//! A cgroup's numbers from files that are kept open: a sample costs one read per file, and no path is walked.

mod files;
mod huge_pages;
mod numbers;
mod v1;
mod v2;

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use rustix::fs::{Mode, OFlags, open};

use self::files::{FILES, Wanted};
use self::huge_pages::HugePageFiles;
use super::error::CgroupError;
use super::file;
use super::leaf::Leaf;
use super::make::below;
use super::sample::Sample;
use super::tree::{Controller, Hierarchies, Version};

/// How much of a [`Sample`] is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Depth {
    /// CPU time alone: one file.
    Cpu,
    /// CPU time, and memory in use.
    Usage,
    /// What CRI's statistics have.
    Stats,
    /// Everything that metrics have.
    All,
}

/// The open files of one cgroup.
///
/// They keep what is left of a removed cgroup in the kernel's memory until they are closed, so a meter goes with its container.
#[derive(Debug)]
pub struct Meter {
    hierarchies: Arc<Hierarchies>,
    path: String,
    files: Vec<StatFile>,
    /// Opened by the first sample that wants them: sizes neither come nor go.
    huge_page_files: OnceLock<Vec<HugePageFiles>>,
}

#[derive(Debug)]
struct StatFile {
    wanted: &'static Wanted,
    version: Version,
    /// Opened by the first sample that wants it; nothing where the kernel has no such file.
    opened: OnceLock<Option<OwnedFd>>,
}

impl Meter {
    pub(super) fn new(hierarchies: Arc<Hierarchies>, path: &str) -> Self {
        let files = FILES.iter().filter_map(|wanted| {
            let (version, ..) = wanted.place(&hierarchies)?;
            Some(StatFile { wanted, version, opened: OnceLock::new() })
        });
        let files = files.collect();
        Self { hierarchies, path: path.to_owned(), files, huge_page_files: OnceLock::new() }
    }

    /// The cgroup's path below the hierarchies' roots.
    #[must_use]
    pub fn cgroup_path(&self) -> &str {
        &self.path
    }

    /// Its folder in the v2 tree.
    pub(super) fn unified(&self) -> PathBuf {
        below(&self.hierarchies.unified, &self.path)
    }

    /// Reads the numbers; nothing if the cgroup is gone. `buffer` only saves allocations.
    ///
    /// # Errors
    /// When a file that exists cannot be read.
    pub fn read(&self, depth: Depth, buffer: &mut Vec<u8>) -> Result<Option<Sample>, CgroupError> {
        let mut sample = Sample::default();
        let mut any = false;
        for stat in self.files.iter().filter(|f| f.wanted.depth <= depth) {
            let Some(text) = self.text(stat, buffer)? else { continue };
            any = true;
            match stat.version {
                Version::V1 => v1::take(stat.wanted.what, text, &mut sample),
                Version::V2 => v2::take(stat.wanted.what, text, &mut sample),
            }
        }
        if depth == Depth::All {
            let files = self.huge_page_files.get_or_init(|| {
                let home = self.hierarchies.home(Controller::Hugetlb);
                home.map(|(version, root)| huge_pages::open_all(version, &below(root, &self.path)))
                    .unwrap_or_default()
            });
            sample.huge_pages = files.iter().filter_map(|files| files.read(buffer)).collect();
        }
        Ok(any.then_some(sample))
    }

    fn text<'b>(&self, stat: &StatFile, buffer: &'b mut Vec<u8>) -> Result<Option<&'b str>, CgroupError> {
        let failed = |source: io::Error| {
            let file = self.place(stat.wanted).unwrap_or_else(|| PathBuf::from(&self.path));
            CgroupError::Read { file, source }
        };
        let opened = match stat.opened.get() {
            Some(opened) => opened,
            None => {
                let opened = self.open(stat.wanted).map_err(failed)?;
                stat.opened.get_or_init(|| opened)
            }
        };
        let Some(opened) = opened else { return Ok(None) };
        match read_whole(opened, buffer) {
            Ok(()) => Ok(std::str::from_utf8(buffer).ok()),
            // Pressure files without accounting (psi=0) are there, and refuse.
            Err(e) if file::is_gone(&e) || e.raw_os_error() == Some(libc::EOPNOTSUPP) => Ok(None),
            Err(e) => Err(failed(e)),
        }
    }

    fn place(&self, wanted: &Wanted) -> Option<PathBuf> {
        let (_, name, root) = wanted.place(&self.hierarchies)?;
        Some(below(root, &self.path).join(name))
    }

    fn open(&self, wanted: &Wanted) -> io::Result<Option<OwnedFd>> {
        let Some(file) = self.place(wanted) else { return Ok(None) };
        match open(file, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty()).map_err(io::Error::from) {
            Ok(opened) => Ok(Some(opened)),
            Err(e) if file::is_gone(&e) => Ok(None),
            Err(e) => Err(e),
        }
    }
}

/// The kernel makes an interface file's text anew at each read from its start, as a whole: so a read that leaves room has all of it.
fn read_whole(file: &OwnedFd, buffer: &mut Vec<u8>) -> io::Result<()> {
    const FIRST: usize = 4096;
    /// No file of numbers is nearly as long.
    const MOST: usize = 1 << 20;
    buffer.clear();
    buffer.reserve(FIRST);
    loop {
        let (read, room) = (buffer.len(), buffer.capacity() - buffer.len());
        match rustix::io::pread(file, rustix::buffer::spare_capacity(buffer), read as u64) {
            Ok(n) if n < room || buffer.len() >= MOST => return Ok(()),
            Ok(_) => buffer.reserve(buffer.len()),
            Err(rustix::io::Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}

impl Leaf {
    /// A meter of the leaf; it opens nothing yet.
    #[must_use]
    pub fn meter(&self) -> Meter {
        Meter::new(Arc::clone(&self.hierarchies), &self.path)
    }

    /// A meter of the leaf's parent: of the whole pod, where the kubelet made a cgroup for each.
    #[must_use]
    pub fn parent_meter(&self) -> Meter {
        let parent = self.path.rsplit_once('/').map_or("", |(parent, _)| parent);
        Meter::new(Arc::clone(&self.hierarchies), parent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_names_the_file() {
        let dir = tempfile::tempdir().unwrap();
        // Opened and not read: EISDIR.
        let odd = dir.path().join("pod/cpu.stat");
        std::fs::create_dir_all(&odd).unwrap();
        let hierarchies = Hierarchies { unified: dir.path().to_owned(), v2: [].into(), v1: Vec::new() };
        let error = Meter::new(Arc::new(hierarchies), "/pod").read(Depth::Cpu, &mut Vec::new()).unwrap_err();
        assert!(matches!(&error, CgroupError::Read { file, .. } if *file == odd), "{error:?}");
    }
}
