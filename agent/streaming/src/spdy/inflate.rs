//! Unpacks the header blocks of one direction.

use flate2::{Decompress, FlushDecompress, Status};

use super::dictionary;

/// A block of headers, unpacked. Kubernetes' have less than 100 bytes.
const MOST: usize = 16 * 1024;

/// Why a block cannot be unpacked; the context is lost then, and the connection with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InflateError {
    #[error("another dictionary is wanted ({0:#010x})")]
    Dictionary(u32),
    #[error("headers of more than {MOST} bytes")]
    Bomb,
    #[error("headers that are not zlib's")]
    Corrupt,
}

/// The context of a direction.
#[derive(Debug)]
pub(crate) struct Inflater(Decompress);

impl Inflater {
    pub(crate) fn new() -> Self {
        Self(Decompress::new(true))
    }

    /// Unpacks the next block, all of it.
    pub(crate) fn inflate(&mut self, mut packed: &[u8]) -> Result<Vec<u8>, InflateError> {
        let mut block = Vec::with_capacity(512);
        loop {
            if block.len() == block.capacity() {
                if block.len() >= MOST {
                    return Err(InflateError::Bomb);
                }
                block.reserve_exact(block.len().min(MOST - block.len()));
            }
            let (before_in, before_out) = (self.0.total_in(), self.0.total_out());
            let status = match self.0.decompress_vec(packed, &mut block, FlushDecompress::Sync) {
                Ok(status) => Some(status),
                Err(error) => match error.needs_dictionary() {
                    Some(dictionary::ADLER32) => {
                        self.0
                            .set_dictionary(&dictionary::dictionary())
                            .map_err(|_| InflateError::Corrupt)?;
                        None
                    }
                    Some(other) => return Err(InflateError::Dictionary(other)),
                    None => return Err(InflateError::Corrupt),
                },
            };
            let taken = usize::try_from(self.0.total_in() - before_in).unwrap_or(usize::MAX);
            packed = packed.get(taken..).ok_or(InflateError::Corrupt)?;
            let moved = taken > 0 || self.0.total_out() > before_out;
            match status {
                // A connection's headers are one zlib stream, which ends with the connection.
                Some(Status::StreamEnd) => return Err(InflateError::Corrupt),
                // With room left, all that was packed is out.
                Some(_) if packed.is_empty() && block.len() < block.capacity() => return Ok(block),
                Some(_) if !moved && block.len() < block.capacity() => return Err(InflateError::Corrupt),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use flate2::{Compress, Compression, FlushCompress};

    use super::*;

    fn deflate(context: &mut Compress, plain: &[u8]) -> Vec<u8> {
        let mut packed = Vec::with_capacity(plain.len() + 100);
        context.compress_vec(plain, &mut packed, FlushCompress::Sync).unwrap();
        packed
    }

    fn context() -> Compress {
        let mut context = Compress::new(Compression::best(), true);
        context.set_dictionary(&dictionary::dictionary()).unwrap();
        context
    }

    #[test]
    fn blocks_share_a_context() {
        let (mut ours, mut theirs) = (Inflater::new(), context());
        let mut lengths = Vec::new();
        for plain in [&b"content-length of something that is said twice"[..]; 3] {
            let packed = deflate(&mut theirs, plain);
            assert_eq!(ours.inflate(&packed).unwrap(), plain);
            lengths.push(packed.len());
        }
        assert!(lengths[1] < lengths[0]);
    }

    #[test]
    fn a_block_has_a_limit_whatever_it_is_packed_into() {
        let (mut ours, mut theirs) = (Inflater::new(), context());
        let most = deflate(&mut theirs, &vec![0; MOST - 1]);
        assert_eq!(ours.inflate(&most).map(|block| block.len()), Ok(MOST - 1));
        let bomb = deflate(&mut theirs, &vec![0; 16 << 20]);
        assert_eq!(ours.inflate(&bomb), Err(InflateError::Bomb));
    }

    #[test]
    fn another_dictionary_is_refused() {
        let mut other = Compress::new(Compression::best(), true);
        let named = other.set_dictionary(b"another").unwrap();
        let packed = deflate(&mut other, b"headers");
        assert_eq!(Inflater::new().inflate(&packed), Err(InflateError::Dictionary(named)));
    }

    #[test]
    fn what_is_not_zlib_is_refused() {
        for packed in [&b"headers"[..], &[0xff; 64], &[0x78, 0xbb, 0xe3, 0xc6, 0xa7, 0xc2, 0xff, 0xff, 0xff]]
        {
            assert_eq!(Inflater::new().inflate(packed), Err(InflateError::Corrupt), "{packed:x?}");
        }
        let mut ended = Vec::with_capacity(100);
        context().compress_vec(b"headers", &mut ended, FlushCompress::Finish).unwrap();
        assert_eq!(Inflater::new().inflate(&ended), Err(InflateError::Corrupt));
    }
}
