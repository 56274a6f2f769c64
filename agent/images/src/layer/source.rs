//! The byte stream of a layer: counted and hashed as it comes, decompressed, counted and hashed again.

use std::io::{self, BufReader, Read};
use std::path::PathBuf;

use flate2::read::MultiGzDecoder;

use super::error::LayerError;
use crate::digest::{Digest, Hasher};
use crate::file_error::FileError;

/// Compressed bytes that a decompressor asks for at a time.
const RAW_BUFFER: usize = 64 << 10;

/// What the manifest and the configuration say about a layer.
#[derive(Clone, Debug)]
pub(crate) struct StreamFacts {
    /// Digest of the compressed bytes.
    pub(crate) digest: Digest,
    /// Number of the compressed bytes.
    pub(crate) size: u64,
    /// Digest of the unpacked tar.
    pub(crate) diff_id: Digest,
}

/// The unpacked tar bytes of a layer. After reading, [`finish`](LayerStream::finish) tells whether they were the right ones.
pub(crate) struct LayerStream {
    facts: StreamFacts,
    decoder: Decoder,
    hasher: Hasher,
    unpacked: u64,
    limit: u64,
}

enum Decoder {
    Plain(Box<Raw>),
    Gzip(Box<MultiGzDecoder<BufReader<Raw>>>),
    Zstd(Box<zstd::Decoder<'static, BufReader<Raw>>>),
}

impl LayerStream {
    /// Looks at the first bytes of `source` to see how it is compressed, as containerd does: media types are often wrong.
    ///
    /// `from` names the source in errors; at most `limit` bytes may come out.
    pub(crate) fn open(
        source: Box<dyn Read + Send>,
        from: PathBuf,
        facts: StreamFacts,
        limit: u64,
    ) -> Result<LayerStream, LayerError> {
        let raw = Raw::open(source, from, &facts)?;
        let decoder = match compression(&raw.head) {
            Ok(Compression::Plain) => Decoder::Plain(Box::new(raw)),
            Ok(Compression::Gzip) => {
                Decoder::Gzip(Box::new(MultiGzDecoder::new(BufReader::with_capacity(RAW_BUFFER, raw))))
            }
            Ok(Compression::Zstd) => {
                let decoder = zstd::Decoder::with_buffer(BufReader::with_capacity(RAW_BUFFER, raw));
                let layer = facts.digest.clone();
                let decoder =
                    decoder.map_err(|source| LayerError::Decompress { layer, method: "zstd", source })?;
                Decoder::Zstd(Box::new(decoder))
            }
            Err(method) => {
                return Err(raw.rather_wrong(LayerError::Compression { layer: facts.digest, method }));
            }
        };
        let hasher = Hasher::new(facts.diff_id.algorithm());
        Ok(LayerStream { facts, decoder, hasher, unpacked: 0, limit })
    }

    /// Bytes that may still come out.
    pub(crate) fn allowance(&self) -> u64 {
        self.limit - self.unpacked
    }

    /// Reads what is left and compares sizes and both digests.
    pub(crate) fn finish(mut self) -> Result<(), LayerError> {
        let mut rest = [0; 16 << 10];
        loop {
            match self.read(&mut rest) {
                Ok(0) => break,
                Ok(_) => {}
                Err(error) => return Err(self.failed(error)),
            }
        }
        self.decoder.into_raw().finish()?;
        let found = self.hasher.finish();
        match found == self.facts.diff_id {
            true => Ok(()),
            false => {
                Err(LayerError::DiffId { layer: self.facts.digest, expected: self.facts.diff_id, found })
            }
        }
    }

    /// Turns an error of [`read`](Read::read) back into what was wrong.
    pub(crate) fn failed(self, error: io::Error) -> LayerError {
        match error.downcast::<LayerError>() {
            Ok(error @ LayerError::Decompress { .. }) => self.rather_wrong(error),
            Ok(error) => error,
            Err(source) => LayerError::Decompress { layer: self.facts.digest, method: "layer", source },
        }
    }

    /// Garbage that does not have the promised digest is the wrong bytes in the first place: hashes what is left and says so.
    pub(crate) fn rather_wrong(self, error: LayerError) -> LayerError {
        self.decoder.into_raw().rather_wrong(error)
    }
}

impl Read for LayerStream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let (method, result) = match &mut self.decoder {
            Decoder::Plain(raw) => ("", raw.read(buffer)),
            Decoder::Gzip(decoder) => ("gzip", decoder.read(buffer)),
            Decoder::Zstd(decoder) => ("zstd", decoder.read(buffer)),
        };
        let read = result.map_err(|error| match error.get_ref().is_some_and(|e| e.is::<LayerError>()) {
            true => error,
            false => io::Error::other(LayerError::Decompress {
                layer: self.facts.digest.clone(),
                method,
                source: error,
            }),
        })?;
        self.unpacked += read as u64;
        if self.unpacked > self.limit {
            let layer = self.facts.digest.clone();
            return Err(io::Error::other(LayerError::TooLarge { layer, limit: self.limit }));
        }
        self.hasher.update(&buffer[..read]);
        Ok(read)
    }
}

impl Decoder {
    fn into_raw(self) -> Raw {
        match self {
            Decoder::Plain(raw) => *raw,
            Decoder::Gzip(decoder) => decoder.into_inner().into_inner(),
            Decoder::Zstd(decoder) => decoder.finish().into_inner(),
        }
    }
}

/// The compressed bytes.
struct Raw {
    source: Box<dyn Read + Send>,
    from: PathBuf,
    /// The first bytes, read ahead and hashed already.
    head: Vec<u8>,
    head_given: usize,
    hasher: Hasher,
    digest: Digest,
    size: u64,
    count: u64,
}

/// Bytes that tell the compressions apart.
const HEAD: usize = 6;

impl Raw {
    fn open(source: Box<dyn Read + Send>, from: PathBuf, facts: &StreamFacts) -> Result<Raw, LayerError> {
        let mut raw = Raw {
            source,
            from,
            head: Vec::new(),
            head_given: 0,
            hasher: Hasher::new(facts.digest.algorithm()),
            digest: facts.digest.clone(),
            size: facts.size,
            count: 0,
        };
        let mut head = [0; HEAD];
        let mut filled = 0;
        while filled < HEAD {
            match raw.pull(&mut head[filled..])? {
                0 => break,
                read => filled += read,
            }
        }
        raw.head = head[..filled].to_vec();
        Ok(raw)
    }

    /// The next bytes of the source.
    fn pull(&mut self, buffer: &mut [u8]) -> Result<usize, LayerError> {
        let read = loop {
            match self.source.read(buffer) {
                Ok(read) => break read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => {
                    let source = FileError { action: "read", path: self.from.clone(), source };
                    return Err(LayerError::File { layer: self.digest.clone(), source });
                }
            }
        };
        self.count += read as u64;
        if self.count > self.size {
            return Err(LayerError::TooLong { layer: self.digest.clone(), expected: self.size });
        }
        if read == 0 && !buffer.is_empty() && self.count < self.size {
            return Err(self.truncated());
        }
        self.hasher.update(&buffer[..read]);
        Ok(read)
    }

    fn truncated(&self) -> LayerError {
        LayerError::Truncated { layer: self.digest.clone(), expected: self.size, found: self.count }
    }

    fn finish(mut self) -> Result<(), LayerError> {
        let mut rest = [0; 16 << 10];
        while self.pull(&mut rest)? > 0 {}
        let found = self.hasher.finish();
        match found == self.digest {
            true => Ok(()),
            false => Err(LayerError::Digest { expected: self.digest, found }),
        }
    }

    fn rather_wrong(self, error: LayerError) -> LayerError {
        match self.finish() {
            Err(wrong) => wrong,
            Ok(()) => error,
        }
    }
}

impl Read for Raw {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let head = &self.head[self.head_given..];
        if !head.is_empty() {
            let read = head.len().min(buffer.len());
            buffer[..read].copy_from_slice(&head[..read]);
            self.head_given += read;
            return Ok(read);
        }
        self.pull(buffer).map_err(io::Error::other)
    }
}

enum Compression {
    Plain,
    Gzip,
    Zstd,
}

/// RFC 1952, RFC 8878 (frames and skippable frames), and what else people compress with.
fn compression(head: &[u8]) -> Result<Compression, &'static str> {
    match head {
        [0x1f, 0x8b, 0x08, ..] => Ok(Compression::Gzip),
        [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Ok(Compression::Zstd),
        [0xfd, b'7', b'z', b'X', b'Z', 0] => Err("xz"),
        [b'B', b'Z', b'h', ..] => Err("bzip2"),
        [0x04, 0x22, 0x4d, 0x18, ..] => Err("lz4"),
        _ => Ok(Compression::Plain),
    }
}
