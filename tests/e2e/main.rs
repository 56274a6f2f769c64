//! End-to-end tests of hartpod over its real socket. Run them with `make test`, or one with
//! `cargo nextest run -p hartpod-tests lifecycle::` (as root, after `make build attacker`).

#![forbid(unsafe_code)]

mod lifecycle;

use std::process::ExitCode;

fn main() -> ExitCode {
    let modules = [lifecycle::TESTS];
    hartpod_tests::runner::main(modules.concat())
}
