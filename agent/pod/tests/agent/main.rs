//! The real `hartpod-pod`, started and driven as the daemon does it. Needs root, busybox and cgroups.
// Everything here is a test, helpers included.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod attach;
mod containers;
mod execs;
mod kit;
mod ports;
mod process;
mod stats;
mod terminals;
mod trouble;
