//! Names of logs and their streams: lower-case hexadecimal digits, as in pod/v1.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// `N` lower-case hexadecimal digits. Not printed by Debug, for a token opens a stream.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digits<const N: usize>(Box<str>);

/// Names a log: the container's id.
pub type LogId = Digits<64>;
/// Opens a stream of the agent's, once.
pub type LogToken = Digits<32>;

/// Why a text names no log or stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not {0} lower-case hexadecimal digits")]
pub struct NotDigits(usize);

impl<const N: usize> Digits<N> {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<const N: usize> FromStr for Digits<N> {
    type Err = NotDigits;

    fn from_str(text: &str) -> Result<Self, NotDigits> {
        let valid = text.len() == N && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if valid { Ok(Self(text.into())) } else { Err(NotDigits(N)) }
    }
}

impl<const N: usize> TryFrom<String> for Digits<N> {
    type Error = NotDigits;

    fn try_from(text: String) -> Result<Self, NotDigits> {
        text.parse()
    }
}

impl<const N: usize> From<Digits<N>> for String {
    fn from(digits: Digits<N>) -> Self {
        digits.0.into()
    }
}

impl<const N: usize> fmt::Debug for Digits<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Digits(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_so_many_lower_case_digits_are_a_name() {
        let id = "0af9".repeat(16);
        assert_eq!(id.parse::<LogId>().unwrap().as_str(), id);
        for text in ["", &id[1..], &format!("{id}0"), &id.to_uppercase(), &id.replace('f', "/")] {
            assert_eq!(text.parse::<LogId>(), Err(NotDigits(64)), "{text}");
        }
        assert!(id.parse::<LogToken>().is_err() && id[..32].parse::<LogToken>().is_ok());
    }
}
