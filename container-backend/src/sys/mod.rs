//! The kernel calls that no safe wrapper offers, one noun per file. Everything above this module is safe Rust.

pub(crate) mod clone;
pub(crate) mod inherited;
pub(crate) mod process;
pub(crate) mod spawn;
