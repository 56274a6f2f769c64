use std::fs;
use std::io::Read as _;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::thread::{self, JoinHandle};

use hartpod_logs::MAX_CONTENT;

use super::*;
use crate::log_writer::control::LogHandle;

/// A writer on a thread of the test, and the three ends that the agent would hold.
struct Running {
    dir: tempfile::TempDir,
    control: UnixStream,
    pipes: [Option<OwnedFd>; 2],
    thread: JoinHandle<i32>,
    rotations: usize,
}

impl Running {
    fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let place = LogPlace::new(dir.path(), Path::new("c/0.log")).unwrap();
        let (control, theirs) = UnixStream::pair().unwrap();
        let (stdout, stdout_in) = rustix::pipe::pipe().unwrap();
        let (stderr, stderr_in) = rustix::pipe::pipe().unwrap();
        let thread = thread::spawn(move || {
            let sources = Sources { stdout: Some(stdout.as_fd()), stderr: Some(stderr.as_fd()) };
            write_logs(sources, Some(&place), &theirs)
        });
        let mut running =
            Self { dir, control, pipes: [Some(stdout_in), Some(stderr_in)], thread, rotations: 0 };
        assert_eq!(running.answer(), Reply::done(0).encode());
        running
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("c/0.log")
    }

    fn answer(&mut self) -> [u8; 6] {
        let mut reply = [0; 6];
        self.control.read_exact(&mut reply).unwrap();
        reply
    }

    fn print(&self, stream: usize, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            bytes = &bytes[rustix::io::write(self.pipes[stream].as_ref().unwrap(), bytes).unwrap()..];
        }
    }

    /// What kubelet does: rename, then ask.
    fn rotate(&mut self) {
        self.rotations += 1;
        fs::rename(self.path(), self.dir.path().join(format!("c/0.log.{}", self.rotations))).unwrap();
        self.control.write_all(&[1]).unwrap();
        assert_eq!(self.answer(), Reply::done(1).encode());
    }

    /// Ends both streams; the files in the order they were written.
    fn finish(mut self) -> Vec<String> {
        self.pipes = [None, None];
        assert_eq!(self.thread.join().unwrap(), 0);
        let rotated = (1..=self.rotations).map(|n| self.dir.path().join(format!("c/0.log.{n}")));
        let current = self.dir.path().join("c/0.log");
        rotated.chain([current]).map(|path| fs::read_to_string(path).unwrap()).collect()
    }
}

/// Stream, tag and content of a log line, its stamp checked.
fn parse(line: &str) -> (&str, &str, &str) {
    let mut words = line.splitn(4, ' ');
    let stamp = words.next().unwrap();
    assert!(stamp.len() == 30 && stamp.ends_with('Z'), "{stamp}");
    (words.next().unwrap(), words.next().unwrap(), words.next().unwrap())
}

#[test]
fn both_streams_reach_the_file() {
    let log = Running::start();
    log.print(0, b"hello\n");
    log.print(1, b"warn\r\nunfinished");
    let files = log.finish();
    let mut lines: Vec<_> = files[0].lines().map(parse).collect();
    lines.sort_unstable();
    assert_eq!(lines, [("stderr", "F", "warn"), ("stderr", "P", "unfinished"), ("stdout", "F", "hello")]);
}

#[test]
fn who_attaches_gets_a_copy_until_the_stream_ends_and_the_log_has_all() {
    let log = Running::start();
    log.print(0, b"before\n");
    // It is on the disk, so it was read.
    while fs::metadata(log.path()).unwrap().len() == 0 {
        thread::yield_now();
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
    let (out, err) = runtime.block_on(async {
        let control = log.control.try_clone().unwrap();
        // The test reads the answers; none comes to a tap.
        let (handle, _opening) = LogHandle::new(control).unwrap();
        let (out, copied_out) = rustix::pipe::pipe().unwrap();
        let (err, copied_err) = rustix::pipe::pipe().unwrap();
        handle.tap(&[Some(copied_out), Some(copied_err)]).unwrap();
        (out, err)
    });
    log.control.set_nonblocking(false).unwrap();
    log.print(0, b"out");
    log.print(1, b"err\n");
    let files = log.finish();
    for (copy, expected) in [(out, "out"), (err, "err\n")] {
        assert_eq!(std::io::read_to_string(fs::File::from(copy)).unwrap(), expected);
    }
    let mut lines: Vec<_> = files[0].lines().map(parse).collect();
    lines.sort_unstable();
    assert_eq!(lines, [("stderr", "F", "err"), ("stdout", "F", "before"), ("stdout", "P", "out")]);
}

#[test]
fn a_reopen_that_fails_keeps_the_file() {
    let mut log = Running::start();
    log.print(0, b"before\n");
    let folder = log.dir.path().join("c");
    let moved = log.dir.path().join("moved");
    fs::rename(&folder, &moved).unwrap();
    fs::write(&folder, "in the way").unwrap();
    log.control.write_all(&[7]).unwrap();
    assert_eq!(log.answer(), Reply::failed(7, Step::Open, Errno::NOTDIR).encode());
    log.print(0, b"after\n");
    fs::remove_file(&folder).unwrap();
    fs::rename(&moved, &folder).unwrap();
    let files = log.finish();
    assert_eq!(files[0].lines().map(|line| parse(line).2).collect::<Vec<_>>(), ["before", "after"]);
}

#[test]
fn a_line_that_does_not_end_delays_a_reopen_only_so_long() {
    let mut log = Running::start();
    log.print(0, &vec![b'x'; MAX_CONTENT + 2]);
    // The head of the line is on the disk, so the line stays in this file.
    while fs::metadata(log.path()).unwrap().len() == 0 {
        thread::yield_now();
    }
    let asked = Instant::now();
    log.rotate();
    assert!(asked.elapsed() >= SWITCH_WAIT);
    log.print(1, b"other stream\n");
    log.print(0, b"end\nnext\n");
    let files = log.finish();
    let old: Vec<_> = files[0].lines().map(parse).collect();
    assert_eq!((old[0].1, old[1]), ("P", ("stdout", "F", "xxend")));
    let mut new: Vec<_> = files[1].lines().map(parse).collect();
    new.sort_unstable();
    assert_eq!(new, [("stderr", "F", "other stream"), ("stdout", "F", "next")]);
}

#[test]
fn the_writer_outlives_the_agent() {
    let mut log = Running::start();
    log.control = UnixStream::pair().unwrap().0;
    log.print(0, b"still here\n");
    assert!(log.finish()[0].ends_with("stdout F still here\n"));
}
