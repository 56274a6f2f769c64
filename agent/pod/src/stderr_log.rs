//! The agent's own log: one line per event on stderr, which the daemon points somewhere.
//!
//! A subscriber of a hundred lines instead of tracing-subscriber, whose registry and filters would cost every pod more memory
//! than the rest of the agent's code. `RUST_LOG` is understood as far as it goes here: `off`, `error`, `warn`,
//! `info`, `debug` or `trace`, alone or after `hartpod=` or `hartpod_pod=`; other directives are passed over. Default: `info`.

use std::fmt::{self, Write as _};
use std::io::Write as _;
use std::os::fd::AsFd;

use rustix::fs::{FileType, OFlags};
use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::span::{Attributes, Id, Record};
use tracing::subscriber::Interest;
use tracing::{Event, Metadata, Subscriber};

/// Targets whose events are written; the libraries below have nothing to say that would help here.
const OURS: &str = "hartpod";

/// Longest line; what is longer is cut.
const LINE_MAX: usize = 1024;

/// Bytes that the log may grow to before it begins anew. It lies in a file system in memory, and a pod lives for months.
const FILE_MAX: u64 = 256 * 1024;

/// Starts logging at the level that `directives` (the value of `RUST_LOG`) ask for.
pub(crate) fn start(directives: Option<&str>) {
    let level = level(directives.unwrap_or_default());
    // Fails only if it was started before, which is as good.
    let _ = tracing::subscriber::set_global_default(StderrLog { level });
}

fn level(directives: &str) -> LevelFilter {
    let directives = directives.rsplit(',').map(str::trim).filter(|directive| !directive.is_empty());
    let mut levels = directives.filter_map(|directive| match directive.split_once('=') {
        None => directive.parse().ok(),
        Some(("hartpod" | "hartpod_pod", level)) => level.parse().ok(),
        Some(_) => None,
    });
    levels.next().unwrap_or(LevelFilter::INFO)
}

struct StderrLog {
    level: LevelFilter,
}

impl Subscriber for StderrLog {
    fn register_callsite(&self, metadata: &'static Metadata<'static>) -> Interest {
        if self.enabled(metadata) { Interest::always() } else { Interest::never() }
    }

    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.is_event() && *metadata.level() <= self.level && metadata.target().starts_with(OURS)
    }

    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(self.level)
    }

    fn event(&self, event: &Event<'_>) {
        let mut line = Line { text: String::with_capacity(256) };
        let metadata = event.metadata();
        let _ = write!(line.text, "{} hartpod-pod[{}]:", metadata.level(), std::process::id());
        event.record(&mut line);
        line.finish();
    }

    fn new_span(&self, _: &Attributes<'_>) -> Id {
        // Spans are never enabled.
        Id::from_u64(1)
    }

    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

struct Line {
    text: String,
}

impl Line {
    /// Writes it at once, so that lines of log writers and agent do not mix; nothing may break a line in two.
    fn finish(self) {
        begin_anew_when_full(std::io::stderr(), FILE_MAX);
        // There is no other place to tell of a failure.
        let _ = std::io::stderr().write_all(&self.into_bytes());
    }

    fn into_bytes(mut self) -> Vec<u8> {
        while self.text.len() >= LINE_MAX {
            self.text.pop();
        }
        let mut bytes = self.text.into_bytes();
        for byte in &mut bytes {
            if byte.is_ascii_control() {
                *byte = b' ';
            }
        }
        bytes.push(b'\n');
        bytes
    }
}

/// The agent and its log writers append to one file: whoever finds it full empties it, and the others go on at its new end.
/// Anything but a file is left alone, and so is a file that is not appended to.
fn begin_anew_when_full(log: impl AsFd, most: u64) {
    let Ok(data) = rustix::fs::fstat(&log) else { return };
    let is_file = FileType::from_raw_mode(data.st_mode) == FileType::RegularFile;
    let is_full = u64::try_from(data.st_size).is_ok_and(|size| size > most);
    let appends = || rustix::fs::fcntl_getfl(&log).is_ok_and(|flags| flags.contains(OFlags::APPEND));
    if is_file && is_full && appends() && rustix::fs::ftruncate(&log, 0).is_ok() {
        let _ = rustix::io::write(&log, b"INFO hartpod-pod: the log was full, earlier lines are gone\n");
    }
}

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        let _ = match field.name() {
            "message" => write!(self.text, " {value:?}"),
            name => write!(self.text, " {name}={value:?}"),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_log_begins_anew() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("agent.log");
        let open = || std::fs::OpenOptions::new().create(true).append(true).open(&path).unwrap();
        let (mut agent, mut writer) = (open(), open());
        agent.write_all(&[b'x'; 100]).unwrap();
        begin_anew_when_full(&agent, 100);
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 100, "not full yet");
        writer.write_all(b"y").unwrap();
        begin_anew_when_full(&agent, 100);
        writer.write_all(b"next\n").unwrap();
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text, "INFO hartpod-pod: the log was full, earlier lines are gone\nnext\n");
        // A pipe has no size, and a file that somebody else writes at an offset would get a hole.
        std::fs::write(&path, [b'x'; 200]).unwrap();
        begin_anew_when_full(std::fs::OpenOptions::new().write(true).open(&path).unwrap(), 100);
        assert_eq!(std::fs::metadata(&path).unwrap().len(), 200);
    }

    #[test]
    fn rust_log_as_far_as_it_goes() {
        for (directives, expected) in [
            ("", LevelFilter::INFO),
            ("debug", LevelFilter::DEBUG),
            ("hartpod=warn", LevelFilter::WARN),
            ("h2=trace,hartpod_pod=error", LevelFilter::ERROR),
            ("info, h2=trace", LevelFilter::INFO),
            ("off", LevelFilter::OFF),
            ("nonsense", LevelFilter::INFO),
        ] {
            assert_eq!(level(directives), expected, "{directives}");
        }
    }
}
