//! From a reference to an image on disk.

pub(crate) mod error;
