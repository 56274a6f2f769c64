//! A VMM that was taken over: this program, in the jail of a VMM, tries one thing that a VMM has no business with.
//!
//! It is started as the launcher starts a VMM, by `jail`, and says on its standard output what came of it.

mod attacks;
mod sys;

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, ExitCode, Output, Stdio};
use std::thread::Builder;

use anyhow::{Context, Result, bail, ensure};
use hartpod_vm::jail::{Jail, Thread, confine, start_thread};
use nix::libc;
use nix::sched::{CloneFlags, unshare};

pub(crate) use attacks::{ATTACKS, Else};
use attacks::{Attack, Held};

/// The first argument of a copy of this program that is to be one.
const ROLE: &str = "jailbreak";
/// The calls of a VMM that does nothing wrong.
pub(crate) const NOTHING: &str = "nothing";
pub(crate) const PANIC: &str = "panic";
pub(crate) const ENTER_AGAIN: &str = "enter again";

/// All kinds of threads, by name.
pub(crate) const KINDS: &[(&str, Thread)] = &[
    ("set-up", Thread::SetUp),
    ("main", Thread::Main),
    ("vcpu", Thread::Vcpu),
    ("blk", Thread::Block),
    ("net", Thread::Net),
    ("balloon", Thread::Balloon),
    ("vsock", Thread::Vsock),
    ("log", Thread::Log),
];

/// Which lines of defence an attack meets.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Defence {
    /// `None`: all but seccomp.
    pub(crate) seccomp: Option<&'static str>,
    pub(crate) user: Option<u32>,
}

/// What came of an attack.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// SIGSYS: no filter lets the call pass.
    Ended,
    /// The call did what it was asked.
    Reached,
    /// It failed with this error.
    Refused(String),
}

/// A process that others must not be able to reach, and what else an attack is told of.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) victim: u32,
    pub(crate) tcp_port: u16,
    pub(crate) abstract_name: String,
    /// A descriptor of a regular file, as of a disk.
    pub(crate) file: File,
}

/// Runs one attack in a jail of its own.
pub(crate) fn attack(world: &World, name: &str, defence: Defence) -> Result<(Outcome, Output)> {
    let output = run(world, name, defence)?;
    let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    let outcome = match (output.status.signal(), said.split_once(' ')) {
        (Some(libc::SIGSYS), _) => Outcome::Ended,
        (None, Some(("reached", _))) => Outcome::Reached,
        (None, Some(("refused", errno))) => Outcome::Refused(errno.to_owned()),
        _ => bail!("{name} with {defence:?}: {output:?}"),
    };
    Ok((outcome, output))
}

/// As [`attack`], whatever it says.
pub(crate) fn run(world: &World, name: &str, defence: Defence) -> Result<Output> {
    let mut command = Command::new(std::env::current_exe().context("find this program")?);
    command
        .arg(ROLE)
        .arg(defence.seccomp.unwrap_or("-"))
        .arg(defence.user.map_or("-".to_owned(), |user| user.to_string()))
        .arg(name)
        .arg(world.victim.to_string())
        .arg(world.tcp_port.to_string())
        .arg(&world.abstract_name)
        .env_clear()
        .stdin(Stdio::from(OwnedFd::from(world.file.try_clone()?)))
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    // As the launcher does it.
    let thread = std::thread::spawn(move || -> Result<Output> {
        unshare(CloneFlags::CLONE_NEWPID).context("make a pid namespace")?;
        Ok(command.spawn()?.wait_with_output()?)
    });
    thread.join().ok().context("the thread that starts the jailbreak")?
}

/// What this program does instead of tests, if it is one.
pub(crate) fn role() -> Option<ExitCode> {
    let arguments: Vec<OsString> = std::env::args_os().collect();
    if arguments.get(1).is_none_or(|first| first != ROLE) {
        return None;
    }
    let done = play(&arguments[2..]);
    Some(match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error:#}");
            ExitCode::FAILURE
        }
    })
}

fn play(arguments: &[OsString]) -> Result<()> {
    let arguments: Option<Vec<&str>> = arguments.iter().map(|argument| argument.to_str()).collect();
    let arguments = arguments.context("arguments")?;
    let [kind, user, name, victim, port, abstract_name] = arguments[..] else {
        bail!("{} arguments", arguments.len());
    };
    let held =
        Held { victim: victim.parse()?, tcp_port: port.parse()?, abstract_name: abstract_name.to_owned() };
    let user = match user {
        "-" => None,
        user => Some(user.parse()?),
    };
    attacks::hide_a_key()?;
    let kind = KINDS.iter().find(|(name, _)| *name == kind).map(|(_, kind)| *kind);
    // Its first one, and the one that attacks.
    let jail = Jail { user, threads: if kind.is_some() { 2 } else { 1 } };
    jail.enter().context("enter the jail")?;
    if name == ENTER_AGAIN {
        jail.enter().context("enter the jail again")?;
    }
    let attack = attacks::find(name).context("no such attack")?;
    let Some(kind) = kind else {
        say(attack, &held);
        return Ok(());
    };
    confine(Thread::SetUp)?;
    match kind {
        Thread::SetUp => say(attack, &held),
        Thread::Main => {
            confine(Thread::Main)?;
            say(attack, &held);
        }
        other => {
            let thread = start_thread(other, Builder::new().name(other.name().to_owned()), move || {
                say(attack, &held)
            })?;
            confine(Thread::Main)?;
            ensure!(thread.join().is_ok(), "the thread has panicked");
        }
    }
    Ok(())
}

fn say(attack: Attack, held: &Held) {
    match attack(held) {
        Ok(_) => println!("reached it"),
        Err(errno) => println!("refused {errno:?}"),
    }
}
