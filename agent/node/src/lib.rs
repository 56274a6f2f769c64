//! The daemon `hartpod`: the Container Runtime Interface of one node.
//!
//! It answers the kubelet (and crictl) over a unix socket, keeps images, networks and records, and starts one pod agent
//! (`hartpod-pod`) per pod, which makes and watches the containers. It never makes a container itself.
//!
//! The binary is one call of the command line: [`cli::main`].

pub mod cli;
pub mod commands;
pub mod config;
mod logging;
mod open_files;
mod selinux;
pub mod serve;
pub mod spec;
pub mod validate;

mod agent_client;
mod agent_process;
mod apparmor;
mod backend;
mod cdi;
mod clock;
mod container;
mod epoch;
mod events;
mod filter;
mod guest;
mod image_use;
mod laps;
mod metrics;
mod names;
mod network_check;
mod network_gc;
mod node;
mod pod;
mod poststop;
mod pulls;
mod random;
mod records;
mod recovery;
mod registry;
mod scratch;
mod server;
mod stats;
mod status_code;
mod streaming;
mod sweep;
mod sys;
mod systemd;
mod trace;
mod trash;

/// An error with its causes, on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
