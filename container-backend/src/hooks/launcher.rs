//! Who executes the hooks of a process with threads.
//!
//! The mask of file modes and the OOM score are the daemon's, which wants to be the last to go when memory is short, and a process with threads cannot
//! set its child's between fork and execve. So a program of one thread does, and becomes the hook.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::Path;
use std::process::Command;

use rustix::fs::Mode;

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
    /// Executes `path` with these arguments, the first of which is the program's name for itself.
    pub(super) fn command(&self, path: &Path, args: &[String]) -> Command {
        let mut command = Command::new(self.program);
        command.arg(self.role).arg("--").arg(path);
        match args {
            [] => command.arg(path),
            args => command.args(args),
        };
        command
    }
}

/// Becomes the hook: `args` are its path, its name for itself and its arguments.
///
/// # Errors
/// It cannot be executed. Nothing else is done in this process then.
pub fn be_hook(args: &[OsString]) -> io::Result<std::convert::Infallible> {
    let [path, name, rest @ ..] = args else { return Err(io::ErrorKind::InvalidInput.into()) };
    // Where it may not be raised there is nobody to tell.
    let _ = limits::set_oom_score_adj(0, &mut Vec::new());
    rustix::process::umask(UMASK);
    Err(Command::new(path).arg0(name).args(rest).exec())
}
