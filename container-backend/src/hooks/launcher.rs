//! Who executes the hooks of a process with threads.
//!
//! The mask of file modes and the OOM score are the daemon's, which wants to be the last to go when memory is short, and a process with threads cannot
//! set its child's between fork and execve. So a program of one thread does, and becomes the hook. The hook's environment is among its arguments:
//! as its own it would act on this program, or on what loads it.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use oci_spec::runtime::Hook;
use rustix::fs::Mode;
use rustix::process::{Signal, getppid};

use crate::container::limits;

/// Same as a login's: hooks are no part of the container, whose mask is its own.
pub(crate) const UMASK: Mode = Mode::from_raw_mode(0o022);

/// A program that calls [`be_hook`] with its arguments after the role.
#[derive(Debug, Clone, Copy)]
pub struct Launcher<'a> {
    /// Its path.
    pub program: &'a Path,
    /// Its first argument, by which it knows what to be.
    pub role: &'a str,
}

impl Launcher<'_> {
    /// Executes what a hook names, with its arguments, the first of which is the program's name for itself, and with its environment alone.
    pub(super) fn command(&self, hook: &Hook) -> Command {
        let env = hook.env().as_deref().unwrap_or_default();
        let mut command = Command::new(self.program);
        command.env_clear().arg(self.role).arg("--").arg(std::process::id().to_string());
        command.arg(hook.path()).arg(env.len().to_string()).args(env);
        match hook.args().as_deref() {
            None | Some([]) => command.arg(hook.path()),
            Some(args) => command.args(args),
        };
        command
    }
}

/// Becomes the hook: `args` are the number of the process that waits for it, its path, the number of its variables, those, its name for itself and its arguments. When
/// the thread that waits is no more, it is killed: nobody else would end it, and whoever comes next has it run again.
///
/// # Errors
/// It cannot be executed, or nobody waits for it. Nothing else is done in this process then.
pub fn be_hook(args: &[OsString]) -> io::Result<std::convert::Infallible> {
    let invalid = io::ErrorKind::InvalidInput;
    let number = |arg: &OsString| arg.to_str().and_then(|text| text.parse::<usize>().ok());
    let [waits, path, count, rest @ ..] = args else { return Err(invalid.into()) };
    let (waits, count) = (number(waits).ok_or(invalid)?, number(count).ok_or(invalid)?);
    let Some((env, [name, rest @ ..])) = rest.split_at_checked(count) else { return Err(invalid.into()) };
    rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
    // It may have ended before that.
    if !getppid().is_some_and(|parent| usize::try_from(parent.as_raw_nonzero().get()) == Ok(waits)) {
        return Err(io::ErrorKind::BrokenPipe.into());
    }
    // Where it may not be raised there is nobody to tell.
    let _ = limits::set_oom_score_adj(0, &mut Vec::new());
    rustix::process::umask(UMASK);
    Err(Command::new(path).env_clear().envs(env.iter().map(|one| variable(one))).arg0(name).args(rest).exec())
}

fn variable(text: &OsStr) -> (&OsStr, &OsStr) {
    let mut parts = text.as_bytes().splitn(2, |byte| *byte == b'=').map(OsStr::from_bytes);
    (parts.next().unwrap_or_default(), parts.next().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_hook_is_not_executed() {
        for args in [
            &[][..],
            &["1", "/bin/true"],
            &["1", "/bin/true", "0"],
            &["x", "/bin/true", "0", "true"],
            &["1", "/bin/true", "x", "true"],
            &["1", "/bin/true", "2", "A=b", "true"],
        ] {
            let args: Vec<_> = args.iter().map(OsString::from).collect();
            assert_eq!(be_hook(&args).unwrap_err().kind(), io::ErrorKind::InvalidInput, "{args:?}");
        }
    }

    #[test]
    fn a_variable_ends_at_its_first_equals_sign() {
        for (text, name, value) in [("A=b=c", "A", "b=c"), ("A=", "A", ""), ("A", "A", "")] {
            assert_eq!(variable(OsStr::new(text)), (OsStr::new(name), OsStr::new(value)));
        }
    }
}
