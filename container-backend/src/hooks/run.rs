//! A hook that the daemon runs, which has threads and so only spawns.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::path::Path;
use std::process::{Child, ChildStderr, ExitStatus, Stdio};
use std::time::Instant;

use oci_spec::runtime::Hook;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

use super::{Budget, DRAIN, HookFailure, Launcher, Tail};

/// Runs a hook in the folder `bundle` with `state` as its stdin, in this process's namespaces and cgroups and a process group of its own,
/// until it ends or has had its time.
///
/// # Errors
/// See [`HookFailure`].
pub fn run_blocking(
    hook: &Hook,
    bundle: &Path,
    state: OwnedFd,
    launcher: Launcher<'_>,
    budget: Budget,
) -> Result<(), HookFailure> {
    let after = budget.timeout(hook);
    let deadline = Instant::now() + after;
    let mut child = spawn(hook, bundle, state, launcher)?;
    let mut tail = Tail::default();
    let stderr = child.stderr.take();
    let ended = wait_blocking(&mut child, stderr, &mut tail, deadline);
    match ended {
        Ok(Some(status)) if status.success() => Ok(()),
        Ok(Some(status)) => {
            let code = status.code().or(status.signal().map(|signal| 128 + signal)).unwrap_or(255);
            Err(HookFailure::Code { code, stderr: tail.text() })
        }
        Ok(None) => {
            kill(&mut child);
            Err(HookFailure::TimedOut { after, stderr: tail.text() })
        }
        Err(source) => {
            kill(&mut child);
            Err(HookFailure::step("wait for its end")(source))
        }
    }
}

fn spawn(hook: &Hook, bundle: &Path, state: OwnedFd, launcher: Launcher<'_>) -> Result<Child, HookFailure> {
    let mut command = launcher.command(hook);
    command.current_dir(bundle).process_group(0);
    command.stdin(Stdio::from(state)).stdout(Stdio::null()).stderr(Stdio::piped());
    command.spawn().map_err(HookFailure::step("execute it"))
}

fn kill(child: &mut Child) {
    // The group lives as long as its leader is not reaped, which comes after.
    if let Some(group) = i32::try_from(child.id()).ok().and_then(Pid::from_raw) {
        let _ = kill_process_group(group, Signal::KILL);
    }
    let _ = child.wait();
}

/// Reads what a program writes until it has ended, and how it did; nothing if it did not in time.
///
/// # Errors
/// Those of poll(2), read(2) and waitpid(2).
pub fn wait_blocking(
    child: &mut Child,
    stderr: Option<ChildStderr>,
    tail: &mut Tail,
    mut deadline: Instant,
) -> io::Result<Option<ExitStatus>> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).ok_or(io::ErrorKind::InvalidInput)?;
    let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
    let mut stderr = stderr.map(|stderr| File::from(OwnedFd::from(stderr)));
    let mut status = None;
    while status.is_none() || stderr.is_some() {
        let Some(left) = deadline.checked_duration_since(Instant::now()) else { return Ok(status) };
        let mut polled = Vec::with_capacity(2);
        let reads = stderr.as_ref().map(|stderr| PollFd::from_borrowed_fd(stderr.as_fd(), PollFlags::IN));
        let waits = status.is_none().then(|| PollFd::new(&pidfd, PollFlags::IN));
        let has_reads = reads.is_some();
        polled.extend(reads.into_iter().chain(waits));
        let left = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut polled, Some(&left)) {
            Err(rustix::io::Errno::INTR) => continue,
            other => other?,
        };
        let readable = has_reads && !polled.first().is_some_and(|fd| fd.revents().is_empty());
        drop(polled);
        if readable && !read(stderr.as_mut(), tail)? {
            stderr = None;
        }
        if status.is_none() {
            status = child.try_wait()?;
            if status.is_some() {
                // What it has left in the background may keep its stderr.
                deadline = deadline.min(Instant::now() + DRAIN);
            }
        }
    }
    Ok(status)
}

/// False at the end.
fn read(stderr: Option<&mut File>, tail: &mut Tail) -> io::Result<bool> {
    let mut chunk = [0; 4096];
    let Some(stderr) = stderr else { return Ok(false) };
    match stderr.read(&mut chunk) {
        Ok(0) => Ok(false),
        Ok(count) => {
            tail.push(&chunk[..count]);
            Ok(true)
        }
        Err(error) if error.kind() == io::ErrorKind::Interrupted => Ok(true),
        Err(error) => Err(error),
    }
}
