//! Copies of an output for those who are attached to it.
//!
//! A copy goes into a pipe of the agent's, from which it goes on to the attacher's connection. The pipe is all that is kept for an attacher:
//! of what comes while it is full nothing is copied, and a mark says so in its place. So neither the output nor its log ever waits for an
//! attacher, and where nobody is attached there is nothing to do. Only the output of a container without a log waits, for the quickest of those
//! who are attached: they are all that have it.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, ioctl_fionread, retry_on_intr};
use rustix::pipe::{PipeFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with};
use tokio::task::JoinSet;

use super::Pipe;

/// A pipe that keeps `room` bytes for an attacher: the end that is copied into, which never blocks, and the one to read from.
pub(crate) fn tap(room: usize) -> io::Result<(OwnedFd, Pipe)> {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC)?;
    rustix::io::ioctl_fionbio(&writer, true)?;
    fcntl_setpipe_size(&writer, room)?;
    Ok((writer, Pipe::reader(reader)?))
}

/// The end of an attacher's pipe that is copied into.
#[derive(Debug)]
pub(crate) struct Tap {
    pipe: OwnedFd,
    /// Bytes that there was no room for, and of which the attacher was not told.
    left_out: usize,
}

/// There is no attacher any more.
#[derive(Debug)]
struct Gone;

impl From<OwnedFd> for Tap {
    fn from(pipe: OwnedFd) -> Self {
        Self { pipe, left_out: 0 }
    }
}

impl Tap {
    /// Copies what there is room for.
    fn copy(&mut self, bytes: &[u8]) -> Result<(), Gone> {
        if self.left_out == 0 || self.has_caught_up()? && self.mark() {
            self.left_out = bytes.len() - self.write(bytes)?;
        } else {
            self.left_out = self.left_out.saturating_add(bytes.len());
        }
        Ok(())
    }

    /// Whether half of the room is free again: an attacher that is always behind is to get more of the output than of marks.
    fn has_caught_up(&self) -> Result<bool, Gone> {
        let mut polled = [PollFd::new(&self.pipe, PollFlags::empty())];
        let _ = poll(&mut polled, Some(&Timespec::default()));
        let [polled] = polled;
        if polled.revents().contains(PollFlags::ERR) {
            return Err(Gone);
        }
        let waiting = ioctl_fionread(&self.pipe).map_err(|_| Gone)?;
        let room = fcntl_getpipe_size(&self.pipe).map_err(|_| Gone)?;
        Ok(waiting <= room as u64 / 2)
    }

    /// Tells what was left out; false when there is no room for that, for a pipe takes as little as this as a whole or not at all.
    fn mark(&mut self) -> bool {
        let mark = format!(
            "\r\n[hartpod: {} bytes of output left out: the client is too far behind]\r\n",
            self.left_out
        );
        let marked = self.write(mark.as_bytes()).is_ok_and(|count| count == mark.len());
        if marked {
            self.left_out = 0;
        }
        marked
    }

    fn write(&self, bytes: &[u8]) -> Result<usize, Gone> {
        match retry_on_intr(|| rustix::io::write(&self.pipe, bytes)) {
            Ok(count) => Ok(count),
            Err(Errno::AGAIN) => Ok(0),
            Err(_) => Err(Gone),
        }
    }
}

/// Copies `bytes` to each tap, as far as there is room. One whose attacher is gone ends.
pub(crate) fn copy_to(taps: &mut Vec<Tap>, bytes: &[u8]) {
    taps.retain_mut(|tap| tap.copy(bytes).is_ok());
}

/// Tells attachers what was left out of late, if they have room for that: nothing may follow for long, or ever.
pub(crate) fn mark_gaps(taps: &mut [Tap]) {
    for tap in taps.iter_mut().filter(|tap| tap.left_out > 0) {
        tap.mark();
    }
}

/// Becomes ready when one of these has room, or its attacher is gone.
async fn room_in(taps: &[(Tap, usize)]) {
    let mut waits = JoinSet::new();
    for (tap, _) in taps {
        // Watched only while it has to be waited for.
        let Ok(pipe) = tap.pipe.try_clone().and_then(Pipe::writer) else { return };
        waits.spawn(async move { pipe.writable().await });
    }
    waits.join_next().await;
}

#[derive(Debug, Default)]
struct Tapped {
    taps: Vec<Tap>,
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
            tapped.taps.push(tap.into());
        }
    }

    pub(super) fn are_wanted(&self) -> bool {
        !self.tapped().taps.is_empty()
    }

    pub(super) fn copy(&self, bytes: &[u8]) {
        copy_to(&mut self.tapped().taps, bytes);
    }

    /// Copies to each tap as [`Taps::copy`], but waits as long as none has room for all: the first that has goes on. Those that are behind
    /// already are not waited for.
    pub(super) async fn copy_whole(&self, bytes: &[u8]) {
        let taps = std::mem::take(&mut self.tapped().taps);
        let (quick, mut taps): (Vec<_>, Vec<_>) = taps.into_iter().partition(|tap| tap.left_out == 0);
        copy_to(&mut taps, bytes);
        // With what each has taken.
        let mut quick: Vec<_> = quick.into_iter().map(|tap| (tap, 0)).collect();
        loop {
            quick.retain_mut(|(tap, taken)| match tap.write(bytes.get(*taken..).unwrap_or_default()) {
                Ok(count) => {
                    *taken += count;
                    true
                }
                Err(Gone) => false,
            });
            if quick.is_empty() || quick.iter().any(|(_, taken)| *taken == bytes.len()) {
                break;
            }
            room_in(&quick).await;
        }
        taps.extend(quick.into_iter().map(|(tap, taken)| Tap { left_out: bytes.len() - taken, ..tap }));
        self.tapped().taps.extend(taps);
    }

    /// The output has ended.
    pub(super) fn end(&self) {
        let mut tapped = self.tapped();
        mark_gaps(&mut tapped.taps);
        *tapped = Tapped { taps: Vec::new(), ended: true };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn a_tap_keeps_its_room_and_says_what_there_was_none_for() {
        let (slow, slow_reader) = tap(64 * 1024).unwrap();
        let (fast, fast_reader) = tap(64 * 1024).unwrap();
        let mut taps = vec![Tap::from(slow), Tap::from(fast)];
        let piece = vec![b'z'; 16 * 1024];
        for _ in 0..4 {
            copy_to(&mut taps, &piece);
            assert!(fast_reader.read().await.unwrap() == piece);
        }
        copy_to(&mut taps, b"more");
        assert_eq!(fast_reader.read().await.unwrap(), b"more");
        // A little room is not enough for a mark, let alone for output after it.
        assert!(slow_reader.read().await.unwrap() == piece);
        copy_to(&mut taps, b" and more");
        assert_eq!(fast_reader.read().await.unwrap(), b" and more");
        for _ in 0..3 {
            assert!(slow_reader.read().await.unwrap() == piece, "what was kept is lost");
        }
        copy_to(&mut taps, b"again");
        let told = "\r\n[hartpod: 13 bytes of output left out: the client is too far behind]\r\nagain";
        assert_eq!(String::from_utf8(slow_reader.read().await.unwrap()).unwrap(), told);
        assert_eq!(fast_reader.read().await.unwrap(), b"again");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn an_output_that_ends_with_a_gap_says_so() {
        let taps = Taps::default();
        let (lagging, reader) = tap(64 * 1024).unwrap();
        taps.add(lagging);
        taps.copy(&[b'z'; 64 * 1024]);
        taps.copy(b"last words");
        assert!(taps.are_wanted());
        reader.read().await.unwrap();
        taps.end();
        let mut rest = Vec::new();
        loop {
            match reader.read().await.unwrap() {
                bytes if bytes.is_empty() => break,
                bytes => rest.extend(bytes),
            }
        }
        let told = "[hartpod: 10 bytes of output left out: the client is too far behind]\r\n";
        assert!(String::from_utf8(rest).unwrap().ends_with(told));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_tap_that_is_behind_ends_when_its_attacher_goes() {
        let taps = Taps::default();
        let (lagging, reader) = tap(4096).unwrap();
        taps.add(lagging);
        taps.copy(&[b'z'; 8192]);
        assert!(taps.are_wanted());
        drop(reader);
        taps.copy(b"x");
        assert!(!taps.are_wanted());
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
            // The quick one, and one that is to be told what it has missed.
            assert_eq!(taps.tapped().taps.len(), 2);
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
