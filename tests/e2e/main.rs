//! End-to-end tests of hartpod over its real socket. Run them with `make test`, or some with
//! `cargo nextest run -p hartpod-tests lifecycle::` (as root, after `make build attacker`).

#![forbid(unsafe_code)]

mod attack;
mod bad_images;
mod commands;
mod exec;
mod faults;
mod filters;
mod guests;
mod images;
mod lifecycle;
mod limits;
mod logs;
mod long;
mod mounts;
mod namespaces;
mod network;
mod node_status;
mod refused;
mod repeat;
mod restart;
mod run_tty;
mod security;
mod streaming;
mod streaming_attach;
mod streaming_commands;
mod streaming_ports;
mod streaming_tls;

use std::process::ExitCode;

fn main() -> ExitCode {
    let modules = [
        attack::TESTS,
        bad_images::TESTS,
        commands::TESTS,
        exec::TESTS,
        faults::TESTS,
        filters::TESTS,
        guests::TESTS,
        images::TESTS,
        lifecycle::TESTS,
        limits::TESTS,
        logs::TESTS,
        long::TESTS,
        mounts::TESTS,
        namespaces::TESTS,
        network::TESTS,
        node_status::TESTS,
        refused::TESTS,
        repeat::TESTS,
        restart::TESTS,
        run_tty::TESTS,
        security::TESTS,
        streaming::TESTS,
        streaming_attach::TESTS,
        streaming_commands::TESTS,
        streaming_ports::TESTS,
        streaming_tls::TESTS,
    ];
    hartpod_tests::runner::main(modules.concat())
}
