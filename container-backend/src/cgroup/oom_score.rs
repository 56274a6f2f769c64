//! Whom the kernel kills first: the score of the processes in a leaf.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use rustix::fs::{Mode, OFlags, open, openat};
use rustix::io::Errno;
use rustix::process::Pid;

use super::leaf::Leaf;
use super::update::{OomScore, UpdateError};

/// Looks at the list of processes: while it is gone through, some fork, and their children have the score of before.
const ROUNDS: usize = 8;

/// Depth of sub-leaves that are looked into.
const DEPTH: usize = 64;

impl Leaf {
    /// Gives the container's processes a new score, and answers the one they had.
    pub(super) fn set_oom_score(&self, wanted: OomScore) -> Result<OomScore, UpdateError> {
        let OomScore { init, score } = wanted;
        let failed = |source: io::Error| match source.raw_os_error() {
            Some(libc::ESRCH | libc::ENOENT) => UpdateError::Gone { dir: self.node().dir },
            _ => UpdateError::OomScore { score, source },
        };
        let before = Process::open(init).and_then(|process| process.score()).map_err(failed)?;
        if before == score {
            return Ok(wanted);
        }
        for _ in 0..ROUNDS {
            match self.change(before, score) {
                Ok(false) => break,
                Ok(true) => {}
                Err(source) => {
                    let _ = self.change(score, before);
                    return Err(failed(source));
                }
            }
        }
        Ok(OomScore { init, score: before })
    }

    /// Whether there was anything to change.
    fn change(&self, from: i32, to: i32) -> io::Result<bool> {
        let mut pids = Vec::new();
        list(&self.node().dir, DEPTH, &mut pids);
        let opened: Vec<_> = pids.iter().filter_map(|pid| Some((pid, Process::open(*pid).ok()?))).collect();
        let mut still = Vec::new();
        list(&self.node().dir, DEPTH, &mut still);
        let mut changed = false;
        for (_, process) in opened.iter().filter(|(pid, _)| still.contains(pid)) {
            match process.score() {
                Ok(score) if score == from => {}
                _ => continue,
            }
            match process.set_score(to) {
                Ok(()) => changed = true,
                // It has ended.
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(changed)
    }
}

/// A process by its folder in /proc, which is never another's.
struct Process(OwnedFd);

impl Process {
    fn open(pid: Pid) -> io::Result<Self> {
        let flags = OFlags::DIRECTORY | OFlags::PATH | OFlags::CLOEXEC;
        Ok(Self(open(format!("/proc/{}", pid.as_raw_nonzero()), flags, Mode::empty())?))
    }

    fn file(&self, flags: OFlags) -> Result<File, Errno> {
        Ok(openat(self.0.as_fd(), "oom_score_adj", flags | OFlags::CLOEXEC, Mode::empty())?.into())
    }

    fn score(&self) -> io::Result<i32> {
        let mut text = String::new();
        self.file(OFlags::RDONLY)?.read_to_string(&mut text)?;
        text.trim().parse().map_err(|_| io::ErrorKind::InvalidData.into())
    }

    fn set_score(&self, score: i32) -> io::Result<()> {
        self.file(OFlags::WRONLY)?.write_all(score.to_string().as_bytes())
    }
}

fn list(dir: &Path, depth: usize, pids: &mut Vec<Pid>) {
    let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    pids.extend(text.lines().filter_map(|line| line.parse().ok().and_then(Pid::from_raw)));
    let Some(depth) = depth.checked_sub(1) else { return };
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            list(&entry.path(), depth, pids);
        }
    }
}
