//! `hartpod-vmm`: one guest. It is started by hartpod with a socket as its standard input, on which the boot message comes: see
//! `hartpod_vm::boot`. Called `hartpod-fs` it is the guest's file server: see `hartpod_vm::share`.

use std::os::fd::AsFd as _;
use std::process::ExitCode;

use hartpod_vm::boot;
use hartpod_vm::share::process;

const HELP: &str = "\
hartpod-vmm runs one guest. It is started by hartpod, which hands it everything that it uses over a socket; there is nothing to call by
hand. `hartpod check` says whether this machine can run guests.";

fn main() -> ExitCode {
    let mut arguments = std::env::args_os();
    let name = arguments.next();
    if arguments.next().is_some() {
        println!("{HELP}");
        return ExitCode::SUCCESS;
    }
    match name.is_some_and(|name| name == process::NAME) {
        true => serve_files(),
        false => run(),
    }
}

fn serve_files() -> ExitCode {
    if let Err(error) = boot::leave_parent() {
        eprintln!("hartpod-fs: close inherited descriptors: {error}");
        return ExitCode::FAILURE;
    }
    match process::run(std::io::stdin().as_fd()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hartpod-fs: {}", hartpod_vm::control::chain(&error));
            ExitCode::FAILURE
        }
    }
}

#[cfg(not(target_arch = "riscv64"))]
fn run() -> ExitCode {
    eprintln!("hartpod-vmm: guests run on riscv64 only, by its H extension");
    ExitCode::FAILURE
}

#[cfg(target_arch = "riscv64")]
fn run() -> ExitCode {
    use hartpod_vm::boot::{Guest, Refused};
    use hartpod_vm::machine;
    use hartpod_vm::status::{Event, Exit, ExitReason, StatusWriter};

    if let Err(error) = boot::leave_parent() {
        eprintln!("hartpod-vmm: close inherited descriptors: {error}");
        return ExitCode::FAILURE;
    }
    match Guest::receive(std::io::stdin().as_fd()) {
        Ok(guest) => match machine::run(guest) {
            ExitReason::PowerOff | ExitReason::Reset | ExitReason::Panic => ExitCode::SUCCESS,
            ExitReason::KvmFailure | ExitReason::SetUpFailure | ExitReason::Killed => ExitCode::FAILURE,
        },
        Err(Refused { error, status }) => {
            let text = hartpod_vm::control::chain(&error);
            eprintln!("hartpod-vmm: {text}");
            if let Some(status) = status {
                StatusWriter::new(status).write(&Event::Exited(Exit::new(ExitReason::SetUpFailure, &text)));
            }
            ExitCode::FAILURE
        }
    }
}
