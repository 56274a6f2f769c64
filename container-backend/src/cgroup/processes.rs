//! The processes of a cgroup, and what they hold open.

use std::ffi::CStr;
use std::fs;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use rustix::fs::{Mode, OFlags, RawDir, open, readlinkat_raw, stat};

use super::file;
use super::meter::Meter;
use crate::sys::process::soft_limit;

/// Processes that are looked into; a container may have as many as its limit allows.
const MOST_PROCESSES: usize = 4096;
/// Open files of one cgroup that are looked at for sockets.
const MOST_LOOKS: u64 = 4096;
/// Entries of a process's list of open files, where the kernel does not tell their number.
const MOST_LISTED: u64 = 65_536;
/// Cgroups below it: execs, and what a container with a cgroup tree of its own makes.
const MOST_CGROUPS: usize = 1024;
/// What the names of sockets in /proc/PID/fd begin with.
const SOCKET: &[u8; 7] = b"socket:";

/// What the processes of a cgroup, and of those below it, have.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ProcessSample {
    /// Processes, zombies left out.
    pub processes: u64,
    /// Open files of all of them; none where there are more processes than are looked into, or more files than are listed.
    pub files: Option<u64>,
    /// Those that are sockets; none where there are more files than are looked at.
    pub sockets: Option<u64>,
}

impl ProcessSample {
    /// Both together.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        let sum = |one: Option<u64>, other: Option<u64>| Some(one?.saturating_add(other?));
        Self {
            processes: self.processes.saturating_add(other.processes),
            files: sum(self.files, other.files),
            sockets: sum(self.sockets, other.sockets),
        }
    }
}

/// How many open files may still be listed or looked at, by all counts that are made for one answer. Since Linux 6.2 the kernel tells how many files a
/// process has; before, they have to be listed. Which are sockets shows by their names alone, and each name costs a call.
#[derive(Debug)]
pub struct FileLooks(u64);

impl FileLooks {
    #[must_use]
    pub fn new(most: u32) -> Self {
        Self(most.into())
    }
}

impl Meter {
    /// Counts them; nothing if the cgroup is gone. Takes a microsecond for each process and for each look, and is bounded.
    #[must_use]
    pub fn processes(&self, looks: &mut FileLooks) -> Option<ProcessSample> {
        let mut counts = Counts::new(looks);
        let mut dirs = vec![self.unified()];
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
        Some(counts.sample())
    }
}

/// How many files a process has open, 0 if it is gone; nothing where they are too many for a kernel that does not count them.
#[must_use]
pub fn open_files(pid: u32) -> Option<u64> {
    files_in(&fd_dir(&pid.to_string()), &mut FileLooks(MOST_LISTED))
}

fn fd_dir(pid: &str) -> String {
    format!("/proc/{pid}/fd")
}

/// The size of the folder is the number of open files (Linux 6.2; 0 before).
fn files_in(dir: &str, looks: &mut FileLooks) -> Option<u64> {
    /// Whoever asks has files open itself.
    static IS_COUNTED: LazyLock<bool> =
        LazyLock::new(|| stat("/proc/self/fd").is_ok_and(|found| found.st_size > 0));
    match stat(dir).map(|found| u64::try_from(found.st_size)) {
        Err(_) => Some(0),
        Ok(Ok(files)) if *IS_COUNTED => Some(files),
        Ok(_) => listed(dir, looks),
    }
}

/// Nothing where there are more than may be looked at.
fn listed(dir: &str, looks: &mut FileLooks) -> Option<u64> {
    let room = looks.0.min(MOST_LISTED);
    if room == 0 {
        return None;
    }
    let mut files = 0;
    each(dir, |_, _| {
        files += 1;
        files <= room
    });
    looks.0 -= files.min(room);
    (files <= room).then_some(files)
}

/// Calls `see` with the folder and each name in it, until it says no.
fn each(dir: &str, mut see: impl FnMut(&OwnedFd, &CStr) -> bool) {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(folder) = open(dir, flags, Mode::empty()) else { return };
    let mut entries = [MaybeUninit::uninit(); 2048];
    let mut entries = RawDir::new(&folder, &mut entries);
    while let Some(Ok(entry)) = entries.next() {
        let name = entry.file_name();
        if !name.to_bytes().starts_with(b".") && !see(&folder, name) {
            return;
        }
    }
}

fn is_socket(folder: &OwnedFd, name: &CStr) -> bool {
    // The rest of the target is of no interest.
    let mut target = [MaybeUninit::uninit(); SOCKET.len()];
    readlinkat_raw(folder, name, &mut target).is_ok_and(|(target, _)| *target == *SOCKET)
}

fn below(dir: &Path) -> impl Iterator<Item = PathBuf> {
    // A cgroup has two links, and one for each below it: most have none, and many files.
    let has_some = fs::metadata(dir).is_ok_and(|metadata| metadata.nlink() != 2);
    let dir = has_some.then_some(dir);
    let entries = dir.map(fs::read_dir).into_iter().flatten().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|t| t.is_dir())).map(|entry| entry.path())
}

#[derive(Debug)]
struct Counts<'a> {
    looks: &'a mut FileLooks,
    processes: usize,
    files: Option<u64>,
    sockets: Option<u64>,
    /// Looks at files of this cgroup.
    looked: u64,
}

impl<'a> Counts<'a> {
    fn new(looks: &'a mut FileLooks) -> Self {
        Self { looks, processes: 0, files: Some(0), sockets: Some(0), looked: 0 }
    }

    fn add(&mut self, pid: &str) {
        self.processes += 1;
        if self.processes > MOST_PROCESSES {
            (self.files, self.sockets) = (None, None);
            return;
        }
        let dir = fd_dir(pid);
        let files = files_in(&dir, self.looks);
        self.files = self.files.zip(files).map(|(known, files)| known.saturating_add(files));
        self.sockets = self.sockets.and_then(|known| Some(known + self.sockets_in(&dir, files?)?));
    }

    /// Nothing where that would be too many looks.
    fn sockets_in(&mut self, dir: &str, files: u64) -> Option<u64> {
        let room = self.looks.0.min(MOST_LOOKS - self.looked);
        if files > room {
            return None;
        }
        if files == 0 {
            return Some(0);
        }
        let (mut looked, mut sockets) = (0, 0);
        // It may open more meanwhile.
        each(dir, |folder, name| {
            looked += 1;
            sockets += u64::from(is_socket(folder, name));
            looked < room
        });
        self.looked += looked;
        self.looks.0 -= looked;
        Some(sockets)
    }

    fn sample(self) -> ProcessSample {
        ProcessSample { processes: self.processes as u64, files: self.files, sockets: self.sockets }
    }
}

/// How many files a process may have open (its soft limit, RLIMIT_NOFILE); nothing without a limit, or if it is gone.
#[must_use]
pub fn open_files_limit(pid: i32) -> Option<u64> {
    // 0 would be the caller.
    let limit = (pid > 0).then(|| soft_limit(pid, libc::RLIMIT_NOFILE).ok()).flatten();
    limit.filter(|limit| *limit != libc::RLIM64_INFINITY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_files_and_sockets_of_a_process_are_counted() {
        let own = rustix::process::getpid().as_raw_nonzero().to_string();
        let count = |most| {
            let mut looks = FileLooks::new(most);
            let mut counts = Counts::new(&mut looks);
            counts.add(&own);
            counts.sample()
        };
        let pair = std::os::unix::net::UnixStream::pair().unwrap();
        let file = tempfile::tempfile().unwrap();
        let counts = count(1000);
        // Tests that run beside this one open and close files as well.
        assert!(counts.processes == 1 && counts.sockets.unwrap() >= 2, "{counts:?}");
        assert!(counts.files > counts.sockets, "{counts:?}");
        let unseen = count(3);
        assert!(unseen.files.is_some() && unseen.sockets.is_none(), "{unseen:?}");
        drop((pair, file));
    }

    #[test]
    fn a_process_that_is_gone_has_nothing_open() {
        let mut looks = FileLooks::new(1);
        let mut counts = Counts::new(&mut looks);
        counts.add("0");
        assert_eq!(counts.sample(), ProcessSample { processes: 1, files: Some(0), sockets: Some(0) });
    }

    #[test]
    fn looks_are_shared_by_all_cgroups_of_an_answer() {
        let own = rustix::process::getpid().as_raw_nonzero().to_string();
        let mut looks = FileLooks::new(1_000_000);
        Counts::new(&mut looks).add(&own);
        assert!(looks.0 < 1_000_000);
        looks.0 = 1;
        let mut other = Counts::new(&mut looks);
        other.add(&own);
        assert_eq!(other.sample().sockets, None);
    }

    #[test]
    fn what_the_kernel_counts_can_be_listed() {
        let _open: Vec<_> = (0..100).map(|_| tempfile::tempfile().unwrap()).collect();
        let mut looks = FileLooks::new(10_000);
        let told = open_files(std::process::id()).unwrap();
        let found = listed("/proc/self/fd", &mut looks).unwrap();
        // Other tests open and close files as well.
        assert!(told >= 100 && found >= 100 && told.abs_diff(found) < 50, "{told} and {found}");
        assert_eq!(looks.0, 10_000 - found, "each was a look");
        looks.0 = 50;
        assert_eq!((listed("/proc/self/fd", &mut looks), looks.0), (None, 0), "there are more than 50");
        assert_eq!(listed("/proc/self/fd", &mut looks), None, "none may be looked at");
    }

    #[test]
    fn of_what_is_not_known_there_is_no_sum() {
        let one = ProcessSample { processes: 2, files: Some(7), sockets: Some(1) };
        let other = ProcessSample { processes: 1, files: Some(3), sockets: None };
        assert_eq!(one.and(other), ProcessSample { processes: 3, files: Some(10), sockets: None });
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
