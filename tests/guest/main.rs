//! Guests for real: hartpod-vmm, its launcher and what runs inside, on a riscv64 machine with KVM. `make lab` has three of them.
//!
//! The kit is that of the end-to-end tests: each test has namespaces of its own, and fails if anything is left.

#![forbid(unsafe_code)]

mod agent;
mod boot;
mod bulk;
mod container;
mod disk;
mod guest;
mod guest_image;
mod initramfs;
mod logs;
mod network;
mod pod;

use std::process::ExitCode;

fn main() -> ExitCode {
    hartpod_tests::runner::main(
        [
            agent::TESTS,
            boot::TESTS,
            bulk::TESTS,
            container::TESTS,
            guest_image::TESTS,
            logs::TESTS,
            network::TESTS,
        ]
        .concat(),
    )
}
