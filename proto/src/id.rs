//! Identifiers of pods and containers: 64 lower-case hexadecimal digits, as tools built for containerd expect.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Digits in an identifier.
pub const ID_LEN: usize = 64;

/// Why a text is not an identifier.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
#[error("`{text}` is not {ID_LEN} lower-case hexadecimal digits")]
pub struct InvalidId {
    text: String,
}

fn check(text: &str) -> Result<(), InvalidId> {
    let valid = text.len() == ID_LEN && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
    if valid { Ok(()) } else { Err(InvalidId { text: text.chars().take(ID_LEN + 1).collect() }) }
}

macro_rules! id_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(Box<str>);

        impl $name {
            /// The identifier made of 32 random bytes.
            #[must_use]
            pub fn from_bytes(bytes: [u8; ID_LEN / 2]) -> Self {
                use fmt::Write as _;
                let mut text = String::with_capacity(ID_LEN);
                for byte in bytes {
                    // Writing to a String cannot fail.
                    let _ = write!(text, "{byte:02x}");
                }
                Self(text.into())
            }

            /// The 64 digits.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $name {
            type Err = InvalidId;

            fn from_str(text: &str) -> Result<Self, InvalidId> {
                check(text)?;
                Ok(Self(text.into()))
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;

            fn try_from(text: String) -> Result<Self, InvalidId> {
                check(&text)?;
                Ok(Self(text.into()))
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0.into()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

id_type! {
    /// Identifier of a pod sandbox.
    SandboxId
}

id_type! {
    /// Identifier of a container.
    ContainerId
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_64_lower_case_hexadecimal_digits_are_an_id() {
        let good = "0123456789abcdef".repeat(4);
        assert_eq!(good.parse::<SandboxId>().unwrap().as_str(), good);
        for bad in ["", "abc", &good.to_uppercase(), &format!("{good}0"), &"../".repeat(22)[..64]] {
            assert!(bad.parse::<ContainerId>().is_err(), "{bad}");
        }
    }

    #[test]
    fn bytes_become_two_digits_each() {
        assert_eq!(SandboxId::from_bytes([0x0f; 32]).as_str(), "0f".repeat(32));
    }
}
