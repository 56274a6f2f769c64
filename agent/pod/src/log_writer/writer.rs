//! The writer's loop: wait, read, cut, stamp, write.

use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;

use super::SWITCH_WAIT;
use super::control::{Reply, Step};
use super::file::{LogFile, LogPlace};
use super::frame::{BUFFER, Framer, MAX_CONTENT, Tag};
use super::stamp::{HEAD, Stream, head};
use crate::clock::now_nanos;
use crate::sys;

/// Lines are gathered up to this many bytes per write: two of the longest, or some hundred short ones.
const BATCH: usize = 2 * (HEAD + MAX_CONTENT + 1);

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
    tell(control, Reply::done(0));
    // One allocation of untouched zero pages: a container that prints little costs a page or two of them.
    let mut memory = vec![0; 2 * BUFFER + BATCH];
    let (first, rest) = memory.split_at_mut(BUFFER);
    let (second, batch) = rest.split_at_mut(BUFFER);
    let mut writer = Writer {
        sources: [
            Source::new(Stream::Stdout, sources.stdout, first),
            Source::new(Stream::Stderr, sources.stderr, second),
        ],
        batch: Batch { bytes: batch, used: 0 },
        buffers_used: false,
        current: LogFile::opened(opened),
        previous: None,
        place,
        control: Some(control),
        reopening: None,
    };
    while writer.sources.iter().any(|source| source.fd.is_some()) {
        writer.step();
    }
    0
}

/// A send that fails means that the agent is gone; the output still wants to be written.
fn tell(mut control: &UnixStream, reply: Reply) {
    let _ = control.write_all(&reply.encode());
}

struct Source<'b> {
    stream: Stream,
    fd: Option<BorrowedFd<'b>>,
    framer: Framer<'b>,
    /// Within a line that began in the previous file.
    on_previous: bool,
}

impl<'b> Source<'b> {
    fn new(stream: Stream, fd: Option<BorrowedFd<'b>>, buffer: &'b mut [u8]) -> Self {
        Self { stream, fd, framer: Framer::new(buffer), on_previous: false }
    }
}

/// Lines on their way to the disk.
struct Batch<'b> {
    bytes: &'b mut [u8],
    used: usize,
}

impl Batch<'_> {
    fn fits(&self, content: usize) -> bool {
        self.used + HEAD + content < self.bytes.len()
    }

    fn add(&mut self, head: [u8; HEAD], content: &[u8]) {
        for part in [&head[..], content, b"\n"] {
            self.bytes[self.used..self.used + part.len()].copy_from_slice(part);
            self.used += part.len();
        }
    }

    fn flush_blocking(&mut self, file: &mut LogFile) {
        if self.used > 0 {
            file.append_blocking(&self.bytes[..self.used]);
            self.used = 0;
        }
    }
}

/// A reopen that was asked for and not answered yet.
struct Reopening {
    number: u8,
    until: Instant,
}

struct Writer<'b> {
    sources: [Source<'b>; 2],
    batch: Batch<'b>,
    buffers_used: bool,
    current: LogFile,
    /// The file before the last reopen, while a stream is within a line there.
    previous: Option<LogFile>,
    place: Option<&'b LogPlace>,
    control: Option<&'b UnixStream>,
    reopening: Option<Reopening>,
}

impl Writer<'_> {
    /// Waits for something and does it.
    fn step(&mut self) {
        let [stdout, stderr, control] = self.wait();
        // Before the streams: what is in the pipes now belongs to the new file.
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
            None => self.buffers_used.then_some(IDLE),
        };
        let timeout = timeout.and_then(|timeout| Timespec::try_from(timeout).ok());
        let fds = [self.sources[0].fd, self.sources[1].fd, self.control.map(AsFd::as_fd)];
        // A place without an fd asks for nothing of a stream that is there.
        let Some(any) = fds.iter().flatten().next() else { return [false; 3] };
        let mut polls = fds.map(|fd| match fd {
            Some(fd) => PollFd::from_borrowed_fd(fd, PollFlags::IN),
            None => PollFd::from_borrowed_fd(*any, PollFlags::empty()),
        });
        let count = rustix::event::poll(&mut polls, timeout.as_ref());
        if count == Ok(0) && self.reopening.is_none() {
            self.release_buffers();
        }
        let mut ready = [false; 3];
        for ((ready, poll), fd) in ready.iter_mut().zip(&polls).zip(fds) {
            *ready = count.is_ok() && fd.is_some() && !poll.revents().is_empty();
        }
        ready
    }

    /// One read of a stream, and what it completed to its file.
    fn copy(&mut self, index: usize) {
        let Self { sources, batch, current, previous, .. } = self;
        let Some(source) = sources.get_mut(index) else { return };
        let Some(fd) = source.fd else { return };
        self.buffers_used = true;
        let ended = match rustix::io::read(fd, source.framer.spare()) {
            Ok(0) => true,
            Ok(count) => {
                source.framer.filled(count);
                false
            }
            Err(Errno::INTR | Errno::AGAIN) => false,
            // The master of a terminal gives EIO once its last slave is closed.
            Err(_) => true,
        };
        let nanos = now_nanos();
        loop {
            let next = source.framer.next_piece();
            let Some(piece) = next.or_else(|| ended.then(|| source.framer.last_piece()).flatten()) else {
                break;
            };
            let content = source.framer.content(&piece);
            if !batch.fits(content.len()) {
                batch.flush_blocking(file_of(source.on_previous, previous, current));
            }
            batch.add(head(nanos, source.stream, piece.tag), content);
            if source.on_previous && piece.tag == Tag::Full {
                batch.flush_blocking(file_of(true, previous, current));
                source.on_previous = false;
            }
        }
        batch.flush_blocking(file_of(source.on_previous, previous, current));
        if ended {
            source.fd = None;
            source.on_previous = false;
        }
    }

    fn on_control(&mut self) {
        let Some(mut control) = self.control else { return };
        let mut request = [0];
        if !matches!(control.read(&mut request), Ok(1)) {
            // The agent is gone.
            self.control = None;
            return;
        }
        let number = request[0];
        match self.place.map(LogPlace::open_blocking).transpose() {
            Ok(file) => {
                let new = self.current.successor(file);
                self.previous = Some(std::mem::replace(&mut self.current, new));
                for source in &mut self.sources {
                    source.on_previous = source.fd.is_some() && !source.framer.at_line_end();
                }
                self.reopening = Some(Reopening { number, until: Instant::now() + SWITCH_WAIT });
            }
            Err(error) => tell(control, Reply::failed(number, Step::Open, error)),
        }
    }

    /// Answers a reopen when both streams are in the new file, or have had their time.
    fn finish_reopen(&mut self) {
        let waiting = self.sources.iter().any(|source| source.on_previous);
        if !waiting {
            self.previous = None;
        }
        let over = |reopening: &mut Reopening| !waiting || Instant::now() >= reopening.until;
        if let Some(reopening) = self.reopening.take_if(over) {
            if let Some(control) = self.control {
                tell(control, Reply::done(reopening.number));
            }
        }
    }

    fn release_buffers(&mut self) {
        for source in &mut self.sources {
            if let Some(buffer) = source.framer.idle_buffer() {
                sys::release_pages(buffer);
            }
        }
        sys::release_pages(self.batch.bytes);
        self.buffers_used = false;
    }
}

fn file_of<'f>(
    on_previous: bool,
    previous: &'f mut Option<LogFile>,
    current: &'f mut LogFile,
) -> &'f mut LogFile {
    match previous {
        Some(previous) if on_previous => previous,
        _ => current,
    }
}

#[cfg(test)]
mod tests;
