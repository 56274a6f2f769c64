//! Copies of an output for those who are attached to it.
//!
//! A copy goes into a pipe of the agent's, from which it goes on to the attacher's connection. The pipe is all that is kept for an attacher:
//! for one that lags behind by more than it holds, the copy ends. So neither the output nor its log ever waits for an attacher, and where
//! nobody is attached there is nothing to do.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::retry_on_intr;
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};

use super::Pipe;

/// A pipe that keeps `room` bytes for an attacher: the end that is copied into, which never blocks, and the one to read from.
pub(crate) fn tap(room: usize) -> io::Result<(OwnedFd, Pipe)> {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&writer, true)?;
    fcntl_setpipe_size(&writer, room)?;
    Ok((writer, Pipe::reader(reader)?))
}

/// Copies `bytes` to each tap. One that has no room for all of it ends with what it takes; so does one whose attacher is gone.
pub(crate) fn copy_to(taps: &mut Vec<OwnedFd>, bytes: &[u8]) {
    taps.retain(|tap| retry_on_intr(|| rustix::io::write(tap, bytes)) == Ok(bytes.len()));
}

#[derive(Debug, Default)]
struct Tapped {
    taps: Vec<OwnedFd>,
    ended: bool,
}

/// The taps of an output that the agent relays. Clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Taps {
    /// Guards the list, for one look at it or one copy at a time.
    tapped: Arc<Mutex<Tapped>>,
}

impl Taps {
    fn tapped(&self) -> MutexGuard<'_, Tapped> {
        self.tapped.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Copies to `tap` from now on; where the output has ended, so has the tap.
    pub(crate) fn add(&self, tap: OwnedFd) {
        let mut tapped = self.tapped();
        if !tapped.ended {
            tapped.taps.push(tap);
        }
    }

    pub(super) fn are_wanted(&self) -> bool {
        !self.tapped().taps.is_empty()
    }

    pub(super) fn copy(&self, bytes: &[u8]) {
        copy_to(&mut self.tapped().taps, bytes);
    }

    /// The output has ended.
    pub(super) fn end(&self) {
        *self.tapped() = Tapped { taps: Vec::new(), ended: true };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn a_tap_keeps_its_room_and_the_lagging_one_ends_alone() {
        let (slow, slow_reader) = tap(64 * 1024).unwrap();
        let (fast, fast_reader) = tap(64 * 1024).unwrap();
        let mut taps = vec![slow, fast];
        let piece = vec![b'z'; 16 * 1024];
        for _ in 0..4 {
            copy_to(&mut taps, &piece);
            assert!(fast_reader.read().await.unwrap() == piece);
        }
        assert_eq!(taps.len(), 2, "there was room for all of it");
        copy_to(&mut taps, b"more");
        assert_eq!(taps.len(), 1);
        assert_eq!(fast_reader.read().await.unwrap(), b"more");
        let mut kept = 0;
        loop {
            match slow_reader.read().await.unwrap().len() {
                0 => break,
                count => kept += count,
            }
        }
        assert_eq!(kept, 64 * 1024, "what was kept is lost");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_tap_that_nobody_reads_any_more_ends_and_so_does_one_of_an_ended_output() {
        let taps = Taps::default();
        assert!(!taps.are_wanted());
        let (gone, reader) = tap(4096).unwrap();
        taps.add(gone);
        drop(reader);
        assert!(taps.are_wanted());
        taps.copy(b"x");
        assert!(!taps.are_wanted());
        let (first, first_reader) = tap(4096).unwrap();
        let (late, late_reader) = tap(4096).unwrap();
        taps.add(first);
        taps.end();
        taps.add(late);
        for reader in [first_reader, late_reader] {
            assert!(reader.read().await.unwrap().is_empty());
        }
    }
}
