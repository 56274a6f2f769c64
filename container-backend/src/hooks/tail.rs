//! The end of what a program wrote.

use std::collections::VecDeque;

/// What is quoted of a hook's stderr, bytes.
const KEPT: usize = 1024;

/// Takes any amount, keeps the end.
#[derive(Debug, Default)]
pub struct Tail {
    kept: VecDeque<u8>,
    cut: bool,
}

impl Tail {
    /// More of it.
    pub fn push(&mut self, bytes: &[u8]) {
        self.kept.extend(&bytes[bytes.len().saturating_sub(KEPT)..]);
        let surplus = self.kept.len().saturating_sub(KEPT);
        self.kept.drain(..surplus);
        self.cut |= surplus > 0 || bytes.len() > KEPT;
    }

    /// As one line, without what a terminal would obey.
    #[must_use]
    pub fn text(mut self) -> String {
        let text = String::from_utf8_lossy(self.kept.make_contiguous());
        let lines: Vec<&str> = text.lines().map(str::trim_end).filter(|line| !line.is_empty()).collect();
        let line: String = lines.join("; ").chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        if self.cut { format!("..{line}") } else { line }
    }
}
