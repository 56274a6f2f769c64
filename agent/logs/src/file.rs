//! A log file that is appended to, and is never the reason for a container to stop.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs;
use rustix::io::Errno;

/// What somebody should hear of a log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// From here on lines are lost.
    Begins(Errno),
    /// The log can be written again; so many lines were lost meanwhile.
    Over { lines: u64 },
}

/// An open log. A write that fails loses its lines and nothing more: they are counted, and said once when it begins and
/// once when it is over.
#[derive(Debug)]
pub struct LogFile {
    /// Without one the output is discarded.
    file: Option<OwnedFd>,
    /// The file ends within a line, because the disk filled up there.
    torn: bool,
    dropped: u64,
}

impl LogFile {
    /// A file that another writer may have written before, and left within a line when it was killed: that is seen where it may be read.
    /// Blocks on the disk.
    #[must_use]
    pub fn opened_blocking(file: Option<OwnedFd>) -> Self {
        let torn = file.as_ref().is_some_and(|file| ends_within_a_line(file).unwrap_or(false));
        Self { file, torn, dropped: 0 }
    }

    /// Appends whole log lines in one write, as far as the disk takes them.
    #[must_use]
    pub fn append_blocking(&mut self, lines: &[u8]) -> Option<Trouble> {
        let file = self.file.as_ref()?;
        if self.torn {
            // Not truncated back: a file that shrinks makes collectors read it again from its beginning.
            self.torn = write_all(file, b"\n").is_err();
        }
        let outcome = if self.torn { Err((0, Errno::NOSPC)) } else { write_all(file, lines) };
        match outcome {
            Ok(()) => match std::mem::take(&mut self.dropped) {
                0 => None,
                lines => Some(Trouble::Over { lines }),
            },
            Err((written, error)) => {
                let begins = self.dropped == 0;
                let (done, lost) = lines.split_at(written.min(lines.len()));
                self.torn |= done.last().is_some_and(|&byte| byte != b'\n');
                self.dropped += lost.iter().filter(|&&byte| byte == b'\n').count() as u64;
                begins.then_some(Trouble::Begins(error))
            }
        }
    }

    /// The file that is written after this one; it still has to tell of the lines that were lost here. Blocks on the disk.
    #[must_use]
    pub fn successor_blocking(&self, file: Option<OwnedFd>) -> Self {
        // It may be the same file: nothing says that the path led to another one.
        Self { dropped: self.dropped, ..Self::opened_blocking(file) }
    }
}

fn ends_within_a_line(file: &OwnedFd) -> Result<bool, Errno> {
    let Some(last) = u64::try_from(fs::fstat(file)?.st_size).ok().and_then(|size| size.checked_sub(1)) else {
        return Ok(false);
    };
    let mut byte = [0];
    Ok(rustix::io::pread(file, &mut byte, last)? == 1 && byte != *b"\n")
}

/// Writes all of `bytes`; on failure says how many went out before.
fn write_all(file: impl AsFd, bytes: &[u8]) -> Result<(), (usize, Errno)> {
    let mut written = 0;
    while written < bytes.len() {
        match rustix::io::write(&file, &bytes[written..]) {
            Ok(0) => return Err((written, Errno::IO)),
            Ok(count) => written += count,
            Err(Errno::INTR) => {}
            Err(error) => return Err((written, error)),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read as _, Seek as _, Write as _};

    use super::*;

    /// A file to append to that holds `text`, and another descriptor of it.
    fn file(text: &str) -> (OwnedFd, File) {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        let log = std::fs::OpenOptions::new().read(true).append(true).open(file.path()).unwrap();
        (log.into(), file.into_file())
    }

    fn text(mut file: &File) -> String {
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn a_line_that_a_killed_writer_left_unfinished_is_ended_first() {
        for (before, after) in [("", "next\n"), ("whole\n", "whole\nnext\n"), ("to", "to\nnext\n")] {
            let (log, file) = file(before);
            assert_eq!(LogFile::opened_blocking(Some(log)).append_blocking(b"next\n"), None);
            assert_eq!(text(&file), after);
        }
    }

    #[test]
    fn a_successor_of_the_same_file_ends_its_line_too() {
        let (log, file) = file("torn");
        let again = log.try_clone().unwrap();
        let first = LogFile::opened_blocking(Some(log));
        assert_eq!(first.successor_blocking(Some(again)).append_blocking(b"next\n"), None);
        assert_eq!(text(&file), "torn\nnext\n");
    }

    /// A full disk, played by a pipe of 4096 bytes that takes part of a write and then refuses.
    #[test]
    fn a_full_disk_loses_lines_and_recovers_on_a_line_of_its_own() {
        let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::NONBLOCK).unwrap();
        rustix::pipe::fcntl_setpipe_size(&writer, 4096).unwrap();
        let mut log = LogFile::opened_blocking(Some(writer));
        let batch = "0123456789012345678\n".repeat(300);
        assert_eq!(log.append_blocking(batch.as_bytes()), Some(Trouble::Begins(Errno::AGAIN)));
        assert_eq!(log.append_blocking(b"lost\n"), None);
        let mut taken = vec![0; 8192];
        assert_eq!(rustix::io::read(&reader, &mut taken).unwrap(), 4096);
        assert_eq!(log.append_blocking(b"after\n"), Some(Trouble::Over { lines: 300 - 204 + 1 }));
        assert_eq!(log.append_blocking(b"and on\n"), None);
        let count = rustix::io::read(&reader, &mut taken).unwrap();
        assert_eq!(&taken[..count], b"\nafter\nand on\n");
    }
}
