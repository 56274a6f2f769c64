//! Cuts a byte stream into the pieces that become log lines.
//!
//! A piece is a whole line (`F`), or 16 KiB of a longer one (`P`); what the stream ends with, when that is no newline, is a
//! `P` too, so that a reader who joins pieces gets back exactly what was written. containerd does the same, and like it
//! a carriage return before the newline goes, because a terminal adds one to every line.

use std::ops::Range;

/// Longest content of one log line, in bytes. Same as containerd's default (`max_container_log_line_size`).
pub const MAX_CONTENT: usize = 16 * 1024;

/// Bytes a [`Framer`]'s buffer must have: a held-back piece and room to read as much again.
pub(crate) const BUFFER: usize = 2 * MAX_CONTENT;

/// What the second tag of a CRI log line says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Tag {
    /// The line goes on in the next piece.
    Partial,
    /// The line ends here.
    Full,
}

/// One piece: where its content lies in the framer's buffer (without the newline), and its tag.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Piece {
    pub(crate) content: Range<usize>,
    pub(crate) tag: Tag,
}

/// Holds what was read and not yet cut.
#[derive(Debug)]
pub(crate) struct Framer<'b> {
    buffer: &'b mut [u8],
    start: usize,
    end: usize,
    /// No newline between `start` and here.
    scanned: usize,
    /// The last piece was a `P`: the line it belongs to has not ended.
    mid_line: bool,
}

impl<'b> Framer<'b> {
    /// A framer over `buffer`, which must hold [`BUFFER`] bytes.
    pub(crate) fn new(buffer: &'b mut [u8]) -> Self {
        debug_assert!(buffer.len() >= BUFFER);
        Self { buffer, start: 0, end: 0, scanned: 0, mid_line: false }
    }

    /// Room for the next read; never empty once every piece was taken.
    pub(crate) fn spare(&mut self) -> &mut [u8] {
        if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.scanned -= self.start;
            self.start = 0;
        }
        &mut self.buffer[self.end..]
    }

    /// `count` bytes of the spare room now hold data.
    pub(crate) fn filled(&mut self, count: usize) {
        self.end = (self.end + count).min(self.buffer.len());
    }

    /// The next piece that is certain, whatever comes after it.
    pub(crate) fn next_piece(&mut self) -> Option<Piece> {
        // One byte more than the content, or two with a carriage return, tells a line of exactly the limit from a longer one.
        let window = self.end.min(self.start + MAX_CONTENT + 2);
        let newline = memchr::memchr(b'\n', &self.buffer[self.scanned..window]).map(|at| self.scanned + at);
        if let Some(newline) = newline {
            let mut stop = newline;
            if stop > self.start && self.buffer[stop - 1] == b'\r' {
                stop -= 1;
            }
            if stop - self.start <= MAX_CONTENT {
                let content = self.start..stop;
                self.start = newline + 1;
                self.scanned = self.start;
                self.mid_line = false;
                return Some(Piece { content, tag: Tag::Full });
            }
        } else {
            self.scanned = window;
        }
        if self.end - self.start < MAX_CONTENT + 2 {
            return None;
        }
        Some(self.cut_partial(MAX_CONTENT))
    }

    /// At the end of the stream: what is left, as a `P`.
    pub(crate) fn last_piece(&mut self) -> Option<Piece> {
        let left = self.end - self.start;
        (left > 0).then(|| self.cut_partial(left.min(MAX_CONTENT)))
    }

    fn cut_partial(&mut self, length: usize) -> Piece {
        let content = self.start..self.start + length;
        self.start += length;
        self.scanned = self.start;
        self.mid_line = true;
        Piece { content, tag: Tag::Partial }
    }

    /// The bytes of a piece, until the next call of [`Framer::spare`].
    pub(crate) fn content(&self, piece: &Piece) -> &[u8] {
        &self.buffer[piece.content.clone()]
    }

    /// Whether the last piece ended its line, so that a log may be switched here.
    pub(crate) fn at_line_end(&self) -> bool {
        !self.mid_line
    }

    /// Whether nothing is held back.
    pub(crate) fn is_empty(&self) -> bool {
        self.start == self.end
    }

    /// The buffer, when nothing in it matters.
    pub(crate) fn idle_buffer(&mut self) -> Option<&mut [u8]> {
        self.is_empty().then(|| {
            (self.start, self.end, self.scanned) = (0, 0, 0);
            &mut *self.buffer
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Feeds `input` in reads of the given sizes and returns every piece.
    fn cut(input: &[u8], mut sizes: impl FnMut() -> usize) -> Vec<(Vec<u8>, Tag)> {
        let mut buffer = vec![0; BUFFER];
        let mut framer = Framer::new(&mut buffer);
        let mut pieces = Vec::new();
        let mut rest = input;
        while !rest.is_empty() {
            let room = framer.spare();
            assert!(!room.is_empty(), "no room to read");
            let count = sizes().clamp(1, room.len()).min(rest.len());
            room[..count].copy_from_slice(&rest[..count]);
            rest = &rest[count..];
            framer.filled(count);
            while let Some(piece) = framer.next_piece() {
                pieces.push((framer.content(&piece).to_vec(), piece.tag));
            }
        }
        while let Some(piece) = framer.last_piece() {
            pieces.push((framer.content(&piece).to_vec(), piece.tag));
        }
        assert!(framer.is_empty());
        pieces
    }

    fn full(text: &[u8]) -> (Vec<u8>, Tag) {
        (text.to_vec(), Tag::Full)
    }

    fn partial(text: &[u8]) -> (Vec<u8>, Tag) {
        (text.to_vec(), Tag::Partial)
    }

    #[test]
    fn lines_and_an_unfinished_end() {
        assert_eq!(cut(b"a\n\nbc\r\nd", || 3), [full(b"a"), full(b""), full(b"bc"), partial(b"d")]);
    }

    #[test]
    fn a_line_of_exactly_the_limit_is_whole() {
        for ending in [&b"\n"[..], b"\r\n"] {
            let mut input = vec![b'x'; MAX_CONTENT];
            let line = input.clone();
            input.extend_from_slice(ending);
            assert_eq!(cut(&input, || 4096), [full(&line)]);
        }
    }

    #[test]
    fn a_longer_line_is_cut_at_the_limit() {
        let mut input = vec![b'x'; MAX_CONTENT];
        let head = input.clone();
        input.extend_from_slice(b"yz\n");
        assert_eq!(cut(&input, || 1000), [partial(&head), full(b"yz")]);
    }

    #[test]
    fn a_carriage_return_inside_a_line_stays() {
        assert_eq!(cut(b"10%\r20%\n\r\n", || 1), [full(b"10%\r20%"), full(b"")]);
    }

    /// However a stream is chopped into reads, the pieces are the same and joining them gives it back.
    #[test]
    fn reads_of_any_size_give_the_same_pieces() {
        let mut random = crate::test_random::Random::new(7);
        for _ in 0..200 {
            let mut input = Vec::new();
            for _ in 0..random.below(12) {
                let length = match random.below(4) {
                    0 => random.below(3),
                    1 => random.below(200),
                    2 => MAX_CONTENT - 2 + random.below(5),
                    _ => random.below(3 * MAX_CONTENT),
                };
                input.extend((0..length).map(|i| b'a' + u8::try_from(i % 26).unwrap()));
                if random.below(8) != 0 {
                    input.push(b'\n');
                }
            }
            let whole = cut(&input, || usize::MAX);
            let chopped = cut(&input, || 1 + random.below(9000));
            assert!(whole == chopped, "pieces depend on the size of reads");
            let mut joined = Vec::new();
            for (content, tag) in &whole {
                assert!(content.len() <= MAX_CONTENT);
                joined.extend_from_slice(content);
                if *tag == Tag::Full {
                    joined.push(b'\n');
                }
            }
            assert!(joined == input, "bytes lost or added");
        }
    }
}
