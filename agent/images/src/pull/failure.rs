//! Errors inside of a pull, before they are told which image it was.

use std::sync::Arc;

use super::error::PullError;
use super::invalid::InvalidImage;
use crate::file_error::FileError;
use crate::layer::LayerError;
use crate::reference::Reference;
use crate::registry::{Class, Refusals, SettingsError};

/// Why a step of a pull failed.
#[derive(Debug)]
pub(crate) enum Failure {
    Refused(Refusals),
    Invalid(InvalidImage),
    NoPlatform { wanted: String, offered: Vec<String> },
    Settings(SettingsError),
    File(FileError),
    Cancelled,
}

impl From<InvalidImage> for Failure {
    fn from(error: InvalidImage) -> Failure {
        Failure::Invalid(error)
    }
}

impl From<Refusals> for Failure {
    fn from(refusals: Refusals) -> Failure {
        Failure::Refused(refusals)
    }
}

impl From<FileError> for Failure {
    fn from(error: FileError) -> Failure {
        Failure::File(error)
    }
}

impl From<LayerError> for Failure {
    fn from(error: LayerError) -> Failure {
        match error {
            LayerError::File { source, .. } => Failure::File(source),
            other => Failure::Invalid(InvalidImage::Layer(other)),
        }
    }
}

impl Failure {
    /// Another try may go better: what is on disk already is worth keeping for a while.
    pub(crate) fn is_passing(&self) -> bool {
        match self {
            Failure::Refused(refusals) => refusals.class() != Class::Wrong,
            Failure::Cancelled => true,
            Failure::Invalid(_) | Failure::NoPlatform { .. } | Failure::Settings(_) | Failure::File(_) => {
                false
            }
        }
    }

    pub(crate) fn of(self, reference: &Reference) -> PullError {
        let reference = reference.to_string();
        match self {
            Failure::Refused(refusals) => {
                let class = refusals.class();
                let tried = refusals.into_attempts();
                match class {
                    Class::NotFound => PullError::NotFound { reference, tried },
                    Class::Unauthorized => PullError::Unauthorized { reference, tried },
                    Class::Unavailable => PullError::Unavailable { reference, tried },
                    Class::Wrong => {
                        PullError::Invalid { reference, source: Arc::new(InvalidImage::Wrong { tried }) }
                    }
                }
            }
            Failure::Invalid(source) => PullError::Invalid { reference, source: Arc::new(source) },
            Failure::NoPlatform { wanted, offered } => PullError::NoPlatform { reference, wanted, offered },
            Failure::Settings(source) => PullError::Settings { reference, source: Arc::new(source) },
            Failure::File(source) => PullError::Io { reference, source: Arc::new(source) },
            Failure::Cancelled => PullError::Cancelled { reference },
        }
    }
}
