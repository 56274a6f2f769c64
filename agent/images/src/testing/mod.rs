//! What tests of several modules need: archives, images, and a registry that misbehaves on demand.

pub(crate) mod archive;
pub(crate) mod image;
pub(crate) mod registry;
