//! Blocks of names and values.

/// Headers of one frame. Kubernetes sends three.
const MOST: u32 = 64;

/// Why a block is no headers. Its stream is refused, and the connection goes on: it was unpacked whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum HeaderError {
    #[error("{0} headers")]
    Many(u32),
    #[error("a header is cut off, or something follows the last")]
    Length,
    #[error("a header without a name")]
    NoName,
    #[error("a header that comes twice")]
    Twice,
    #[error("a header that is not UTF-8")]
    NotText,
}

/// What a stream is for. Names are compared without case: Go's client sends some in lower case and means `requestID`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Headers(Vec<(String, String)>);

impl Headers {
    pub(crate) fn parse(mut block: &[u8]) -> Result<Self, HeaderError> {
        let count = take_u32(&mut block)?;
        if count > MOST {
            return Err(HeaderError::Many(count));
        }
        let mut headers = Self::default();
        for _ in 0..count {
            let (name, value) = (take_text(&mut block)?, take_text(&mut block)?);
            if name.is_empty() {
                return Err(HeaderError::NoName);
            }
            if headers.get(name).is_some() {
                return Err(HeaderError::Twice);
            }
            headers.0.push((name.to_owned(), value.to_owned()));
        }
        if block.is_empty() { Ok(headers) } else { Err(HeaderError::Length) }
    }

    #[cfg(test)]
    pub(crate) fn of(headers: &[(&str, &str)]) -> Self {
        Self(headers.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect())
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        let found = self.0.iter().find(|(known, _)| known.eq_ignore_ascii_case(name));
        found.map(|(_, value)| value.as_str())
    }
}

fn take_u32(block: &mut &[u8]) -> Result<u32, HeaderError> {
    let (number, rest) = block.split_first_chunk().ok_or(HeaderError::Length)?;
    *block = rest;
    Ok(u32::from_be_bytes(*number))
}

fn take_text<'a>(block: &mut &'a [u8]) -> Result<&'a str, HeaderError> {
    let length = usize::try_from(take_u32(block)?).map_err(|_| HeaderError::Length)?;
    let (text, rest) = block.split_at_checked(length).ok_or(HeaderError::Length)?;
    *block = rest;
    std::str::from_utf8(text).map_err(|_| HeaderError::NotText)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(count: u32, texts: &[&[u8]]) -> Vec<u8> {
        let mut block = count.to_be_bytes().to_vec();
        for text in texts {
            block.extend_from_slice(&u32::try_from(text.len()).unwrap().to_be_bytes());
            block.extend_from_slice(text);
        }
        block
    }

    #[test]
    fn names_have_no_case() {
        let headers = Headers::parse(&block(2, &[b"streamtype", b"data", b"port", b""])).unwrap();
        assert_eq!(headers.get("streamType"), Some("data"));
        assert_eq!(headers.get("Port"), Some(""));
        assert_eq!(headers.get("requestID"), None);
    }

    #[test]
    fn bad_blocks_are_refused() {
        for (block, expected) in [
            (block(65, &[]), HeaderError::Many(65)),
            (block(u32::MAX, &[]), HeaderError::Many(u32::MAX)),
            (vec![0, 0], HeaderError::Length),
            (block(1, &[b"name"]), HeaderError::Length),
            ([block(1, &[b"name"]), vec![0xff; 4]].concat(), HeaderError::Length),
            (block(0, &[b"rest"]), HeaderError::Length),
            (block(1, &[b"", b"value"]), HeaderError::NoName),
            (block(2, &[b"name", b"1", b"Name", b"2"]), HeaderError::Twice),
            (block(1, &[b"name", b"\xff"]), HeaderError::NotText),
        ] {
            assert_eq!(Headers::parse(&block), Err(expected), "{block:x?}");
        }
    }
}
