//! The end of a guest.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::time::Duration;

use hartpod_container::fork_role;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::system::{RebootCommand, reboot};
use tracing::warn;

/// How long file systems may take to write what they have left; most disks go with the guest.
const SYNC_WAIT: Duration = Duration::from_secs(5);

/// Longest last words; a line of the kernel's log has less than 1 KiB.
const WORDS_MAX: usize = 900;

/// Writes back and powers the guest off. Returns only when that failed.
pub(super) fn off() {
    sync();
    if let Err(error) = reboot(RebootCommand::PowerOff) {
        last_words(&format!("cannot power off: {error}"));
    }
}

/// In a child: a disk that hangs must not keep the guest.
fn sync() {
    let synced = fork_role("hartpod-sync", &[], || {
        rustix::fs::sync();
        0
    });
    let Ok(child) = synced else { return };
    let wait = Timespec { tv_sec: i64::try_from(SYNC_WAIT.as_secs()).unwrap_or(i64::MAX), tv_nsec: 0 };
    if poll(&mut [PollFd::new(&child, PollFlags::IN)], Some(&wait)) == Ok(0) {
        warn!("a disk did not write back in time");
    }
}

/// Says on the console why the guest ends, at the level that is shown there whatever the command line says.
pub(super) fn last_words(words: &str) {
    let mut line: String =
        words.chars().map(|c| if c.is_control() { ' ' } else { c }).take(WORDS_MAX).collect();
    line.insert_str(0, "<0>hartpod-pod: ");
    line.push('\n');
    // There is nobody left to tell of a failure.
    let _ =
        OpenOptions::new().write(true).open("/dev/kmsg").and_then(|mut log| log.write_all(line.as_bytes()));
}
