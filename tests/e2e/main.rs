//! End-to-end tests of hartpod over its real socket. Run them with `make test`, or some with
//! `cargo nextest run -p hartpod-tests lifecycle::` (as root, after `make build attacker`).

#![forbid(unsafe_code)]

mod apparmor;
mod attack;
mod bad_images;
mod cdi;
mod cgroup_life;
mod cni;
mod commands;
mod endings;
mod events;
mod exec;
mod faults;
mod filters;
mod guest_metrics;
mod guests;
mod hooks;
mod image_volumes;
mod images;
mod ipv6;
mod lifecycle;
mod limits;
mod logs;
mod long;
mod metrics;
mod mounts;
mod namespaces;
mod network;
mod node_status;
mod otel;
mod pod_cidr;
mod refused;
mod repeat;
mod resize;
mod restart;
mod run_tty;
mod security;
mod stats;
mod streaming;
mod streaming_attach;
mod streaming_commands;
mod streaming_ports;
mod streaming_tls;
mod systemd;
mod told;
mod userns;
mod volumes;

use std::process::ExitCode;

fn main() -> ExitCode {
    let modules = [
        apparmor::TESTS,
        attack::TESTS,
        bad_images::TESTS,
        cni::TESTS,
        cgroup_life::TESTS,
        cdi::TESTS,
        commands::TESTS,
        endings::TESTS,
        events::TESTS,
        exec::TESTS,
        faults::TESTS,
        filters::TESTS,
        guest_metrics::TESTS,
        guests::TESTS,
        hooks::TESTS,
        image_volumes::TESTS,
        images::TESTS,
        ipv6::TESTS,
        lifecycle::TESTS,
        limits::TESTS,
        logs::TESTS,
        long::TESTS,
        metrics::TESTS,
        mounts::TESTS,
        namespaces::TESTS,
        network::TESTS,
        node_status::TESTS,
        otel::TESTS,
        pod_cidr::TESTS,
        refused::TESTS,
        repeat::TESTS,
        resize::TESTS,
        restart::TESTS,
        run_tty::TESTS,
        security::TESTS,
        stats::TESTS,
        streaming::TESTS,
        streaming_attach::TESTS,
        streaming_commands::TESTS,
        streaming_ports::TESTS,
        streaming_tls::TESTS,
        told::TESTS,
        userns::TESTS,
        systemd::TESTS,
        volumes::TESTS,
    ];
    hartpod_tests::runner::main(modules.concat())
}
