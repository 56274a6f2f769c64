//! What pods and containers use.
//!
//! Read from the kernel when somebody asks, from files that are kept open; a guest is asked for what its containers use, and has a second to answer. Every ten
//! seconds CPU times are noted besides, so that a rate has a sane window however often somebody asks.

mod book;
mod collect;
mod guest;
mod keep;
mod layers;
mod overhead;
mod pass;
mod pods;
mod window;
mod writable;

pub(crate) use book::{Book, Reading};
pub(crate) use collect::{ContainerReading, Target, containers};
pub(crate) use keep::keep;
pub(crate) use layers::keep as keep_layers;
pub(crate) use pods::{PodReading, ReadError, pods};
pub(crate) use writable::DiskUse;
