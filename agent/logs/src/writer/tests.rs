use std::fs::{self, File};
use std::path::PathBuf;

use super::*;
use crate::test_random::Random;

/// Where a test's logs are: `0`, and after each switch the next number.
struct Folder {
    dir: tempfile::TempDir,
    files: usize,
}

impl Folder {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), files: 0 }
    }

    fn path(&self, number: usize) -> PathBuf {
        self.dir.path().join(number.to_string())
    }

    fn next(&mut self) -> OwnedFd {
        let path = self.path(self.files);
        self.files += 1;
        File::options().create(true).read(true).append(true).open(path).unwrap().into()
    }

    fn text(&self, number: usize) -> String {
        fs::read_to_string(self.path(number)).unwrap()
    }
}

fn print(log: &mut LogWriter<'_>, stream: Stream, mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let room = log.spare(stream);
        let count = room.len().min(bytes.len());
        room[..count].copy_from_slice(&bytes[..count]);
        bytes = &bytes[count..];
        log.filled_blocking(stream, count);
    }
}

/// Runs `body` on a writer whose first file is open.
fn with_writer(body: impl FnOnce(&mut LogWriter<'_>, &mut Folder)) {
    let mut folder = Folder::new();
    let file = LogFile::opened_blocking(Some(folder.next()));
    let mut buffers = Buffers::new().unwrap();
    let tell = |trouble| panic!("{trouble:?}");
    body(&mut LogWriter::new(&mut buffers, file, &tell), &mut folder);
}

/// Stream, tag and content of a log line, its stamp checked.
fn parse(line: &str) -> (&str, &str, &str) {
    let mut words = line.splitn(4, ' ');
    let stamp = words.next().unwrap();
    assert!(stamp.len() == 30 && stamp.ends_with('Z'), "{stamp}");
    (words.next().unwrap(), words.next().unwrap(), words.next().unwrap())
}

#[test]
fn lines_are_written_when_they_end_and_the_rest_when_the_stream_does() {
    with_writer(|log, folder| {
        print(log, Stream::Stdout, b"hel");
        assert_eq!(folder.text(0), "");
        print(log, Stream::Stderr, b"warn\r\nunfinished");
        print(log, Stream::Stdout, b"lo\n");
        log.ended_blocking(Stream::Stderr);
        let text = folder.text(0);
        let lines: Vec<_> = text.lines().map(parse).collect();
        assert_eq!(lines, [("stderr", "F", "warn"), ("stdout", "F", "hello"), ("stderr", "P", "unfinished")]);
    });
}

#[test]
fn a_stream_within_a_line_stays_with_the_old_file_until_it_ends() {
    with_writer(|log, folder| {
        print(log, Stream::Stdout, &[b'x'; MAX_CONTENT + 2]);
        log.switch_blocking(Some(folder.next()));
        assert!(log.is_switching());
        print(log, Stream::Stderr, b"other stream\n");
        print(log, Stream::Stdout, b"end\nnext\n");
        assert!(!log.is_switching());
        let (old, new) = (folder.text(0), folder.text(1));
        assert_eq!(old.lines().map(parse).next_back().unwrap(), ("stdout", "F", "xxend"));
        let new: Vec<_> = new.lines().map(parse).collect();
        assert_eq!(new, [("stderr", "F", "other stream"), ("stdout", "F", "next")]);
    });
}

#[test]
fn a_stream_that_has_ended_keeps_no_file() {
    with_writer(|log, folder| {
        print(log, Stream::Stdout, &[b'x'; MAX_CONTENT + 2]);
        log.switch_blocking(Some(folder.next()));
        log.ended_blocking(Stream::Stdout);
        assert!(!log.is_switching());
        log.switch_blocking(Some(folder.next()));
        assert!(!log.is_switching(), "its line never ends");
        assert!(folder.text(0).ends_with("stdout P xx\n"));
    });
}

#[test]
fn released_buffers_keep_what_was_not_written() {
    with_writer(|log, folder| {
        print(log, Stream::Stdout, b"kept");
        print(log, Stream::Stderr, b"written\n");
        assert!(log.has_used_buffers());
        log.release_buffers();
        assert!(!log.has_used_buffers());
        print(log, Stream::Stdout, b"!\n");
        assert!(folder.text(0).ends_with("stdout F kept!\n"));
    });
}

/// Random lines on both streams in random chunks, with switches anywhere: every line comes out once, whole, in order, and
/// within one file.
#[test]
fn no_line_is_lost_or_split_over_switches() {
    let mut random = Random::new(42);
    let streams = [Stream::Stdout, Stream::Stderr];
    with_writer(|log, folder| {
        let mut expected = [Vec::new(), Vec::new()];
        let mut unsent = [Vec::new(), Vec::new()];
        for number in 0..1000 {
            let stream = random.below(2);
            let length = match random.below(20) {
                0 => MAX_CONTENT + random.below(2 * MAX_CONTENT),
                1..=3 => random.below(3000),
                _ => random.below(80),
            };
            let line = format!("{number} {}", "y".repeat(length));
            unsent[stream].extend_from_slice(line.as_bytes());
            unsent[stream].push(b'\n');
            expected[stream].push(line);
            for (stream, bytes) in streams.into_iter().zip(&mut unsent) {
                let count = if random.below(3) == 0 { bytes.len() } else { random.below(bytes.len()) };
                let rest = bytes.split_off(count);
                print(log, stream, &std::mem::replace(bytes, rest));
            }
            // Not before the last one is over: a stream goes on in the file before at most.
            if random.below(20) == 0 && !log.is_switching() {
                log.switch_blocking(Some(folder.next()));
            }
            if random.below(30) == 0 {
                log.release_buffers();
            }
        }
        for (stream, bytes) in streams.into_iter().zip(&unsent) {
            print(log, stream, bytes);
            log.ended_blocking(stream);
        }
        assert!(folder.files > 10);
        let mut seen = [Vec::new(), Vec::new()];
        for file in 0..folder.files {
            let mut open = [String::new(), String::new()];
            for (stream, tag, content) in folder.text(file).lines().map(parse) {
                let stream = usize::from(stream == "stderr");
                assert!(content.len() <= MAX_CONTENT);
                open[stream].push_str(content);
                if tag == "F" {
                    seen[stream].push(std::mem::take(&mut open[stream]));
                }
            }
            assert_eq!(open, [String::new(), String::new()], "a line is split over two files");
        }
        assert!(seen == expected, "lines were lost, doubled or reordered");
    });
}
