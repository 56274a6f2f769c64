//! Logs of a guest that the tests play, over socket pairs, and of disks that hang.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hartpod_logs::MAX_CONTENT;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::table::Limits;
use super::*;
use crate::virtio::vsock::Dialer;

/// Long enough for a busy machine, short enough for a failed test.
const SOON: Duration = Duration::from_secs(20);

/// A guest's logs, their files, and the guest's side.
struct World {
    logs: Logs,
    dialer: Dialer,
    folder: tempfile::TempDir,
}

impl World {
    fn new() -> Self {
        Self::with_limits(Limits { logs: 4, patience: Duration::from_secs(5) })
    }

    fn with_limits(limits: Limits) -> Self {
        let dialer = Dialer::new().unwrap();
        let logs = Logs::with_limits(Some(dialer.clone()), limits);
        Self { logs, dialer, folder: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn file(&self, name: &str) -> OwnedFd {
        File::options().create(true).read(true).append(true).open(self.path(name)).unwrap().into()
    }

    fn text(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap()
    }

    /// Begins the log of a terminal; its stream.
    fn begin(&mut self, number: u8, name: &str) -> UnixStream {
        self.logs.begin(id(number), Some(token(number)), None, self.file(name)).unwrap();
        self.accept(&token(number))
    }

    /// What the dialer hands to the device.
    fn dialled(&self) -> UnixStream {
        let stream = eventually("a stream is dialled", || self.dialer.next());
        let stream = UnixStream::from(stream);
        stream.set_nonblocking(false).unwrap();
        stream.set_read_timeout(Some(SOON)).unwrap();
        stream
    }

    /// Accepts a stream as device and agent do.
    fn accept(&self, token: &LogToken) -> UnixStream {
        let mut stream = self.dialled();
        let greeting = format!("CONNECT 1025\n{}\n", token.as_str());
        let mut read = vec![0; greeting.len()];
        stream.read_exact(&mut read).unwrap();
        assert_eq!(String::from_utf8(read).unwrap(), greeting);
        stream.write_all(b"OK 1025\n").unwrap();
        stream
    }

    /// Readable once the log is over.
    fn over(&mut self, number: u8) -> OwnedFd {
        let (over, done) = rustix::pipe::pipe().unwrap();
        self.logs.at_end(&id(number), done).unwrap();
        over
    }
}

fn id(number: u8) -> LogId {
    format!("{number:02x}").repeat(32).parse().unwrap()
}

fn token(number: u8) -> LogToken {
    format!("{number:02x}").repeat(16).parse().unwrap()
}

fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + SOON;
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn hangs_up(pipe: &OwnedFd, within: Duration) -> bool {
    let mut fds = [PollFd::new(pipe, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec::try_from(within).unwrap())).unwrap() == 1
}

/// This process has the file open.
fn is_open(path: &Path) -> bool {
    let fds = fs::read_dir("/proc/self/fd").unwrap();
    fds.flatten().any(|fd| fs::read_link(fd.path()).is_ok_and(|link| link == path))
}

/// Stream, tag and content of each line.
fn lines(text: &str) -> Vec<(&str, &str, &str)> {
    assert!(text.is_empty() || text.ends_with('\n'));
    text.lines()
        .map(|line| {
            let mut words = line.splitn(4, ' ');
            let stamp = words.next().unwrap();
            assert!(stamp.len() == 30 && stamp.ends_with('Z'), "{stamp}");
            (words.next().unwrap(), words.next().unwrap(), words.next().unwrap())
        })
        .collect()
}

#[test]
fn a_log_ends_though_the_guest_holds_its_stream_open() {
    let mut world = World::new();
    let mut stream = world.begin(1, "log");
    stream.write_all(b"said\nhalf a line").unwrap();
    eventually("the line is written", || world.text("log").contains("said").then_some(()));
    let over = world.over(1);
    world.logs.end(&id(1));
    assert!(hangs_up(&over, SOON), "the log goes on");
    // What the guest still says finds nobody, and the same container's next log is one of its own.
    let _ = stream.write_all(b"more\n");
    assert!(!world.text("log").contains("more"));
    world.logs.end(&id(9));
    world.begin(1, "next");
}

#[test]
fn both_streams_reach_the_file_and_their_end_is_the_logs() {
    let mut world = World::new();
    let (out, err) = (token(1), token(2));
    world.logs.begin(id(1), Some(out.clone()), Some(err.clone()), world.file("log")).unwrap();
    let (mut stdout, mut stderr) = (world.accept(&out), world.accept(&err));
    let over = world.over(1);
    stdout.write_all(b"hello\n").unwrap();
    drop(stdout);
    stderr.write_all(b"warn\nunfinished").unwrap();
    assert!(!hangs_up(&over, Duration::from_millis(50)), "one stream goes on");
    drop(stderr);
    assert!(hangs_up(&over, SOON));
    let text = world.text("log");
    let mut seen = lines(&text);
    seen.sort_unstable();
    assert_eq!(seen, [("stderr", "F", "warn"), ("stderr", "P", "unfinished"), ("stdout", "F", "hello")]);
    assert!(!is_open(&world.path("log")));
    assert!(hangs_up(&world.over(1), SOON), "nothing is left to wait for");
    assert!(hangs_up(&world.over(9), SOON), "there never was one");
    // The same name again is a new log.
    let mut again = world.begin(1, "log");
    again.write_all(b"again\n").unwrap();
    drop(again);
    assert!(hangs_up(&world.over(1), SOON));
    assert!(world.text("log").ends_with(" stdout F again\n"));
}

#[test]
fn a_guest_that_refuses_is_asked_again_for_a_while() {
    let mut world = World::with_limits(Limits { logs: 4, patience: Duration::from_millis(700) });
    world.logs.begin(id(1), Some(token(1)), None, world.file("log")).unwrap();
    drop(world.dialled());
    // Neither is something else than an answer one.
    world.dialled().write_all(b"ERROR there is no room\n").unwrap();
    let mut accepted = world.accept(&token(1));
    accepted.write_all(b"at last\n").unwrap();
    drop(accepted);
    assert!(hangs_up(&world.over(1), SOON));
    assert!(world.text("log").ends_with(" stdout F at last\n"));

    world.logs.begin(id(2), Some(token(2)), None, world.file("log")).unwrap();
    let over = world.over(2);
    let began = Instant::now();
    while !hangs_up(&over, Duration::from_millis(1)) {
        drop(world.dialer.next());
        assert!(began.elapsed() < SOON);
    }
    assert!(began.elapsed() >= Duration::from_millis(400), "it was asked again");
}

#[test]
fn a_guest_that_accepts_and_is_silent_does_no_harm() {
    let mut world = World::new();
    let silent = world.begin(1, "silent");
    let mut other = world.begin(2, "other");
    other.write_all(b"heard\n").unwrap();
    eventually("the line is written", || world.text("other").ends_with("heard\n").then_some(()));
    // The container was removed: its agent hangs up.
    drop(silent);
    assert!(hangs_up(&world.over(1), SOON));
    assert_eq!(world.text("silent"), "");
}

#[test]
fn an_endless_line_is_cut() {
    let mut world = World::new();
    let mut stream = world.begin(1, "log");
    let piece = [b'x'; MAX_CONTENT];
    for _ in 0..20 {
        stream.write_all(&piece).unwrap();
    }
    drop(stream);
    assert!(hangs_up(&world.over(1), SOON));
    let text = world.text("log");
    let seen = lines(&text);
    assert_eq!(seen.len(), 20);
    assert!(seen.iter().all(|line| line.1 == "P" && line.2.len() == MAX_CONTENT));
}

#[test]
fn a_log_goes_over_to_its_next_file_at_a_lines_end() {
    let mut world = World::new();
    let mut stream = world.begin(1, "old");
    stream.write_all(b"first\n").unwrap();
    eventually("the line is written", || world.text("old").ends_with("first\n").then_some(()));
    let reopen = |world: &mut World, name: &str| {
        let (switched, done) = rustix::pipe::pipe().unwrap();
        let file = world.file(name);
        world.logs.reopen(&id(1), file, done).unwrap();
        switched
    };
    assert!(hangs_up(&reopen(&mut world, "new"), SOON));
    assert!(!is_open(&world.path("old")));
    stream.write_all(&[b'y'; MAX_CONTENT + 2]).unwrap();
    eventually("half of a line is written", || world.text("new").ends_with("yy\n").then_some(()));
    // Within a line: it is told after a while, and the line ends where it began.
    let asked = Instant::now();
    let switched = reopen(&mut world, "newest");
    assert!(!hangs_up(&switched, Duration::from_millis(200)));
    assert!(hangs_up(&switched, SOON));
    assert!(asked.elapsed() >= hartpod_logs::SWITCH_WAIT);
    stream.write_all(b"end\nlast\n").unwrap();
    eventually("the last line is written", || world.text("newest").ends_with("last\n").then_some(()));
    assert!(world.text("new").ends_with(" stdout F yyend\n"));
    assert!(!is_open(&world.path("new")));
    drop(stream);
    assert!(hangs_up(&world.over(1), SOON));
    assert!(hangs_up(&reopen(&mut world, "none"), SOON), "it is over");
    assert_eq!(world.text("none"), "");
}

#[test]
fn a_daemon_that_repeats_itself_gives_a_new_file() {
    let mut world = World::new();
    let mut stream = world.begin(1, "old");
    world.logs.begin(id(1), Some(token(7)), Some(token(8)), world.file("new")).unwrap();
    eventually("the old file is closed", || (!is_open(&world.path("old"))).then_some(()));
    stream.write_all(b"line\n").unwrap();
    drop(stream);
    assert!(hangs_up(&world.over(1), SOON));
    assert!(world.text("new").ends_with(" stdout F line\n"));
    assert!(world.dialer.next().is_none(), "nothing was dialled with the new tokens");
}

#[test]
fn no_line_is_lost_or_split_over_rotations_under_load() {
    const LINES: u32 = 60_000;
    let mut world = World::new();
    let mut stream = world.begin(1, "log.0");
    let talker = std::thread::spawn(move || {
        let mut said = Vec::new();
        for number in 0..LINES {
            // From 1 byte to more than a line of a log holds.
            let length = match number % 997 {
                0 => MAX_CONTENT + 500,
                rest => rest as usize % 90,
            };
            said.clear();
            writeln!(said, "{number} {}", "z".repeat(length)).unwrap();
            stream.write_all(&said).unwrap();
        }
    });
    let mut files = 1;
    while !talker.is_finished() {
        let (switched, done) = rustix::pipe::pipe().unwrap();
        let file = world.file(&format!("log.{files}"));
        files += 1;
        world.logs.reopen(&id(1), file, done).unwrap();
        assert!(hangs_up(&switched, SOON));
    }
    talker.join().unwrap();
    assert!(hangs_up(&world.over(1), SOON));
    assert!(files > 5, "{files} files");
    let mut next = 0;
    for file in 0..files {
        let text = world.text(&format!("log.{file}"));
        let mut line = String::new();
        for (_, tag, content) in lines(&text) {
            line.push_str(content);
            if tag == "F" {
                assert_eq!(line.split(' ').next().unwrap(), next.to_string());
                line.clear();
                next += 1;
            }
        }
        assert_eq!(line, "", "a line is split over two files");
    }
    assert_eq!(next, LINES);
}

/// A disk that hangs, played by a pipe that nobody reads.
#[test]
fn a_disk_that_hangs_stops_its_own_log_and_nothing_else() {
    let mut world = World::new();
    let (unread, pipe) = rustix::pipe::pipe().unwrap();
    world.logs.begin_unchecked(id(1), Some(token(1)), None, pipe).unwrap();
    let mut stuck = world.accept(&token(1));
    let mut other = world.begin(2, "other");
    stuck.set_nonblocking(true).unwrap();
    let mut sent = 0;
    let full = Instant::now() + Duration::from_millis(300);
    while Instant::now() < full {
        sent += stuck.write(&[b'\n'; 4096]).unwrap_or(0);
    }
    assert!(sent > 0 && sent < 4 << 20, "{sent} bytes were taken");
    let asked = Instant::now();
    let mut waiting = Vec::new();
    let refused = loop {
        let (switched, done) = rustix::pipe::pipe().unwrap();
        let file = world.file("next");
        match world.logs.reopen(&id(1), file, done) {
            Ok(()) => waiting.push(switched),
            Err(refused) => break refused,
        }
    };
    assert!(matches!(refused, LogRefused::Stuck), "{refused}");
    assert!(waiting.iter().all(|switched| !hangs_up(switched, Duration::ZERO)));
    let over = world.over(1);
    other.write_all(b"goes on\n").unwrap();
    eventually("the other log goes on", || world.text("other").ends_with("goes on\n").then_some(()));
    world.logs.finish_blocking(Duration::from_millis(100));
    assert!(!hangs_up(&over, Duration::ZERO));
    assert!(asked.elapsed() < SOON);
    // The disk is back: nothing was lost.
    drop(stuck);
    let mut all = String::new();
    File::from(unread).read_to_string(&mut all).unwrap();
    assert!(hangs_up(&over, SOON));
    let rest = world.text("next");
    assert_eq!(lines(&all).len() + lines(&rest).len(), sent);
}

#[test]
fn at_the_end_of_the_guest_what_has_come_is_written() {
    let mut world = World::new();
    let mut stream = world.begin(1, "log");
    // Nobody takes this one over.
    world.logs.begin(id(2), Some(token(2)), None, world.file("none")).unwrap();
    stream.write_all(&[b'\n'; 50_000]).unwrap();
    let hung_up = std::thread::spawn(move || drop(stream));
    let began = Instant::now();
    world.logs.finish_blocking(SOON);
    hung_up.join().unwrap();
    assert!(began.elapsed() < SOON / 2);
    assert_eq!(world.text("log").lines().count(), 50_000);
    assert!(hangs_up(&world.over(2), SOON));
    world.logs.begin(id(3), Some(token(3)), None, world.file("late")).unwrap();
    assert!(hangs_up(&world.over(3), SOON), "there is no guest any more");
}

#[test]
fn there_are_so_many_logs_and_no_more() {
    let mut world = World::new();
    let mut streams: Vec<UnixStream> = (0..4).map(|n| world.begin(n, "log")).collect();
    let refused = world.logs.begin(id(9), Some(token(9)), None, world.file("log")).unwrap_err();
    assert_eq!(refused.to_string(), "there are 4 logs, and no more can be had");
    streams.pop();
    assert!(hangs_up(&world.over(3), SOON));
    drop(world.begin(9, "log"));
}

#[test]
fn what_makes_no_sense_is_refused() {
    let mut world = World::new();
    let no_streams = world.logs.begin(id(1), None, None, world.file("log"));
    assert!(matches!(no_streams, Err(LogRefused::NoStreams)));
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    let no_log = world.logs.begin(id(1), Some(token(1)), None, writer.try_clone().unwrap());
    assert!(matches!(no_log, Err(LogRefused::NotForAppending)));
    let no_log = world.logs.reopen(&id(1), reader, writer.try_clone().unwrap());
    assert!(matches!(no_log, Err(LogRefused::NotForAppending)));
    let no_pipe = world.logs.reopen(&id(1), world.file("log"), world.file("log"));
    assert!(matches!(no_pipe, Err(LogRefused::NotAPipe)));
    assert!(matches!(world.logs.at_end(&id(1), world.file("log")), Err(LogRefused::NotAPipe)));
    let _stream = world.begin(1, "log");
    let awaited = std::iter::from_fn(|| Some(world.logs.at_end(&id(1), writer.try_clone().unwrap())));
    let refused = awaited.take(100).find_map(Result::err).unwrap();
    assert!(matches!(refused, LogRefused::Awaited), "{refused}");
    let none = Logs::new(None).begin(id(1), Some(token(1)), None, world.file("log"));
    assert!(matches!(none, Err(LogRefused::NoVsock)));
}

#[test]
fn fifty_logs_come_and_go() {
    let mut world = World::new();
    for _ in 0..50 {
        let mut stream = world.begin(1, "log");
        stream.write_all(&[b'\n'; 1000]).unwrap();
        drop(stream);
        assert!(hangs_up(&world.over(1), SOON));
    }
    assert!(!is_open(&world.path("log")));
    assert_eq!(world.text("log").lines().count(), 50 * 1000);
}
