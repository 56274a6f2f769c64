//! The device against a guest that the tests play, over real queues and sockets.

// Sizes in tests are small.
#![allow(clippy::cast_possible_truncation)]

mod closing;
mod dialing;
mod guest;
mod handshake;
mod hostile;
mod transfer;
