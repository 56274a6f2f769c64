//! Reading a container's log back: `TIME STREAM TAG TEXT` lines as every CRI runtime writes them
//! (<https://github.com/kubernetes/design-proposals-archive/blob/main/node/kubelet-cri-logging.md>).

/// Where the process wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stream {
    Stdout,
    Stderr,
}

/// What the process wrote, a piece at a time.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) stream: Stream,
    /// With its line break, unless the line goes on (tag `P`).
    pub(super) bytes: Vec<u8>,
}

/// Takes the file's bytes as they come and gives what the process wrote.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    rest: Vec<u8>,
}

impl Decoder {
    /// Pieces that are complete; a line that is not a log line is skipped.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Vec<Piece> {
        self.rest.extend_from_slice(bytes);
        let Some(end) = self.rest.iter().rposition(|b| *b == b'\n') else { return Vec::new() };
        let rest = self.rest.split_off(end + 1);
        let complete = std::mem::replace(&mut self.rest, rest);
        complete.split_inclusive(|b| *b == b'\n').filter_map(piece).collect()
    }
}

fn piece(line: &[u8]) -> Option<Piece> {
    let mut parts = line.splitn(4, |b| *b == b' ');
    let (_time, stream, tag, text) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    let stream = match stream {
        b"stdout" => Stream::Stdout,
        b"stderr" => Stream::Stderr,
        _ => return None,
    };
    // More tags may follow the first, after a colon.
    let goes_on = tag.split(|b| *b == b':').next()? == b"P";
    let bytes = if goes_on { text.strip_suffix(b"\n")? } else { text };
    Some(Piece { stream, bytes: bytes.to_vec() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_back_as_they_were_written() {
        let log = b"2026-01-01T00:00:00.1Z stdout F hello  world\n\
                    2026-01-01T00:00:00.2Z stderr F \n\
                    2026-01-01T00:00:00.3Z stdout P half\n\
                    2026-01-01T00:00:00.4Z stdout F  line\n";
        let found = Decoder::default().feed(log);
        let text = |p: &Piece| (p.stream, String::from_utf8(p.bytes.clone()).unwrap());
        assert_eq!(
            found.iter().map(text).collect::<Vec<_>>(),
            [
                (Stream::Stdout, "hello  world\n".to_owned()),
                (Stream::Stderr, "\n".to_owned()),
                (Stream::Stdout, "half".to_owned()),
                (Stream::Stdout, " line\n".to_owned()),
            ]
        );
    }

    #[test]
    fn it_does_not_matter_how_the_bytes_come() {
        let log = b"t stdout F one\nt stderr F two\n";
        let mut decoder = Decoder::default();
        let found: Vec<Piece> = log.chunks(1).flat_map(|b| decoder.feed(b)).collect();
        assert_eq!(found, Decoder::default().feed(log));
        assert_eq!(found.len(), 2);
    }

    #[test]
    fn what_is_not_a_log_line_is_skipped() {
        assert_eq!(Decoder::default().feed(b"\nnonsense\nt other F x\nt stdout F x\n").len(), 1);
    }
}
