//! The writer's loop: wait, read, and let [`LogWriter`] do the rest.

use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use hartpod_logs::{Buffers, LogFile, LogPlace, LogWriter, SWITCH_WAIT, Stream, Trouble};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use tracing::{error, warn};

use super::control::{AgentGone, Reply, Request, Step};
use crate::stream::{Tap, copy_to, mark_gaps};

/// After this long without output the pages of the buffers go back to the kernel.
const IDLE: Duration = Duration::from_secs(1);

/// What is read: the ends of the container's pipes, or the master of its terminal as `stdout` alone.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Sources<'f> {
    pub(crate) stdout: Option<BorrowedFd<'f>>,
    pub(crate) stderr: Option<BorrowedFd<'f>>,
}

/// The whole life of a log writer's process; returns its exit code.
///
/// `place` is opened first and the outcome told over `control`; without one the output is read and thrown away.
/// Blocks, on the disk too.
pub(crate) fn write_logs(sources: Sources<'_>, place: Option<&LogPlace>, control: &UnixStream) -> i32 {
    let opened = match place.map(LogPlace::open_blocking).transpose() {
        Ok(file) => file,
        Err(error) => {
            tell(control, Reply::failed(0, Step::Open, error));
            return 1;
        }
    };
    let mut buffers = match Buffers::new() {
        Ok(buffers) => buffers,
        Err(error) => {
            error!(%error, "no memory for a log writer");
            return 1;
        }
    };
    tell(control, Reply::done(0));
    let mut writer = Writer {
        sources: [(Stream::Stdout, sources.stdout), (Stream::Stderr, sources.stderr)],
        log: LogWriter::new(&mut buffers, LogFile::opened_blocking(opened), &warn_of),
        place,
        control: Some(control),
        reopening: None,
        taps: [Vec::new(), Vec::new()],
    };
    while writer.sources.iter().any(|(_, fd)| fd.is_some()) {
        writer.step();
    }
    0
}

fn warn_of(trouble: Trouble) {
    match trouble {
        Trouble::Begins(error) => warn!(%error, "cannot write the log, dropping lines"),
        Trouble::Over { lines } => warn!(lines, "the log can be written again, lines were lost"),
    }
}

/// A send that fails means that the agent is gone; the output still wants to be written.
fn tell(mut control: &UnixStream, reply: Reply) {
    let _ = control.write_all(&reply.encode());
}

/// A reopen that was asked for and not answered yet.
struct Reopening {
    number: u8,
    until: Instant,
}

struct Writer<'b> {
    sources: [(Stream, Option<BorrowedFd<'b>>); 2],
    log: LogWriter<'b>,
    place: Option<&'b LogPlace>,
    control: Option<&'b UnixStream>,
    reopening: Option<Reopening>,
    /// Who is attached to stdout and stderr.
    taps: [Vec<Tap>; 2],
}

impl Writer<'_> {
    /// Waits for something and does it.
    fn step(&mut self) {
        let [stdout, stderr, control] = self.wait();
        // Before the streams: what is in the pipes now belongs to the new file, and to who has attached.
        if control {
            self.on_control();
        }
        if stdout {
            self.copy(0);
        }
        if stderr {
            self.copy(1);
        }
        self.finish_reopen();
    }

    /// Which of stdout, stderr and control can be read.
    fn wait(&mut self) -> [bool; 3] {
        let timeout = match &self.reopening {
            Some(reopening) => Some(reopening.until.saturating_duration_since(Instant::now())),
            None => self.log.has_used_buffers().then_some(IDLE),
        };
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        let fds = [self.sources[0].1, self.sources[1].1, self.control.map(AsFd::as_fd)];
        // A place without an fd asks for nothing of a stream that is there.
        let Some(any) = fds.iter().flatten().next() else { return [false; 3] };
        let mut polls = fds.map(|fd| match fd {
            Some(fd) => PollFd::from_borrowed_fd(fd, PollFlags::IN),
            None => PollFd::from_borrowed_fd(*any, PollFlags::empty()),
        });
        let count = rustix::event::poll(&mut polls, timeout.as_ref());
        if count == Ok(0) && self.reopening.is_none() {
            self.log.release_buffers();
            self.taps.iter_mut().for_each(|taps| mark_gaps(taps));
        }
        let mut ready = [false; 3];
        for ((ready, poll), fd) in ready.iter_mut().zip(&polls).zip(fds) {
            *ready = count.is_ok() && fd.is_some() && !poll.revents().is_empty();
        }
        ready
    }

    /// One read of a stream, and what it completed to its file.
    fn copy(&mut self, index: usize) {
        let Some(&(stream, Some(fd))) = self.sources.get(index) else { return };
        let read = rustix::io::read(fd, self.log.spare(stream));
        // What was asked for before this was said must not come too late for it.
        self.on_control();
        let Some(taps) = self.taps.get_mut(index) else { return };
        match read {
            Ok(count @ 1..) => {
                copy_to(taps, self.log.spare(stream).get(..count).unwrap_or_default());
                self.log.filled_blocking(stream, count);
            }
            Err(Errno::INTR | Errno::AGAIN) => {}
            // The master of a terminal gives EIO once its last slave is closed.
            Ok(_) | Err(_) => {
                mark_gaps(taps);
                taps.clear();
                self.log.ended_blocking(stream);
                if let Some((_, source)) = self.sources.get_mut(index) {
                    *source = None;
                }
            }
        }
    }

    /// Does all that is asked for.
    fn on_control(&mut self) {
        while let Some(control) = self.control {
            match Request::receive(control) {
                Ok(Some(Request::Reopen(number))) => self.reopen(control, number),
                Ok(Some(Request::Tap(new))) => self.tap(new),
                Ok(None) => return,
                Err(AgentGone) => self.control = None,
            }
        }
    }

    fn reopen(&mut self, control: &UnixStream, number: u8) {
        match self.place.map(LogPlace::open_blocking).transpose() {
            Ok(file) => {
                self.log.switch_blocking(file);
                self.reopening = Some(Reopening { number, until: Instant::now() + SWITCH_WAIT });
            }
            Err(error) => tell(control, Reply::failed(number, Step::Open, error)),
        }
    }

    /// A stream that has ended, or that there is not, is not copied: its tap is closed.
    fn tap(&mut self, new: [Option<OwnedFd>; 2]) {
        for ((taps, new), (_, source)) in self.taps.iter_mut().zip(new).zip(&self.sources) {
            taps.extend(new.filter(|_| source.is_some()).map(Tap::from));
        }
    }

    /// Answers a reopen when both streams are in the new file, or have had their time.
    fn finish_reopen(&mut self) {
        let waiting = self.log.is_switching();
        let over = |reopening: &mut Reopening| !waiting || Instant::now() >= reopening.until;
        if let Some(reopening) = self.reopening.take_if(over) {
            if let Some(control) = self.control {
                tell(control, Reply::done(reopening.number));
            }
        }
    }
}

#[cfg(test)]
mod tests;
