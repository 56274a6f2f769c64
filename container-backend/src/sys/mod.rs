//! The kernel calls that no safe wrapper offers, one noun per file. Everything above this module is safe Rust.

pub(crate) mod arena;
pub(crate) mod clone;
pub(crate) mod exec;
pub(crate) mod idle_child;
pub(crate) mod inherited;
pub(crate) mod keyring;
pub(crate) mod mailbox;
pub(crate) mod mount_attr;
pub(crate) mod owner;
pub(crate) mod process;
pub(crate) mod raw;
pub(crate) mod scrub;
pub(crate) mod spawn;
