//! Copies of an output for those who are attached to it.
//!
//! A copy goes into a pipe of the agent's, from which it goes on to the attacher's connection. The pipe is all that is kept for an attacher:
//! for one that lags behind by more than it holds, the copy ends. So neither the output nor its log ever waits for an attacher, and where
//! nobody is attached there is nothing to do. Only the output of a container without a log waits, for the quickest of those who are attached:
//! they are all that have it.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::{Errno, retry_on_intr};
use rustix::pipe::{PipeFlags, fcntl_setpipe_size, pipe_with};

use tokio::task::JoinSet;

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

/// Writes what there was no room for, and gives the tap back unless its attacher is gone.
async fn write_rest(tap: OwnedFd, rest: Vec<u8>) -> Option<OwnedFd> {
    // Watched only while it has to be waited for.
    let pipe = Pipe::writer(tap.try_clone().ok()?).ok()?;
    pipe.write_all(&rest).await.ok()?;
    Some(tap)
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

    /// Copies to each tap as [`Taps::copy`], but waits as long as none has room for all: the first that has goes on.
    pub(super) async fn copy_whole(&self, bytes: &[u8]) {
        let taps = std::mem::take(&mut self.tapped().taps);
        let (mut whole, mut behind) = (Vec::new(), JoinSet::new());
        for tap in taps {
            let count = match retry_on_intr(|| rustix::io::write(&tap, bytes)) {
                Err(Errno::AGAIN) => 0,
                Err(_) => continue,
                Ok(count) => count,
            };
            match bytes.get(count..) {
                None | Some([]) => whole.push(tap),
                Some(rest) => drop(behind.spawn(write_rest(tap, rest.to_vec()))),
            }
        }
        while whole.is_empty() {
            let Some(written) = behind.join_next().await else { break };
            whole.extend(written.ok().flatten());
        }
        self.tapped().taps.extend(whole);
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

    async fn to_the_end(reader: Pipe) -> Vec<u8> {
        let mut received = Vec::new();
        loop {
            match reader.read().await.unwrap() {
                bytes if bytes.is_empty() => return received,
                bytes => received.extend(bytes),
            }
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_whole_copy_waits_for_the_quickest_and_for_nobody_who_is_gone() {
        const ROOM: usize = 64 * 1024;
        let taps = Taps::default();
        let [(gone, gone_reader), (still, still_reader), (quick, quick_reader)] =
            std::array::from_fn(|_| tap(ROOM).unwrap());
        for tap in [gone, still, quick] {
            taps.add(tap);
        }
        drop(gone_reader);
        let sent: Vec<u8> = (0..1_000_000_u32).flat_map(u32::to_le_bytes).collect();
        let copying = async {
            for piece in sent.chunks(50_000) {
                taps.copy_whole(piece).await;
            }
            assert_eq!(taps.tapped().taps.len(), 1);
            taps.end();
        };
        let ((), received) = tokio::join!(copying, to_the_end(quick_reader));
        assert!(received == sent, "{} bytes of {}", received.len(), sent.len());
        let kept = to_the_end(still_reader).await;
        assert!(kept.len() >= ROOM / 2 && sent.starts_with(&kept), "what was kept is lost");
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
