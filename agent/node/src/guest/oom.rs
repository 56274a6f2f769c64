//! Whom the kernel kills first when the node has no memory left: a VMM stands for the containers in its guest.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::BorrowedFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Gives the VMM `score`, the highest `oom_score_adj` (proc_pid_oom_score_adj(5)) that a container in its guest has. One that has ended is
/// success.
///
/// # Errors
/// Lowering it needs CAP_SYS_RESOURCE.
pub(crate) fn set_score(pid: i32, pidfd: BorrowedFd<'_>, score: i64) -> io::Result<()> {
    let path = format!("/proc/{pid}/oom_score_adj");
    let opened = OpenOptions::new().write(true).open(&path);
    // What was opened is the file of whoever had the number then: of the VMM, if it has not ended since.
    if has_ended(pidfd)? {
        return Ok(());
    }
    let file: File = opened?;
    // Most often the last container had the same.
    if fs::read_to_string(&path).is_ok_and(|now| now.trim() == score.to_string()) {
        return Ok(());
    }
    (&file).write_all(score.to_string().as_bytes())
}

fn has_ended(pidfd: BorrowedFd<'_>) -> io::Result<bool> {
    let mut ended = [PollFd::from_borrowed_fd(pidfd, PollFlags::IN)];
    Ok(rustix::io::retry_on_intr(|| poll(&mut ended, Some(&Timespec::default())))? > 0)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;
    use std::process::Command;

    use rustix::process::{Pid, PidfdFlags, pidfd_open};

    use super::*;

    #[test]
    fn a_process_gets_its_score_and_one_that_ended_needs_none() {
        let mut child = Command::new("sleep").arg("100").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let pidfd = pidfd_open(Pid::from_raw(pid).unwrap(), PidfdFlags::empty()).unwrap();
        for _ in 0..2 {
            set_score(pid, pidfd.as_fd(), 777).unwrap();
            let score = fs::read_to_string(format!("/proc/{pid}/oom_score_adj")).unwrap();
            assert_eq!(score.trim(), "777");
        }
        child.kill().unwrap();
        child.wait().unwrap();
        set_score(pid, pidfd.as_fd(), 778).unwrap();
    }
}
