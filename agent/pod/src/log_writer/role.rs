//! The log writer as a program: how the agent starts it, and its `main`.
//!
//! It is the agent's own image, executed again under another name. A mere fork would keep every page of the agent's heap and
//! stack alive that the agent has changed since, and in PSS that is more than all the rest of a log writer.

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixStream;
use std::path::Path;

use hartpod_container::HostMounts;
use hartpod_logs::LogPlace;
use rustix::io::FdFlags;
use rustix::process::{DumpableBehavior, set_dumpable_behavior};

use super::control::{Step, report_failure};
use super::writer::{Sources, write_logs};
use crate::sys;

/// First argument of a log writer, and what ps shows of it (at most 15 bytes).
pub(crate) const NAME: &str = "hartpod-log";

/// The running program, as the host's procfs names it.
const IMAGE: &std::ffi::CStr = c"/proc/self/exe";

/// The arguments of a log writer: `hartpod-log CONTROL STDOUT STDERR [DIRECTORY PATH]`, where the first three are descriptors,
/// `-` for one that there is not.
#[derive(Debug, PartialEq, Eq)]
struct Arguments {
    control: RawFd,
    stdout: Option<RawFd>,
    stderr: Option<RawFd>,
    place: Option<LogPlace>,
}

impl Arguments {
    fn encode(&self) -> io::Result<Vec<CString>> {
        let number = |fd: Option<RawFd>| fd.map_or_else(|| "-".to_owned(), |fd| fd.to_string());
        let numbers = [Some(self.control), self.stdout, self.stderr].map(|fd| OsString::from(number(fd)));
        let place =
            self.place.iter().flat_map(|place| [place.directory().into(), place.path().into_os_string()]);
        let all = std::iter::once(NAME.into()).chain(numbers).chain(place);
        Ok(all.map(|text| CString::new(text.as_bytes())).collect::<Result<_, _>>()?)
    }

    fn decode(arguments: &[OsString]) -> Option<Self> {
        let number = |text: &OsStr| text.to_str()?.parse::<RawFd>().ok();
        let optional = |text: &OsStr| if text == "-" { Some(None) } else { number(text).map(Some) };
        let (control, stdout, stderr, place) = match arguments {
            [_, control, stdout, stderr] => (control, stdout, stderr, None),
            [_, control, stdout, stderr, directory, path] => {
                (control, stdout, stderr, Some(LogPlace::new(Path::new(directory), Path::new(path)).ok()?))
            }
            _ => return None,
        };
        Some(Self { control: number(control)?, stdout: optional(stdout)?, stderr: optional(stderr)?, place })
    }
}

/// Turns a fork of the agent, which holds nothing but what it is given here, into a log writer. Returns only if that fails,
/// with an exit code; the agent has been told why.
pub(crate) fn become_log_writer(
    host: &HostMounts,
    sources: Sources<'_>,
    place: Option<&LogPlace>,
    control: &UnixStream,
) -> i32 {
    // An agent that is gone is no reason to die, nor is a careless killall; ignored signals stay ignored over execve.
    sys::ignore_signals(&[libc::SIGPIPE, libc::SIGTERM, libc::SIGINT, libc::SIGHUP]);
    let outcome = host
        .enter()
        .map_err(|error| (Step::EnterHostMounts, error))
        .and_then(|()| execute(sources, place, control.as_fd()).map_err(|error| (Step::Execute, error)));
    if let Err((step, error)) = outcome {
        report_failure(control, step, &error);
    }
    1
}

fn execute(sources: Sources<'_>, place: Option<&LogPlace>, control: BorrowedFd<'_>) -> io::Result<()> {
    let number = |fd: Option<BorrowedFd<'_>>| fd.map(|fd| fd.as_raw_fd());
    let arguments = Arguments {
        control: control.as_raw_fd(),
        stdout: number(sources.stdout),
        stderr: number(sources.stderr),
        place: place.cloned(),
    };
    for fd in [Some(control), sources.stdout, sources.stderr].into_iter().flatten() {
        rustix::io::fcntl_setfd(fd, FdFlags::empty())?;
    }
    let level = std::env::var("RUST_LOG").map(|level| CString::new(format!("RUST_LOG={level}")));
    let environment: Vec<CString> = level.into_iter().flatten().collect();
    nix::unistd::execve(IMAGE, &arguments.encode()?, &environment)?;
    Ok(())
}

/// `main` of a log writer.
pub(crate) fn main(arguments: &[OsString]) -> i32 {
    let Some(arguments) = Arguments::decode(arguments) else {
        tracing::error!("a log writer is started by an agent only");
        return 2;
    };
    match take(&arguments) {
        Ok((control, stdout, stderr)) => {
            let sources = Sources {
                stdout: stdout.as_ref().map(AsFd::as_fd),
                stderr: stderr.as_ref().map(AsFd::as_fd),
            };
            write_logs(sources, arguments.place.as_ref(), &control)
        }
        Err(error) => {
            tracing::error!(%error, "a log writer lacks what it was started with");
            2
        }
    }
}

type Taken = (UnixStream, Option<std::os::fd::OwnedFd>, Option<std::os::fd::OwnedFd>);

fn take(arguments: &Arguments) -> io::Result<Taken> {
    rustix::thread::set_name(&CString::new(NAME)?)?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    let control = UnixStream::from(sys::take_inherited(arguments.control)?);
    let stdout = arguments.stdout.map(sys::take_inherited).transpose()?;
    let stderr = arguments.stderr.map(sys::take_inherited).transpose()?;
    Ok((control, stdout, stderr))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_survive_the_way() {
        let place = LogPlace::new(Path::new("/var/log/pods/a b"), Path::new("./c/0.log")).unwrap();
        for arguments in [
            Arguments { control: 5, stdout: Some(7), stderr: None, place: None },
            Arguments { control: 9, stdout: Some(3), stderr: Some(12), place: Some(place) },
        ] {
            let encoded = arguments.encode().unwrap();
            let decoded: Vec<_> =
                encoded.iter().map(|text| OsStr::from_bytes(text.as_bytes()).to_owned()).collect();
            assert_eq!(Arguments::decode(&decoded), Some(arguments));
        }
    }

    #[test]
    fn other_arguments_are_refused() {
        for text in [
            "",
            "hartpod-log",
            "hartpod-log x - -",
            "hartpod-log 3 4 5 relative 0.log",
            "hartpod-log 3 4 5 /d ../x",
        ] {
            let arguments: Vec<_> = text.split(' ').map(OsString::from).collect();
            assert_eq!(Arguments::decode(&arguments), None, "{text}");
        }
    }
}
