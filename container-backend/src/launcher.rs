//! The daemon's side: starts pod agents and finds them again.
//!
//! The daemon has threads, so it never forks: agents are started with posix_spawn(3), from one sealed copy of the agent's
//! image in memory. All agents share its text, it cannot change under them, and no container that reaches
//! `/proc/<pid>/exe` can write to it.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::sys::{inherited, spawn};

/// pod/v1 is served on this socket of the pod's folder.
pub const CONTROL_SOCKET: &str = "agent.sock";
/// Raw streams are served on this socket of the pod's folder.
pub const STREAM_SOCKET: &str = "stream.sock";
/// Variables that an agent inherits from the daemon; nothing else.
const INHERITED_VARIABLES: [&str; 2] = ["RUST_LOG", "RUST_BACKTRACE"];
/// Pending connections of an agent that is not up yet.
const BACKLOG: i32 = 128;

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
/// The agent is a child of the daemon: reap it once its pidfd is readable.
///
/// # Errors
/// See [`LauncherError`]; no socket is left behind then.
pub fn spawn(image: &AgentImage, dir: &Path, stderr: BorrowedFd<'_>) -> Result<AgentProcess, LauncherError> {
    let control = bind(dir, CONTROL_SOCKET)?;
    let streams = bind(dir, STREAM_SOCKET).inspect_err(|_| unlink(dir, &[CONTROL_SOCKET]))?;
    start(image, &control, &streams, stderr).map_err(|source| {
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
    (read_start_time(pid).ok()? == start_time).then_some(AgentProcess { pid, start_time, pidfd })
}

fn start(
    image: &AgentImage,
    control: &UnixListener,
    streams: &UnixListener,
    stderr: BorrowedFd<'_>,
) -> io::Result<AgentProcess> {
    let environment: Vec<String> = INHERITED_VARIABLES
        .iter()
        .filter_map(|name| Some(format!("{name}={}", std::env::var(name).ok()?)))
        .collect();
    let fds = spawn::Descriptors { stderr, third: control.as_fd(), fourth: streams.as_fd() };
    let pid = spawn::spawn(image.as_fd(), "hartpod-pod", &environment, &fds)?;
    // It is our child and nobody reaps it before this returns, so the number is still its own.
    let raw = Pid::from_raw(pid).ok_or(io::ErrorKind::InvalidData)?;
    let pidfd = pidfd_open(raw, PidfdFlags::empty())?;
    Ok(AgentProcess { pid, start_time: read_start_time(pid)?, pidfd })
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

fn read_start_time(pid: i32) -> io::Result<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    parse_start_time(&stat).ok_or_else(|| io::ErrorKind::InvalidData.into())
}

/// Field 22; the second one, the command name, may hold spaces and parentheses itself.
fn parse_start_time(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_time_is_found_behind_a_hostile_command_name() {
        let stat = "7 (a) R 1 (x) S 1 7 7 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4242 0 0";
        assert_eq!(parse_start_time(stat), Some(4242));
        assert_eq!(parse_start_time("7 (a"), None);
    }

    #[test]
    fn only_the_process_with_that_start_time_is_adopted() {
        let pid = i32::try_from(std::process::id()).unwrap();
        let start_time = read_start_time(pid).unwrap();
        assert_eq!(adopt(pid, start_time).unwrap().pid, pid);
        assert!(adopt(pid, start_time + 1).is_none());
    }

    #[test]
    fn an_agent_gets_its_sockets_as_3_and_4_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let deep = dir.path().join("d".repeat(120));
        fs::create_dir(&deep).unwrap();
        let log = tempfile::tempfile().unwrap();
        // The shell tells what it got; /proc/self of ls would be ls.
        let script = dir.path().join("agent");
        fs::write(&script, "unused").unwrap();
        let image = AgentImage::load(Path::new("/bin/busybox")).unwrap();
        let agent = spawn(&image, &deep, log.as_fd()).unwrap();
        let mut exit = None;
        while exit.is_none() {
            exit =
                crate::sys::process::wait_exit(&crate::sys::process::Which::PidFd(agent.pidfd.as_fd()), true)
                    .unwrap();
            std::thread::yield_now();
        }
        // busybox has no applet of that name, and says so on the stderr that it was given.
        let mut said = String::new();
        use std::io::{Read as _, Seek as _};
        let mut log = log;
        log.rewind().unwrap();
        log.read_to_string(&mut said).unwrap();
        assert_eq!(said, "hartpod-pod: applet not found\n");
        let mode = fs::metadata(deep.join(CONTROL_SOCKET)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn a_program_in_memory_cannot_be_changed() {
        let image = AgentImage::load(Path::new("/bin/busybox")).unwrap();
        assert!(rustix::io::pwrite(&image, b"x", 0).is_err());
        assert!(rustix::fs::ftruncate(&image, 0).is_err());
    }

    #[test]
    fn a_failed_bind_leaves_no_socket() {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join(STREAM_SOCKET)).unwrap();
        let image = AgentImage::load(Path::new("/bin/busybox")).unwrap();
        let log = tempfile::tempfile().unwrap();
        let error = spawn(&image, dir.path(), log.as_fd()).unwrap_err();
        assert!(matches!(error, LauncherError::Bind { .. }), "{error}");
        assert!(!dir.path().join(CONTROL_SOCKET).exists());
    }
}
