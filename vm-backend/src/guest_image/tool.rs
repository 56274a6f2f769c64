//! Programs of the node that help to build an image.

use std::env;
use std::ffi::OsStr;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Where the tools of the administrator are; not in everybody's PATH.
const SYSTEM_FOLDERS: [&str; 2] = ["/usr/sbin", "/sbin"];

/// A program failed, or could not be run.
#[derive(Debug, thiserror::Error)]
pub enum ToolError {
    #[error("run {}", program.display())]
    Run { program: PathBuf, source: io::Error },
    #[error("{} failed ({status}): {said}", program.display())]
    Failed { program: PathBuf, status: std::process::ExitStatus, said: String },
}

/// The first of these programs that is installed.
pub(super) fn find(names: &[&str]) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders: Vec<PathBuf> =
        env::split_paths(&path).chain(SYSTEM_FOLDERS.into_iter().map(PathBuf::from)).collect();
    let candidates = names.iter().flat_map(|name| folders.iter().map(move |folder| folder.join(name)));
    candidates.into_iter().find(|path| path.is_file())
}

/// Runs a program to its end; what it says is part of the error.
pub(super) fn run(
    program: &Path,
    args: impl IntoIterator<Item = impl AsRef<OsStr>>,
) -> Result<(), ToolError> {
    let output = Command::new(program)
        .args(args)
        // Its messages are shown to people as they are.
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .output()
        .map_err(|source| ToolError::Run { program: program.to_owned(), source })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join("; ");
    Err(ToolError::Failed { program: program.to_owned(), status: output.status, said })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_that_is_installed_is_taken_and_its_words_are_kept() {
        assert_eq!(find(&["surely-not-installed"]), None);
        let shell = find(&["surely-not-installed", "sh"]).unwrap();
        run(&shell, ["-c", "exit 0"]).unwrap();
        let error = run(&shell, ["-c", "echo first >&2; echo second >&2; exit 3"]).unwrap_err().to_string();
        assert!(error.ends_with("first; second") && error.contains('3'), "{error}");
    }
}
