//! Container logs in CRI's format: `2026-11-22T10:00:00.123456789Z stdout F text`.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};

/// One line of a log file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogLine {
    /// RFC 3339 with nanoseconds, as it stands there.
    pub time: String,
    pub stream: String,
    /// `P` (the line goes on) or `F` (full).
    pub tag: String,
    pub text: String,
}

/// Reads a whole log; anything that is not the format is an error with the line.
pub fn read(path: &Path) -> Result<Vec<LogLine>> {
    let bytes = fs::read(path).with_context(|| format!("read {}", path.display()))?;
    ensure!(bytes.is_empty() || bytes.ends_with(b"\n"), "{} ends within a line", path.display());
    let text = String::from_utf8_lossy(&bytes).into_owned();
    text.lines().map(parse).collect()
}

fn parse(line: &str) -> Result<LogLine> {
    let mut parts = line.splitn(4, ' ');
    let mut next = || parts.next().with_context(|| format!("not a CRI log line: {line:?}"));
    let (time, stream, tag, text) = (next()?, next()?, next()?, next()?);
    ensure!(["stdout", "stderr"].contains(&stream), "stream {stream:?} in {line:?}");
    ensure!(["P", "F"].contains(&tag), "tag {tag:?} in {line:?}");
    ensure!(is_timestamp(time), "time {time:?} in {line:?}");
    Ok(LogLine { time: time.into(), stream: stream.into(), tag: tag.into(), text: text.into() })
}

/// `2026-11-22T10:00:00.123456789Z`, or with an offset such as `+01:00`. The kubelet parses it as RFC3339Nano.
fn is_timestamp(time: &str) -> bool {
    let shape: String = time.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    let Some(rest) = shape.strip_prefix("0000-00-00T00:00:00") else { return false };
    let zone = rest.strip_prefix('.').map_or(rest, |rest| rest.trim_start_matches('0'));
    let nanoseconds = rest.len() - zone.len();
    // A dot and up to nine digits: Go leaves zeros at the end out.
    (nanoseconds == 0 || (2..=10).contains(&nanoseconds)) && ["Z", "+00:00", "-00:00"].contains(&zone)
}

/// The text of one stream, with the lines that `P` had split put together again.
pub fn text(lines: &[LogLine], stream: &str) -> String {
    let mut text = String::new();
    for line in lines.iter().filter(|line| line.stream == stream) {
        text.push_str(&line.text);
        if line.tag == "F" {
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_has_four_parts() {
        let line = parse("2026-11-22T10:00:00.123456789Z stderr P a b  c").unwrap();
        assert_eq!((line.stream.as_str(), line.tag.as_str(), line.text.as_str()), ("stderr", "P", "a b  c"));
        for wrong in [
            "",
            "2026-11-22 stdout F x",
            "2026-11-22T10:00:00.Z stdout F x",
            "2026-11-22T10:00:00.123456789Z both F x",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn split_lines_are_put_together() {
        let line = |tag: &str, text: &str| LogLine {
            time: String::new(),
            stream: "stdout".into(),
            tag: tag.into(),
            text: text.into(),
        };
        assert_eq!(text(&[line("P", "ab"), line("F", "c"), line("F", "")], "stdout"), "abc\n\n");
    }
}
