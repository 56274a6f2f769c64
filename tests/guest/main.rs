//! Guests for real: hartpod-vmm, its launcher and what runs inside, on a riscv64 machine with KVM. `make lab` has three of them.
//!
//! The kit is that of the end-to-end tests: each test has namespaces of its own, and fails if anything is left.

mod agent;
mod boot;
mod bulk;
mod container;
mod disk;
mod guest;
mod guest_image;
mod initramfs;
mod jail;
mod jailbreak;
mod logs;
mod network;
mod pod;

use std::process::ExitCode;

fn main() -> ExitCode {
    if let Some(code) = jailbreak::role() {
        return code;
    }
    hartpod_tests::runner::main(
        [
            agent::TESTS,
            boot::TESTS,
            bulk::TESTS,
            container::TESTS,
            guest_image::TESTS,
            jail::TESTS,
            logs::TESTS,
            network::TESTS,
        ]
        .concat(),
    )
}
