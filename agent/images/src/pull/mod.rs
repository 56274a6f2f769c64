//! From a reference to an image on disk.

pub(crate) mod error;
pub(crate) mod failure;
pub(crate) mod invalid;
mod layers;
mod layout;
mod manifest;
mod platform;
mod source;
mod steps;

pub(crate) use layout::Layout;
pub(crate) use source::{Source, blocking, unique};
pub(crate) use steps::{Pulled, pull};
