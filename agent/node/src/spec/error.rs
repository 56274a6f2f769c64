//! Why there is no spec.

use std::io;
use std::path::PathBuf;

use crate::apparmor::AppArmorError;
use crate::cdi::CdiError;

/// A container that cannot be made as asked; becomes InvalidArgument.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// The request or the image contradicts itself or the rules.
    #[error("{field}: {problem}")]
    Invalid { field: String, problem: String },
    /// Right as a request, but nothing that this runtime or node can do.
    #[error("{field} cannot be honoured: {why}")]
    Unsupported { field: String, why: String },
    #[error("read seccomp profile {}", path.display())]
    ReadProfile { path: PathBuf, source: io::Error },
    #[error("{} is not a seccomp profile", path.display())]
    ParseProfile { path: PathBuf, source: serde_json::Error },
    #[error(transparent)]
    Cdi(#[from] CdiError),
    #[error(transparent)]
    AppArmor(#[from] AppArmorError),
    #[error("look at device {}", path.display())]
    Device { path: PathBuf, source: io::Error },
}

impl SpecError {
    pub(super) fn invalid(field: impl Into<String>, problem: impl Into<String>) -> Self {
        Self::Invalid { field: field.into(), problem: problem.into() }
    }

    pub(super) fn unsupported(field: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Unsupported { field: field.into(), why: why.into() }
    }
}
