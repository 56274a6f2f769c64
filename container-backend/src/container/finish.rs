//! The last stage, alike for a container's init and for an exec: rights are given up, the program is found and executed.

use std::convert::Infallible;
use std::ffi::CString;
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::Mode;

use super::hook::HookProgram;
use super::root::Root;
use super::settings::{ExecLabel, ProcessSettings};
use super::streams::Streams;
use super::{command, identity};
use crate::errno::Errno;
use crate::failure::{CommandError, Failure};
use crate::report::Reporter;
use crate::request::ResolvedUser;
use crate::seccomp::Program;
use crate::sys::{exec, process, scrub};

/// What is left to do when everything is in place.
pub(crate) struct Last<'a> {
    pub(crate) settings: &'a ProcessSettings,
    /// [`ProcessSettings::capabilities`] as far as this node can give them.
    pub(crate) capabilities: super::capability::CapabilitySets,
    pub(crate) user: &'a ResolvedUser,
    pub(crate) home: &'a str,
    pub(crate) argv: &'a [CString],
    /// The path and the environment of a hook.
    pub(crate) hook: Option<&'a HookProgram>,
    pub(crate) streams: &'a Streams,
    pub(crate) cwd: Cwd,
    pub(crate) way: Way,
}

/// The working directory may be one that only root can enter, or (on NFS) only the user: it is tried as both.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cwd {
    Entered,
    DeniedToRoot,
}

impl Cwd {
    /// Tries it as root. Links through /proc are not followed: they could lead to whatever this process has open.
    pub(crate) fn enter(path: &Path) -> Result<Self, Failure> {
        match change_folder(path) {
            Ok(()) => Ok(Self::Entered),
            Err(Errno::ACCES | Errno::PERM) => Ok(Self::DeniedToRoot),
            Err(errno) => Err(cwd_failure(path, errno)),
        }
    }

    fn enter_as_user(self, path: &Path) -> Result<(), Failure> {
        match self {
            Self::Entered => Ok(()),
            Self::DeniedToRoot => change_folder(path).map_err(|errno| cwd_failure(path, errno)),
        }
    }
}

fn change_folder(path: &Path) -> Result<(), Errno> {
    let folder = Root::open("/")?.resolve(path)?;
    Ok(rustix::process::fchdir(folder)?)
}

fn cwd_failure(path: &Path, errno: Errno) -> Failure {
    Failure::Path { what: "working directory".into(), path: path.to_owned(), errno }
}

/// How the program comes to be.
pub(crate) enum Way {
    /// This process becomes it: nobody else is in its pid namespace, or everybody is.
    Here,
    /// Another process does, in a pid namespace that others are in already, see [`scrub`].
    InP2 {
        /// /proc/self/maps of this process.
        maps: OwnedFd,
        /// Where P2's number goes.
        mailbox: usize,
    },
}

impl Way {
    /// Closes all but what the last stage works with. From here on the image's paths are followed (working directory,
    /// program), which may lead through /proc/self/fd: nothing of the host may be left there.
    pub(crate) fn keep_only(
        &self,
        streams: &Streams,
        label_file: Option<&File>,
        others: &[BorrowedFd<'_>],
    ) -> Result<(), Failure> {
        let mut keep: Vec<BorrowedFd<'_>> = (0..3).map(process::standard_stream).collect();
        keep.extend(others);
        keep.extend(streams.fds().iter().map(AsFd::as_fd));
        keep.extend(label_file.map(AsFd::as_fd));
        if let Self::InP2 { maps, .. } = self {
            keep.push(maps.as_fd());
        }
        process::close_all_except(&keep)
            .map_err(|e| Failure::Step { step: "close descriptors".into(), errno: e.into() })
    }
}

/// Does it. Returns only with what failed before execve, which itself is reported as such.
pub(crate) fn run(
    last: &Last<'_>,
    label_file: Option<File>,
    reporter: &mut Reporter,
) -> Result<Infallible, Failure> {
    let settings = last.settings;
    let step = |step: &'static str| move |errno: Errno| Failure::Step { step: step.into(), errno };
    if let (Some(label), Some(file)) = (&settings.label, label_file) {
        set_label(label, file)?;
    }
    last.streams.give_to(last.user.uid).map_err(step("hand over the standard streams"))?;
    last.streams.install().map_err(step("install the standard streams"))?;
    rustix::process::umask(Mode::from_raw_mode(settings.umask));
    // Without no_new_privs only CAP_SYS_ADMIN may load a filter; with it, the later it is loaded the less the profile has to
    // allow of what happens here.
    let mut filter = settings.seccomp.as_deref();
    if settings.no_new_privileges {
        rustix::thread::set_no_new_privs(true).map_err(|e| step("set no_new_privs")(e.into()))?;
    } else if let Some(program) = filter.take() {
        load(program)?;
    }
    identity::assume(last.user, last.capabilities)?;
    last.cwd.enter_as_user(&settings.cwd)?;
    let (name, env) = match last.hook {
        Some(hook) => (&hook.path, hook.env.clone()),
        None => {
            let name = last.argv.first().ok_or(CommandError::Empty)?;
            (name, environment(settings, last.home, last.streams))
        }
    };
    let path = command::find(name, &env)?;
    match &last.way {
        Way::Here => {
            process::close_on_exec_from(3).map_err(|e| step("close descriptors")(e.into()))?;
            if last.streams.is_terminal() {
                rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())
                    .map_err(|e| step("take the terminal")(e.into()))?;
            }
            if let Some(program) = filter {
                load(program)?;
            }
            let errno = exec::execve(&path, last.argv, &env);
            Err(CommandError::Refused { name: name.to_string_lossy().into_owned(), errno }.into())
        }
        Way::InP2 { maps, mailbox } => {
            let program = scrub::LastProgram {
                path: &path,
                argv: last.argv,
                envp: &env,
                seccomp: filter.map(|program| (program.filter(), program.flags())),
                terminal: last.streams.is_terminal(),
                mailbox: *mailbox,
            };
            let pipes = scrub::Pipes { maps: maps.as_fd(), report: reporter.pipe().as_fd() };
            scrub::exec_in_p2(&program, pipes).map_err(|e| step("make room for execve")(e.into()))
        }
    }
}

fn load(program: &Program) -> Result<(), Failure> {
    let failed =
        |e: std::io::Error| Failure::Step { step: "load the seccomp profile".into(), errno: e.into() };
    program.load().map_err(failed)
}

/// HOME as in runc: from the image, unless the container sets it. A terminal's TERM as in containerd, for an exec in a container that has
/// no terminal of its own.
fn environment(settings: &ProcessSettings, home: &str, streams: &Streams) -> Vec<CString> {
    let mut env = settings.env.clone();
    if !env.iter().any(|v| v.to_bytes().starts_with(b"HOME=")) {
        env.extend(CString::new(format!("HOME={home}")));
    }
    if streams.is_terminal() && !env.iter().any(|v| v.to_bytes().starts_with(b"TERM=")) {
        env.push(c"TERM=xterm".to_owned());
    }
    env
}

/// The label that execve switches to. The file belongs to this process, and P2 inherits what is written.
fn set_label(label: &ExecLabel, mut file: File) -> Result<(), Failure> {
    use std::io::Write as _;

    let (what, text) = match label {
        ExecLabel::AppArmor(profile) => ("AppArmor profile", format!("exec {profile}")),
        ExecLabel::SeLinux(label) => ("SELinux label", label.clone()),
    };
    file.write_all(text.as_bytes())
        .map_err(|e| Failure::Step { step: format!("set {what} `{text}`"), errno: e.into() })
}
