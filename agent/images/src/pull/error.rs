//! What can go wrong with a pull.

use std::fmt;
use std::sync::Arc;

use super::invalid::InvalidImage;
use crate::file_error::FileError;
use crate::registry::SettingsError;

/// Why a pull failed. It is `Clone` because pulls of the same image at the same time are one, and all their callers are told.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PullError {
    /// No such repository, tag or digest.
    #[error("pull {reference}: not found: {tried}")]
    NotFound {
        /// The image.
        reference: String,
        /// What each host said.
        tried: Attempts,
    },
    /// The registry wants (other) credentials.
    #[error("pull {reference}: access denied: {tried}")]
    Unauthorized {
        /// The image.
        reference: String,
        /// What each host said.
        tried: Attempts,
    },
    /// The registry is down, too slow, or answers with errors. Worth another try later.
    #[error("pull {reference}: registry not available: {tried}")]
    Unavailable {
        /// The image.
        reference: String,
        /// What each host said.
        tried: Attempts,
    },
    /// What came is not what its digest promises, or is hostile, or breaks a limit. Another try will not help.
    #[error("pull {reference}: invalid image")]
    Invalid {
        /// The image.
        reference: String,
        /// What is wrong with it.
        #[source]
        source: Arc<InvalidImage>,
    },
    /// The image has nothing for this machine.
    #[error("pull {reference}: no image for {wanted}, only for: {}", offered.join(", "))]
    NoPlatform {
        /// The image.
        reference: String,
        /// This machine's platform.
        wanted: String,
        /// The platforms that the image has.
        offered: Vec<String>,
    },
    /// The registry's hosts.toml, or a certificate that it names, cannot be used.
    #[error("pull {reference}: registry settings")]
    Settings {
        /// The image.
        reference: String,
        /// What is wrong with them.
        #[source]
        source: Arc<SettingsError>,
    },
    /// The store's disk failed or is full.
    #[error("pull {reference}: image store")]
    Io {
        /// The image.
        reference: String,
        /// What was tried.
        #[source]
        source: Arc<FileError>,
    },
    /// Everybody who asked for the image has gone.
    #[error("pull {reference}: cancelled")]
    Cancelled {
        /// The image.
        reference: String,
    },
}

/// What the hosts said that were tried, in order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Attempts(pub Vec<Attempt>);

/// One host and what it said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attempt {
    /// Scheme and host: `https://registry-1.docker.io`.
    pub host: String,
    /// In words.
    pub said: String,
}

impl fmt::Display for Attempts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, Attempt { host, said }) in self.0.iter().enumerate() {
            let separator = if n == 0 { "" } else { "; " };
            write!(f, "{separator}{host}: {said}")?;
        }
        Ok(())
    }
}
