//! What the node offers to containers, looked up once.

/// Facts of the node and choices of its administrator that decide specs.
#[derive(Debug, Clone, Default)]
#[non_exhaustive]
pub struct SpecSettings {}

impl SpecSettings {
    /// Looks at the running system.
    pub fn detect() -> Self {
        Self::default()
    }
}
