//! One-time tokens, and the streams that wait for them.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::net::UnixStream;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::CONNECT_WAIT;
use super::connection::Connection;

/// Digits of a token.
pub(crate) const TOKEN_LEN: usize = 32;

/// A token: 32 lower-case hexadecimal digits. Not printed, for it opens a stream.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Token([u8; TOKEN_LEN]);

/// Why a text is no token, or no usable one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum InvalidToken {
    #[error("a stream token is {TOKEN_LEN} lower-case hexadecimal digits")]
    Format,
    #[error("the stream token is in use")]
    Taken,
}

impl TryFrom<[u8; TOKEN_LEN]> for Token {
    type Error = InvalidToken;

    fn try_from(digits: [u8; TOKEN_LEN]) -> Result<Self, InvalidToken> {
        let valid = digits.iter().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f'));
        if valid { Ok(Self(digits)) } else { Err(InvalidToken::Format) }
    }
}

impl FromStr for Token {
    type Err = InvalidToken;

    fn from_str(text: &str) -> Result<Self, InvalidToken> {
        let digits: [u8; TOKEN_LEN] = text.as_bytes().try_into().map_err(|_| InvalidToken::Format)?;
        Self::try_from(digits)
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(..)")
    }
}

type Waiting = BTreeMap<Token, oneshot::Sender<UnixStream>>;

/// The tokens that are waited for. Clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tokens {
    /// Guards the map alone, for one look-up at a time.
    waiting: Arc<Mutex<Waiting>>,
}

impl Tokens {
    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes `token` good for one connection, until the returned value is dropped.
    pub(crate) fn expect(&self, token: Token) -> Result<Expected, InvalidToken> {
        let mut waiting = self.waiting();
        if waiting.contains_key(&token) {
            return Err(InvalidToken::Taken);
        }
        let (sender, connection) = oneshot::channel();
        waiting.insert(token, sender);
        Ok(Expected { tokens: self.clone(), token, connection })
    }

    /// Hands `connection` to whoever expects `token`; false when nobody does.
    pub(crate) fn present(&self, token: Token, connection: UnixStream) -> bool {
        let sender = self.waiting().remove(&token);
        sender.is_some_and(|sender| sender.send(connection).is_ok())
    }
}

/// A stream that waits for its connection.
#[derive(Debug)]
pub(crate) struct Expected {
    tokens: Tokens,
    token: Token,
    connection: oneshot::Receiver<UnixStream>,
}

impl Expected {
    /// The connection, or nothing when none came in time.
    pub(crate) async fn connected(mut self) -> Option<Connection> {
        timeout(CONNECT_WAIT, &mut self.connection).await.ok()?.ok().map(Connection::new)
    }
}

impl Drop for Expected {
    fn drop(&mut self) {
        self.tokens.waiting().remove(&self.token);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "00112233445566778899aabbccddeeff";

    #[test]
    fn only_32_lower_case_hex_digits_are_a_token() {
        assert!(TEXT.parse::<Token>().is_ok());
        for text in ["", &TEXT[1..], &TEXT.to_uppercase(), &format!("{TEXT}0"), &TEXT.replace('f', "g")] {
            assert_eq!(text.parse::<Token>().unwrap_err(), InvalidToken::Format, "{text}");
        }
    }

    #[test]
    fn a_token_does_not_print() {
        assert_eq!(format!("{:?}", TEXT.parse::<Token>().unwrap()), "Token(..)");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_token_opens_one_stream_once() {
        let tokens = Tokens::default();
        let token: Token = TEXT.parse().unwrap();
        let expected = tokens.expect(token).unwrap();
        assert_eq!(tokens.expect(token).unwrap_err(), InvalidToken::Taken);
        let (first, _end) = UnixStream::pair().unwrap();
        let (second, _end) = UnixStream::pair().unwrap();
        assert!(tokens.present(token, first));
        assert!(!tokens.present(token, second));
        assert!(expected.connected().await.is_some());
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_token_is_worth_nothing_once_its_stream_is_gone() {
        let tokens = Tokens::default();
        let token: Token = TEXT.parse().unwrap();
        drop(tokens.expect(token).unwrap());
        let (connection, _end) = UnixStream::pair().unwrap();
        assert!(!tokens.present(token, connection));
        assert!(tokens.expect(token).is_ok());
    }

    #[tokio::test(flavor = "current_thread", start_paused = true)]
    async fn nobody_is_waited_for_longer_than_the_limit() {
        let expected = Tokens::default().expect(TEXT.parse().unwrap()).unwrap();
        assert!(expected.connected().await.is_none());
    }
}
