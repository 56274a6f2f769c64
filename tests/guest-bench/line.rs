//! Waiting for a line of a file that another process appends to.

use std::fs;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hartpod_tests::eventually::patient;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

/// Far more than a guest's start takes.
const PATIENCE: Duration = Duration::from_secs(20);

/// Returns as soon as a whole line of `path` contains `text`. Nothing runs meanwhile: on two emulated processors polling would be felt.
pub(crate) fn wait_for_line(path: &Path, text: &str) -> Result<()> {
    let deadline = Instant::now() + patient(PATIENCE);
    let changes = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK).context("make an inotify")?;
    changes.add_watch(path, AddWatchFlags::IN_MODIFY).with_context(|| format!("watch {}", path.display()))?;
    loop {
        let bytes = fs::read(path).with_context(|| format!("read {}", path.display()))?;
        let said = String::from_utf8_lossy(&bytes);
        let whole = said.rsplit_once('\n').map_or("", |(whole, _)| whole);
        if whole.contains(text) {
            return Ok(());
        }
        let left = deadline.saturating_duration_since(Instant::now());
        ensure!(!left.is_zero(), "no {text:?} in {}:\n{said}", path.display());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        poll(&mut [PollFd::new(changes.as_fd(), PollFlags::POLLIN)], timeout).context("poll")?;
        // What has changed is in the file.
        let _ = changes.read_events();
    }
}
