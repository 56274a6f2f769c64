//! From what streams say to lines in a file, and from file to file.
//!
//! Rotation: whoever leads the writer opens the new file first; each stream goes over to it at the end of a line (`F`), so that no line
//! lies in two files. A stream that is within a line for long stays with the old file until its line ends (or the next switch).

use std::fmt;
use std::os::fd::OwnedFd;
use std::time::Duration;

use crate::buffers::Buffers;
use crate::file::{LogFile, Trouble};
use crate::frame::{Framer, MAX_CONTENT, Tag};
use crate::stamp::{HEAD, Stream, head, now_nanos};
use crate::sys;

/// How long whoever asked for a switch waits for a stream that is within a line.
pub const SWITCH_WAIT: Duration = Duration::from_secs(1);

/// Lines are gathered up to this many bytes per write: two of the longest, or some hundred short ones.
pub(crate) const BATCH: usize = 2 * (HEAD + MAX_CONTENT + 1);

/// Writes what stdout and stderr of one container say. Its calls that end in `_blocking` write to the disk.
pub struct LogWriter<'b> {
    sources: [Source<'b>; 2],
    batch: Batch<'b>,
    buffers_used: bool,
    current: LogFile,
    /// The file before the last switch, while a stream is within a line there.
    previous: Option<LogFile>,
    tell: &'b dyn Fn(Trouble),
}

struct Source<'b> {
    framer: Framer<'b>,
    /// Within a line that began in the previous file.
    on_previous: bool,
    ended: bool,
}

impl<'b> LogWriter<'b> {
    /// Writes to `file`; what goes wrong there is told to `tell`.
    pub fn new(buffers: &'b mut Buffers, file: LogFile, tell: &'b dyn Fn(Trouble)) -> Self {
        let (framers, batch) = buffers.parts();
        let sources =
            framers.map(|buffer| Source { framer: Framer::new(buffer), on_previous: false, ended: false });
        let batch = Batch { bytes: batch, used: 0 };
        Self { sources, batch, buffers_used: false, current: file, previous: None, tell }
    }

    fn source(&mut self, stream: Stream) -> &mut Source<'b> {
        let [stdout, stderr] = &mut self.sources;
        match stream {
            Stream::Stdout => stdout,
            Stream::Stderr => stderr,
        }
    }

    /// Room for the next read of `stream`; never empty.
    pub fn spare(&mut self, stream: Stream) -> &mut [u8] {
        self.buffers_used = true;
        self.source(stream).framer.spare()
    }

    /// `count` bytes of the spare room now hold what `stream` said next; what it completes is written.
    pub fn filled_blocking(&mut self, stream: Stream, count: usize) {
        self.source(stream).framer.filled(count);
        self.cut(stream, Last::No);
    }

    /// `stream` says no more: the rest is written.
    pub fn ended_blocking(&mut self, stream: Stream) {
        self.cut(stream, Last::Yes);
        let source = self.source(stream);
        (source.ended, source.on_previous) = (true, false);
        self.let_go();
    }

    /// Goes over to another file, as soon as each stream is at a line's end. Without one the output is discarded.
    pub fn switch_blocking(&mut self, file: Option<OwnedFd>) {
        let new = self.current.successor_blocking(file);
        self.previous = Some(std::mem::replace(&mut self.current, new));
        for source in &mut self.sources {
            source.on_previous = !source.ended && !source.framer.at_line_end();
        }
        self.let_go();
    }

    /// A stream still writes to the file before the last switch.
    #[must_use]
    pub fn is_switching(&self) -> bool {
        self.previous.is_some()
    }

    /// The buffers hold pages that [`LogWriter::release_buffers`] could give back.
    #[must_use]
    pub fn has_used_buffers(&self) -> bool {
        self.buffers_used
    }

    /// Gives back the pages of all buffers in which nothing is left: for when nothing has happened for a while.
    pub fn release_buffers(&mut self) {
        for source in &mut self.sources {
            if let Some(buffer) = source.framer.idle_buffer() {
                sys::release(buffer);
            }
        }
        sys::release(self.batch.bytes);
        self.buffers_used = false;
    }

    fn cut(&mut self, stream: Stream, last: Last) {
        let Self { sources: [stdout, stderr], batch, current, previous, tell, .. } = self;
        let source = match stream {
            Stream::Stdout => stdout,
            Stream::Stderr => stderr,
        };
        let nanos = now_nanos();
        loop {
            let piece = match (source.framer.next_piece(), last) {
                (None, Last::Yes) => source.framer.last_piece(),
                (piece, _) => piece,
            };
            let Some(piece) = piece else { break };
            let content = source.framer.content(&piece);
            if !batch.fits(content.len()) {
                batch.flush_blocking(file_of(source.on_previous, previous, current), tell);
            }
            batch.add(head(nanos, stream, piece.tag), content);
            if source.on_previous && piece.tag == Tag::Full {
                batch.flush_blocking(file_of(true, previous, current), tell);
                source.on_previous = false;
            }
        }
        batch.flush_blocking(file_of(source.on_previous, previous, current), tell);
        self.let_go();
    }

    /// Closes the previous file when nobody needs it any more.
    fn let_go(&mut self) {
        if !self.sources.iter().any(|source| source.on_previous) {
            self.previous = None;
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Last {
    No,
    Yes,
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

    fn flush_blocking(&mut self, file: &mut LogFile, tell: &dyn Fn(Trouble)) {
        if self.used > 0 {
            if let Some(trouble) = file.append_blocking(&self.bytes[..self.used]) {
                tell(trouble);
            }
            self.used = 0;
        }
    }
}

impl fmt::Debug for LogWriter<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogWriter").field("current", &self.current).field("previous", &self.previous).finish()
    }
}

#[cfg(test)]
mod tests;
