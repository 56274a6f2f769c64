//! WebSocket (RFC 6455), the server's side, and the channels that Kubernetes puts into it.
//!
//! Of our own, since a session must neither hold whole messages (clients send tars of any size as one) nor copy what it sends: this
//! decoder gives out a message's payload as it comes, unmasked in place, and a header goes in front of a frame that is there already.
//! No extension is negotiated. A message of channels is one byte that names the channel and bytes for it; with base64 both are text.

mod channels;
mod decoder;
mod frame;

pub(crate) use channels::{Channel, Channels, Codec};
pub(crate) use decoder::{Decoder, Event, Violation};
pub(crate) use frame::{Opcode, header};

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use ring::digest;

/// Why a connection is closed (RFC 6455, section 7.4.1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub(crate) enum CloseCode {
    /// What there was to do is done. Go's clients take any other code for an error.
    Normal = 1000,
    GoingAway = 1001,
    ProtocolError = 1002,
    BadPayload = 1007,
}

/// The answer to a `Sec-WebSocket-Key`, unless that is none.
pub(crate) fn accept(key: &[u8]) -> Option<String> {
    /// RFC 6455, section 1.3.
    const GUID: &[u8] = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11";
    if BASE64_STANDARD.decode(key).ok()?.len() != 16 {
        return None;
    }
    let mut hash = digest::Context::new(&digest::SHA1_FOR_LEGACY_USE_ONLY);
    hash.update(key);
    hash.update(GUID);
    Some(BASE64_STANDARD.encode(hash.finish()))
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_key_is_answered_as_in_the_rfc() {
        let answer = super::accept(b"dGhlIHNhbXBsZSBub25jZQ==");
        assert_eq!(answer.as_deref(), Some("s3pPLMBiTxaQ9kYGzzhZRbK+xOo="));
        assert_eq!(super::accept(b"c2hvcnQ="), None);
        assert_eq!(super::accept(b"not base64"), None);
    }
}
