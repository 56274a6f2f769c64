//! The container's log, turned back into what it wrote.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::path::Path;

use anyhow::Context as _;

use super::super::log_lines::{Decoder, Stream};

/// Copies a log as it grows.
#[derive(Debug)]
pub(super) struct Output {
    log: File,
    decoder: Decoder,
}

impl Output {
    /// The log is there once the container was started.
    pub(super) fn open(path: &Path) -> anyhow::Result<Self> {
        let log = File::open(path).with_context(|| format!("open the log {}", path.display()))?;
        Ok(Self { log, decoder: Decoder::default() })
    }

    /// Everything new to stdout and stderr. An error means that nobody reads any more.
    pub(super) fn copy(&mut self) -> io::Result<()> {
        let mut buffer = [0; 64 << 10];
        let (mut out, mut err) = (io::stdout().lock(), io::stderr().lock());
        loop {
            let count = self.log.read(&mut buffer)?;
            if count == 0 {
                return out.flush();
            }
            for piece in self.decoder.feed(&buffer[..count]) {
                match piece.stream {
                    Stream::Stdout => out.write_all(&piece.bytes)?,
                    Stream::Stderr => err.write_all(&piece.bytes)?,
                }
            }
        }
    }
}
