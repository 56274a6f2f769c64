//! The guest's console on the host: what it prints is the guest's, so it is bounded.

use std::collections::VecDeque;
use std::fs::File;
use std::io::Write as _;
use std::sync::{Mutex, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Bytes of output that are remembered to find a panic's line in: a panic prints it before the registers and the stack.
const TAIL: usize = 16 << 10;
/// How Linux begins the line (kernel/panic.c).
const PANIC: &str = "Kernel panic - not syncing:";

/// Appends what the guest prints to a file, up to a limit, and remembers the end.
#[derive(Debug)]
pub struct Console {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    out: File,
    /// Bytes that may still be written.
    left: u64,
    tail: VecDeque<u8>,
}

impl Console {
    /// Appends at most `limit` bytes of output to `out`, then one line that says so.
    #[must_use]
    pub fn new(out: File, limit: u64) -> Self {
        Self { state: Mutex::new(State { out, left: limit, tail: VecDeque::with_capacity(TAIL) }) }
    }

    /// The guest prints. What cannot be written is lost: the guest is not told and does not wait.
    pub fn print(&self, bytes: &[u8]) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let State { out, left, tail } = &mut *state;
        let last = &bytes[bytes.len().saturating_sub(TAIL)..];
        let excess = (tail.len() + last.len()).saturating_sub(TAIL);
        tail.drain(..excess);
        tail.extend(last);
        if *left == 0 || !has_room(out) {
            return;
        }
        let fits = bytes.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
        *left -= fits as u64;
        let mut written = out.write_all(&bytes[..fits]);
        // What was printed may have taken the last room of a pipe.
        if *left == 0 && has_room(out) {
            written = written.and_then(|()| out.write_all(b"\n[hartpod: the console's limit is reached]\n"));
        }
        if written.is_err() {
            // A full disk, or a reader that has gone: try no more.
            *left = 0;
        }
    }

    /// The last panic among the last lines, without the time stamp before it.
    #[must_use]
    pub fn panic_line(&self) -> Option<String> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let tail = String::from_utf8_lossy(state.tail.make_contiguous()).into_owned();
        // With panic=0 the line comes once more, as an end mark.
        let lines = tail.lines().filter(|line| !line.contains("---[ end "));
        let line = lines.filter_map(|line| line.find(PANIC).map(|at| &line[at..])).next_back()?;
        Some(line.trim_end().chars().filter(|c| !c.is_control()).collect())
    }
}

/// A pipe that nobody empties must not stop a vCPU, which could not be told to stop then. What is printed at once is less than what a pipe
/// that has any room takes.
fn has_room(out: &File) -> bool {
    let mut fds = [PollFd::new(out, PollFlags::OUT)];
    poll(&mut fds, Some(&Timespec::default())).is_ok() && fds[0].revents().contains(PollFlags::OUT)
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Seek as _};

    use super::*;

    fn console(limit: u64) -> (Console, File) {
        let file = tempfile::tempfile().unwrap();
        (Console::new(file.try_clone().unwrap(), limit), file)
    }

    fn contents(mut file: File) -> String {
        file.rewind().unwrap();
        let mut text = String::new();
        file.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn a_flood_fills_the_file_to_its_limit_and_no_further() {
        let (console, file) = console(10);
        console.print(b"12345678");
        for _ in 0..1000 {
            console.print(&[b'x'; 4096]);
        }
        assert_eq!(contents(file), "12345678xx\n[hartpod: the console's limit is reached]\n");
        let kept = console.state.lock().unwrap().tail.len();
        assert_eq!(kept, TAIL);
    }

    #[test]
    fn the_panics_line_is_found_after_a_flood_and_past_the_limit() {
        let (console, _file) = console(0);
        console.print(&vec![b'y'; 3 * TAIL]);
        console.print(b"\n[    1.5] Kernel panic - not syncing: Attempted to ");
        console.print(b"kill init! exitcode=0x00000100\x1b\r\n[    1.6] CPU: 0 PID: 1\nCall Trace:\n");
        assert_eq!(
            console.panic_line().unwrap(),
            "Kernel panic - not syncing: Attempted to kill init! exitcode=0x00000100"
        );
    }

    #[test]
    fn the_end_mark_is_not_the_line_and_the_last_panic_counts() {
        let (console, _file) = console(0);
        console.print(b"Kernel panic - not syncing: first\nKernel panic - not syncing: second\n");
        console.print(b"---[ end Kernel panic - not syncing: second ]---\n");
        assert_eq!(console.panic_line().unwrap(), "Kernel panic - not syncing: second");
    }

    #[test]
    fn no_panic_is_no_panic_even_in_noise() {
        let (console, _file) = console(100);
        console.print(&[0xff, 0xfe, 0, b'\n', 0x80]);
        assert_eq!(console.panic_line(), None);
    }

    #[test]
    fn a_reader_that_does_not_read_stops_nothing() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        let mut reader = File::from(reader);
        let console = Console::new(File::from(writer), u64::MAX);
        for _ in 0..100 {
            console.print(&[b'x'; 4096]);
        }
        console.print(b"Kernel panic - not syncing: unread\n");
        assert!(console.panic_line().is_some());
        // It reads again, and sees what is printed from then on.
        reader.read_exact(&mut [0; 4096]).unwrap();
        console.print(b"heard");
        drop(console);
        let mut rest = String::new();
        reader.read_to_string(&mut rest).unwrap();
        assert!(rest.ends_with("heard"));
    }

    #[test]
    fn a_reader_that_does_not_read_is_not_waited_for_at_the_limit_either() {
        let (_reader, writer) = rustix::pipe::pipe().unwrap();
        let room = rustix::pipe::fcntl_setpipe_size(&writer, 4096).unwrap();
        let console = Console::new(File::from(writer), room as u64);
        console.print(&vec![b'x'; room]);
        console.print(b"Kernel panic - not syncing: unread\n");
        assert!(console.panic_line().is_some());
    }

    #[test]
    fn a_reader_that_has_gone_stops_nothing() {
        let (reader, writer) = rustix::pipe::pipe().unwrap();
        drop(reader);
        let console = Console::new(File::from(writer), 1000);
        // Tests ignore SIGPIPE as every Rust program does.
        console.print(b"one");
        console.print(b"Kernel panic - not syncing: two\n");
        assert!(console.panic_line().is_some());
    }
}
