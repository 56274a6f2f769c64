//! The processes of a cgroup, and what they hold open.

use std::fs;
use std::mem::MaybeUninit;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, RawDir, open, readlinkat_raw};

use super::file;
use super::meter::Meter;

/// Processes that are looked into; a container may have as many as its limit allows.
const MOST_PROCESSES: usize = 4096;
/// Open files that are looked at in all of a cgroup.
const MOST_FILES: u64 = 65_536;
/// Cgroups below it: execs, and what a container with a cgroup tree of its own makes.
const MOST_CGROUPS: usize = 1024;
/// What the names of sockets in /proc/PID/fd begin with.
const SOCKET: &[u8; 7] = b"socket:";

/// What the processes of a cgroup, and of those below it, have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ProcessSample {
    /// Processes, zombies left out.
    pub processes: u64,
    /// Open files of all of them; none where there are more than are looked at.
    pub files: Option<u64>,
    /// Those that are sockets.
    pub sockets: Option<u64>,
}

impl Meter {
    /// Counts them; nothing if the cgroup is gone. Takes a few microseconds for each open file, and is bounded.
    #[must_use]
    pub fn processes(&self) -> Option<ProcessSample> {
        let mut counts = Counts::default();
        let mut dirs = vec![self.unified().to_owned()];
        let mut seen = 0;
        while let Some(dir) = dirs.pop() {
            seen += 1;
            let Ok(Some(pids)) = file::read_if_there(&dir.join("cgroup.procs")) else {
                // One below may go meanwhile; without the cgroup itself there is nothing to tell.
                if seen == 1 {
                    return None;
                }
                continue;
            };
            pids.lines().for_each(|pid| counts.add(pid));
            if seen < MOST_CGROUPS {
                dirs.extend(below(&dir));
            }
        }
        let whole = counts.processes <= MOST_PROCESSES && counts.files <= MOST_FILES;
        Some(ProcessSample {
            processes: counts.processes as u64,
            files: whole.then_some(counts.files),
            sockets: whole.then_some(counts.sockets),
        })
    }
}

/// How many files a process may have open (its soft limit, RLIMIT_NOFILE); nothing if it is gone.
#[must_use]
pub fn open_files_limit(pid: i32) -> Option<u64> {
    let limits = fs::read_to_string(format!("/proc/{pid}/limits")).ok()?;
    let line = limits.lines().find_map(|line| line.strip_prefix("Max open files"))?;
    line.split_whitespace().next()?.parse().ok()
}

fn below(dir: &Path) -> impl Iterator<Item = PathBuf> {
    // A cgroup has two links, and one for each below it: most have none, and many files.
    let has_some = fs::metadata(dir).is_ok_and(|metadata| metadata.nlink() != 2);
    let dir = has_some.then_some(dir);
    let entries = dir.map(fs::read_dir).into_iter().flatten().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|t| t.is_dir())).map(|entry| entry.path())
}

#[derive(Debug, Default)]
struct Counts {
    processes: usize,
    files: u64,
    sockets: u64,
}

impl Counts {
    fn add(&mut self, pid: &str) {
        self.processes += 1;
        if self.processes > MOST_PROCESSES {
            return;
        }
        // One that has ended meanwhile has no files.
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let Ok(files) = open(format!("/proc/{pid}/fd"), flags, Mode::empty()) else { return };
        let mut entries = [MaybeUninit::uninit(); 2048];
        let mut entries = RawDir::new(&files, &mut entries);
        while let Some(Ok(entry)) = entries.next() {
            if entry.file_name().to_bytes().starts_with(b".") {
                continue;
            }
            self.files += 1;
            if self.files > MOST_FILES {
                return;
            }
            // The rest of the name is of no interest.
            let mut target = [MaybeUninit::uninit(); SOCKET.len()];
            let target = readlinkat_raw(&files, entry.file_name(), &mut target);
            self.sockets += u64::from(target.is_ok_and(|(target, _)| *target == *SOCKET));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_files_and_sockets_of_a_process_are_counted() {
        let own = rustix::process::getpid().as_raw_nonzero().to_string();
        let count = || {
            let mut counts = Counts::default();
            counts.add(&own);
            counts
        };
        let pair = std::os::unix::net::UnixStream::pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        let counts = count();
        // Tests that run beside this one open and close files as well.
        assert!(counts.processes == 1 && counts.sockets >= 2 && counts.files > counts.sockets, "{counts:?}");
        drop((pair, file));
        let mut gone = Counts::default();
        gone.add("0");
        assert_eq!((gone.processes, gone.files), (1, 0));
    }

    #[test]
    fn a_cgroup_without_others_below_is_not_listed() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(below(dir.path()).count(), 0);
        fs::create_dir(dir.path().join("exec")).unwrap();
        assert_eq!(below(dir.path()).collect::<Vec<_>>(), [dir.path().join("exec")]);
        assert_eq!(below(Path::new("/none")).count(), 0);
    }

    #[test]
    fn the_limit_of_open_files_is_the_soft_one() {
        let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
        assert_eq!(open_files_limit(rustix::process::getpid().as_raw_nonzero().get()), limit.current);
        assert_eq!(open_files_limit(0), None);
    }
}
