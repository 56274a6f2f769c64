//! Real pods and containers, made by this library as root.
//!
//! Each test is a scenario that runs in a process of its own (`--scenario NAME`), which becomes the agent of a pod. Its
//! containers run busybox (package busybox-static), or this program again (`--inside NAME`), with the host's libraries
//! mounted, where a shell cannot do what is needed.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod attack;
mod basics;
mod execs;
mod identity;
mod images;
mod kit;
mod mounts;
mod namespaces;
mod refusals;
mod terminals;
mod users;

use std::process::{Command, ExitCode};

use libtest_mimic::{Arguments, Failed, Trial};

type Scenario = fn();

/// Scenarios whose names end so see an old kernel.
const OLD_KERNEL: &str = "_on_an_old_kernel";

fn scenarios() -> Vec<(&'static str, Scenario)> {
    [
        basics::SCENARIOS,
        execs::SCENARIOS,
        identity::SCENARIOS,
        images::SCENARIOS,
        mounts::SCENARIOS,
        namespaces::SCENARIOS,
        refusals::SCENARIOS,
        terminals::SCENARIOS,
        users::SCENARIOS,
        attack::SCENARIOS,
    ]
    .concat()
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().collect();
    match args.get(1).map(String::as_str) {
        Some("--scenario") => {
            let name = args.get(2).expect("a scenario's name");
            let (_, run) = *scenarios().iter().find(|(known, _)| known == name).expect("a known scenario");
            run();
            return ExitCode::SUCCESS;
        }
        Some("--inside") => return attack::inside(args.get(2).map_or("", String::as_str)),
        _ => {}
    }
    let arguments = Arguments::from_args();
    let trials =
        scenarios().into_iter().map(|(name, _)| Trial::test(name, move || run_alone(name))).collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

fn run_alone(name: &str) -> Result<(), Failed> {
    if !rustix::process::geteuid().is_root() {
        return Err("needs root".into());
    }
    let home = tempfile::tempdir()?;
    let exe = std::env::current_exe()?;
    let mut command = if name.ends_with(OLD_KERNEL) {
        // Makes uname(2) tell 2.6, so that what needs a newer kernel is not tried.
        let mut command = Command::new("setarch");
        command.arg("--uname-2.6").arg(exe);
        command
    } else {
        Command::new(exe)
    };
    let output = command.args(["--scenario", name]).env(kit::HOME, home.path()).output()?;
    let clean = kit::clean_up(home.path());
    if output.status.success() {
        return Ok(clean?);
    }
    let said = [output.stdout, output.stderr].concat();
    Err(format!("{}\n{}", output.status, String::from_utf8_lossy(&said)).into())
}
