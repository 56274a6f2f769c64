//! The daemon `hartpod`: the Container Runtime Interface of one node.
//!
//! It answers the kubelet (and crictl) over a unix socket, keeps images, networks and records, and starts one pod agent
//! (`hartpod-pod`) per pod, which makes and watches the containers. It never makes a container itself.
//!
//! The binary is one call of the command line: [`cli::main`].

#![forbid(unsafe_code)]

pub mod cli;
pub mod commands;
pub mod config;
mod logging;
mod open_files;
pub mod serve;
pub mod spec;
pub mod validate;
