//! The daemon's side: starts pod agents and finds them again.
//!
//! The daemon has threads, so it never forks: agents are spawned, from one sealed copy of the agent's image in memory. All agents share its text, it cannot change under them, and no container that reaches
//! `/proc/<pid>/exe` can write to it.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::sys::{inherited, process, spawn};

/// pod/v1 is served on this socket of the pod's folder.
pub const CONTROL_SOCKET: &str = "agent.sock";
/// Raw streams are served on this socket of the pod's folder.
pub const STREAM_SOCKET: &str = "stream.sock";
/// Variables that an agent inherits from the daemon; nothing else.
const INHERITED_VARIABLES: [&str; 2] = ["RUST_LOG", "RUST_BACKTRACE"];
/// Pending connections of an agent that is not up yet, or busy: an exec opens two, and 256 may begin at once.
const BACKLOG: i32 = 1024;

/// Why no agent was started.
#[derive(Debug, thiserror::Error)]
pub enum LauncherError {
    /// The program of the agent.
    #[error("load the pod agent {}", .path.display())]
    Image {
        /// On the host.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A socket of the agent.
    #[error("bind {}", .path.display())]
    Bind {
        /// On the host.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The process itself.
    #[error("start the pod agent")]
    Spawn {
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

/// The agent's program, sealed in memory. One per daemon.
#[derive(Debug)]
pub struct AgentImage {
    memfd: OwnedFd,
}

/// A running agent, or one that was.
#[derive(Debug)]
pub struct AgentProcess {
    /// In the daemon's pid namespace.
    pub pid: i32,
    /// Clock ticks between boot and its start (field 22 of /proc/pid/stat): with the pid, a name that is never reused.
    pub start_time: u64,
    /// Readable once it has exited.
    pub pidfd: OwnedFd,
}

impl AgentImage {
    /// Copies the program into memory and seals it.
    ///
    /// # Errors
    /// It cannot be read, or there is no memory for it.
    pub fn load(path: &Path) -> Result<Self, LauncherError> {
        Self::load_inner(path).map_err(|source| LauncherError::Image { path: path.to_owned(), source })
    }

    fn load_inner(path: &Path) -> io::Result<Self> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        // From Linux 6.3 on a memfd says whether it may be executed; older kernels refuse the flag.
        let memfd = match rustix::fs::memfd_create("hartpod-pod", flags | MemfdFlags::EXEC) {
            Err(rustix::io::Errno::INVAL) => rustix::fs::memfd_create("hartpod-pod", flags)?,
            other => other?,
        };
        let mut copy = fs::File::from(memfd);
        io::copy(&mut fs::File::open(path)?, &mut copy)?;
        copy.set_permissions(fs::Permissions::from_mode(0o500))?;
        rustix::fs::fcntl_add_seals(
            &copy,
            SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL,
        )?;
        Ok(Self { memfd: copy.into() })
    }
}

impl AsFd for AgentImage {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.memfd.as_fd()
    }
}

/// Binds the two sockets in `dir` and starts an agent that listens on them: fds 3 (pod/v1) and 4 (raw streams). Its
/// stdin and stdout are /dev/null, its stderr is `stderr`; it leads a session of its own.
///
/// `cgroup` is the folder of a v2 cgroup to be born in: with the pod's own leaf ([`Leaf::open_unified`]), made before,
/// [`Pod::set_up`] need not move there, which takes 7 to 14 ms. `None`: the caller's cgroup.
///
/// [`Leaf::open_unified`]: crate::cgroup::Leaf::open_unified
/// [`Pod::set_up`]: crate::Pod::set_up
///
/// The agent is a child of the daemon: reap it once its pidfd is readable.
///
/// # Errors
/// See [`LauncherError`]; no socket is left behind then.
pub fn spawn(
    image: &AgentImage,
    dir: &Path,
    stderr: BorrowedFd<'_>,
    cgroup: Option<BorrowedFd<'_>>,
) -> Result<AgentProcess, LauncherError> {
    let control = bind(dir, CONTROL_SOCKET)?;
    let streams = bind(dir, STREAM_SOCKET).inspect_err(|_| unlink(dir, &[CONTROL_SOCKET]))?;
    start(image, [&control, &streams], stderr, cgroup).map_err(|source| {
        unlink(dir, &[CONTROL_SOCKET, STREAM_SOCKET]);
        LauncherError::Spawn { source }
    })
}

/// The agent's side of [`spawn`]: its two listening sockets, pod/v1 and raw streams. Works once, before anything else of
/// the program opens descriptors.
///
/// # Errors
/// The program was not started by [`spawn`], or the sockets were taken before.
pub fn take_sockets() -> io::Result<(UnixListener, UnixListener)> {
    let [control, streams] = inherited::take([3, 4])?;
    for socket in [&control, &streams] {
        if !rustix::net::sockopt::socket_acceptconn(socket)? {
            return Err(io::ErrorKind::InvalidInput.into());
        }
    }
    Ok((control.into(), streams.into()))
}

/// The agent that has this pid and start time, if it still runs.
#[must_use]
pub fn adopt(pid: i32, start_time: u64) -> Option<AgentProcess> {
    let pidfd = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
    // Read after the pidfd was opened: if the number was reused before, the time tells; after, the pidfd does.
    (self::start_time(pid).ok()? == start_time).then_some(AgentProcess { pid, start_time, pidfd })
}

fn start(
    image: &AgentImage,
    sockets: [&UnixListener; 2],
    stderr: BorrowedFd<'_>,
    cgroup: Option<BorrowedFd<'_>>,
) -> io::Result<AgentProcess> {
    let environment: Vec<String> = INHERITED_VARIABLES
        .iter()
        .filter_map(|name| Some(format!("{name}={}", std::env::var(name).ok()?)))
        .collect();
    let [third, fourth] = sockets.map(AsFd::as_fd);
    let fds = spawn::Descriptors { stderr, third, fourth };
    let (pid, pidfd) = spawn::spawn(image.as_fd(), "hartpod-pod", &environment, &fds, cgroup)?;
    // It is our child and nobody reaps it before this returns, so the number is still its own.
    let start_time = start_time(pid).inspect_err(|_| {
        // An agent that could not be found again is none. It may have died already.
        let _ = process::pidfd_signal(pidfd.as_fd(), libc::SIGKILL);
    })?;
    Ok(AgentProcess { pid, start_time, pidfd })
}

/// A socket that only root can connect to, from its first moment on. Paths of sockets hold 107 bytes, so it is bound
/// through the folder's descriptor.
fn bind(dir: &Path, name: &str) -> Result<UnixListener, LauncherError> {
    bind_inner(dir, name).map_err(|source| LauncherError::Bind { path: dir.join(name), source })
}

fn bind_inner(dir: &Path, name: &str) -> io::Result<UnixListener> {
    use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
    use std::os::fd::AsRawFd as _;

    let folder = rustix::fs::open(dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let socket =
        rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // bind(2) gives the file the socket's own mode, less the umask.
    rustix::fs::fchmod(&socket, Mode::from_raw_mode(0o600))?;
    let address = SocketAddrUnix::new(format!("/proc/self/fd/{}/{name}", folder.as_raw_fd()))?;
    rustix::net::bind(&socket, &address)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(UnixListener::from(socket))
}

fn unlink(dir: &Path, names: &[&str]) {
    for name in names {
        // Undo of a failure that is reported; the pod's folder goes next anyway.
        let _ = fs::remove_file(dir.join(name));
    }
}

/// When a process started: clock ticks after boot (field 22 of /proc/pid/stat).
///
/// # Errors
/// There is no such process.
pub fn start_time(pid: i32) -> io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    parse_start_time(&stat).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Field 22; the second one, the command name, may hold spaces and parentheses itself.
fn parse_start_time(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests;
