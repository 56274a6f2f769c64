//! Why there is no spec.

/// A container that cannot be made as asked; becomes InvalidArgument.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// Right as a request, but nothing that this runtime or node can do.
    #[error("{field} cannot be honoured: {why}")]
    Unsupported { field: &'static str, why: &'static str },
}
