//! The daemon's side: starts a VMM, follows it, and talks to it.
//!
//! Everything of a guest is in one folder of its own: two sockets, what becomes of it, and its console. All outlive the daemon, so the next
//! one finds the guest again.

mod client;
mod file_server;
mod follow;

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;

use nix::sched::{CloneFlags, unshare};
use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, pidfd_open, pidfd_send_signal, waitid,
};

pub use client::{ClientError, Control, LogTokens, connect};
pub use file_server::{
    FileServer, FileServerError, VOLUMES_SOCKET, WaitingFileServer, is_file_server_gone, start_file_server,
};
pub use follow::{FollowError, Follower, MAX_STATUS_LINE};

use crate::boot::{BootMessage, Disk, Extent, Fd, Interrupts, Net, NetDevice};
use crate::channel;
use crate::virtio::blk::BlockExtent;

/// vsock streams are made by connecting here: see [`connect`].
pub const VSOCK_SOCKET: &str = "vsock.sock";
/// Requests at run time: see [`Control`].
pub const CONTROL_SOCKET: &str = "control.sock";
/// Lines of [`Event`](crate::status::Event): see [`Follower`].
pub const STATUS_FILE: &str = "status";
/// What the guest prints.
pub const CONSOLE_FILE: &str = "console.log";

/// Connections that wait: to vsock from the moment on when the guest is spawned.
const BACKLOG: i32 = 128;

/// A guest to be started.
#[derive(Debug)]
pub struct GuestSpec {
    /// User and group of the VMM: not 0, and nobody else's on this machine. `None` leaves it root, for tests; all the rest of the jail is the same.
    pub user: Option<u32>,
    /// RAM in MiB: the ceiling.
    pub memory_mib: u32,
    pub vcpus: u32,
    pub interrupts: Interrupts,
    /// An uncompressed Image.
    pub kernel: PathBuf,
    pub initramfs: PathBuf,
    pub command_line: String,
    /// Bytes that the guest may print.
    pub console_limit: u64,
    pub net: Option<NetDevice>,
    pub balloon: bool,
    /// Disks that are there at boot, in slots 3 and up.
    pub disks: Vec<Vec<BlockExtent>>,
    /// Slots for disks that come later; they follow the disks.
    pub spare_slots: u32,
}

/// Why no VMM was started.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    #[error("open {}", .path.display())]
    Open {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("bind {}", .path.display())]
    Bind {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("start {}", .program.display())]
    Spawn {
        program: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("hand the VMM its boot message")]
    Send {
        #[source]
        source: io::Error,
    },
}

/// A VMM that runs, or one that did.
#[derive(Debug)]
pub struct VmmProcess {
    /// In the daemon's pid namespace.
    pub pid: i32,
    /// Readable once it has exited.
    pub pidfd: OwnedFd,
}

/// A VMM that waits for its boot message: time to put it into its cgroup, before it has anything that would be charged elsewhere.
///
/// Dropped, it ends by itself, and is left to the caller to reap: better [`cancel`](Self::cancel) it.
#[derive(Debug)]
pub struct WaitingVmm {
    process: VmmProcess,
    socket: OwnedFd,
    message: BootMessage,
    fds: Vec<OwnedFd>,
}

/// Starts a VMM for a guest, with everything of it in `dir`, which must be empty of those four files. Its stderr is `stderr`.
///
/// # Errors
/// See [`LaunchError`]. Files that were made in `dir` are left to the caller, who owns the folder; no process is.
pub fn start(
    program: &Path,
    dir: &Path,
    spec: GuestSpec,
    stderr: OwnedFd,
) -> Result<WaitingVmm, LaunchError> {
    let files = Files::open(dir, &spec)?;
    let pair =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
    let (socket, theirs) = pair.map_err(|e| LaunchError::Send { source: e.into() })?;
    let process = spawn(program, None, theirs, stderr)
        .map_err(|source| LaunchError::Spawn { program: program.to_owned(), source })?;
    let (message, fds) = message(spec, files);
    Ok(WaitingVmm { process, socket, message, fds })
}

/// [`start`] and [`WaitingVmm::boot`].
///
/// # Errors
/// As theirs.
pub fn launch(
    program: &Path,
    dir: &Path,
    spec: GuestSpec,
    stderr: OwnedFd,
) -> Result<VmmProcess, LaunchError> {
    start(program, dir, spec, stderr)?.boot()
}

impl WaitingVmm {
    #[must_use]
    pub fn process(&self) -> &VmmProcess {
        &self.process
    }

    /// Lets the guest boot. The VMM is a child of the caller: reap it once its pidfd is readable. What becomes of the guest is told by a
    /// [`Follower`].
    ///
    /// # Errors
    /// The message cannot be sent; the VMM has ended and is reaped then.
    pub fn boot(self) -> Result<VmmProcess, LaunchError> {
        let Self { process, socket, message, fds } = self;
        match send(&socket, &message, &fds) {
            Ok(()) => Ok(process),
            Err(source) => {
                end(&process);
                Err(LaunchError::Send { source })
            }
        }
    }

    /// Ends and reaps it. Blocks for that long; it has not begun anything that takes time.
    pub fn cancel(self) {
        end(&self.process);
    }
}

/// Ends a VMM that has no guest yet. It would do so by itself, once its socket closes.
fn end(process: &VmmProcess) {
    let _ = pidfd_send_signal(&process.pidfd, Signal::KILL);
    let _ = waitid(WaitId::PidFd(process.pidfd.as_fd()), WaitIdOptions::EXITED);
}

/// Whether guests get an AIA or a PLIC on this machine: by a trial, so ask once.
///
/// # Errors
/// There is no KVM to try it with.
pub fn choose_interrupts() -> Result<Interrupts, LaunchError> {
    let kvm = open(Path::new(KVM), OFlags::RDWR)?;
    #[cfg(target_arch = "riscv64")]
    if crate::arch::riscv64::aia::probe(kvm) {
        return Ok(Interrupts::Aia);
    }
    #[cfg(not(target_arch = "riscv64"))]
    drop(kvm);
    Ok(Interrupts::Plic)
}

const KVM: &str = "/dev/kvm";

/// What the launcher opens itself.
struct Files {
    kvm: OwnedFd,
    kernel: OwnedFd,
    initramfs: OwnedFd,
    status: OwnedFd,
    console: OwnedFd,
    control: OwnedFd,
    vsock: OwnedFd,
}

impl Files {
    fn open(dir: &Path, spec: &GuestSpec) -> Result<Self, LaunchError> {
        Ok(Self {
            kvm: open(Path::new(KVM), OFlags::RDWR)?,
            kernel: open(&spec.kernel, OFlags::RDONLY)?,
            initramfs: open(&spec.initramfs, OFlags::RDONLY)?,
            status: create(&dir.join(STATUS_FILE))?,
            console: create(&dir.join(CONSOLE_FILE))?,
            control: bind(dir, CONTROL_SOCKET, SocketType::SEQPACKET)?,
            vsock: bind(dir, VSOCK_SOCKET, SocketType::STREAM)?,
        })
    }
}

/// The message, and its descriptors in the order of their numbers.
fn message(spec: GuestSpec, files: Files) -> (BootMessage, Vec<OwnedFd>) {
    let mut fds = Vec::new();
    let mut number = |fd| {
        fds.push(fd);
        Fd(fds.len() - 1)
    };
    let mut disk = |extents: Vec<BlockExtent>| Disk {
        extents: extents
            .into_iter()
            .map(|extent| Extent { file: number(extent.file), read_only: extent.read_only })
            .collect(),
    };
    let disks = spec.disks.into_iter().map(&mut disk).collect();
    let message = BootMessage {
        user: spec.user,
        memory_mib: spec.memory_mib,
        vcpus: spec.vcpus,
        kvm: number(files.kvm),
        kernel: number(files.kernel),
        initramfs: number(files.initramfs),
        command_line: spec.command_line,
        status: number(files.status),
        console: number(files.console),
        console_limit: spec.console_limit,
        control: number(files.control),
        vsock: Some(number(files.vsock)),
        net: spec.net.map(|net| Net { tap: number(net.tap), mac: net.mac, mtu: net.mtu }),
        balloon: spec.balloon,
        spare_slots: spec.spare_slots,
        disks,
        interrupts: spec.interrupts,
    };
    (message, fds)
}

fn send(socket: &OwnedFd, message: &BootMessage, fds: &[OwnedFd]) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    let fds: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
    channel::send(socket.as_fd(), &bytes, &fds)
}

/// The caller has threads and so only spawns: the socket is the VMM's standard input. Its environment is empty: a panic's trace would need files,
/// which the VMM cannot open.
fn spawn(program: &Path, name: Option<&str>, socket: OwnedFd, stderr: OwnedFd) -> io::Result<VmmProcess> {
    let mut command = Command::new(program);
    if let Some(name) = name {
        command.arg0(name);
    }
    command.env_clear().stdin(Stdio::from(socket)).stdout(Stdio::null()).stderr(Stdio::from(stderr));
    let mut child = spawn_as_init(command)?;
    let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
    // It is our child and nobody reaps it before this returns, so the number is still its own.
    let opened = Pid::from_raw(pid)
        .ok_or(rustix::io::Errno::INVAL)
        .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()))
        .map_err(io::Error::from);
    match opened.and_then(|pidfd| be_expendable(pid).map(|()| pidfd)) {
        Ok(pidfd) => Ok(VmmProcess { pid, pidfd }),
        Err(error) => {
            // A VMM that could not be found again is none.
            let _ = child.kill();
            let _ = child.wait();
            Err(error)
        }
    }
}

/// Where memory is short the kernel may spare the caller; a guest is judged by what runs in it, as whoever started it says later.
fn be_expendable(pid: i32) -> io::Result<()> {
    let path = format!("/proc/{pid}/oom_score_adj");
    match fs::read_to_string(&path)?.trim().starts_with('-') {
        true => fs::write(&path, "0"),
        false => Ok(()),
    }
}

/// As the first process of a new pid namespace: no other has a number there, so that it can name none. A process cannot move into one by
/// itself, and one whose children would be in another may not start threads; so this is done by a thread that ends.
fn spawn_as_init(mut command: Command) -> io::Result<Child> {
    let thread = thread::Builder::new().name("spawn".to_owned()).spawn(move || {
        unshare(CloneFlags::CLONE_NEWPID)?;
        command.spawn()
    })?;
    thread.join().map_err(|_| io::Error::other("the thread that starts it has ended"))?
}

fn open(path: &Path, flags: OFlags) -> Result<OwnedFd, LaunchError> {
    rustix::fs::open(path, flags | OFlags::CLOEXEC | OFlags::NOCTTY, Mode::empty())
        .map_err(|e| LaunchError::Open { path: path.to_owned(), source: e.into() })
}

/// A file that does not exist yet, for appending.
fn create(path: &Path) -> Result<OwnedFd, LaunchError> {
    let opened = OpenOptions::new().append(true).create_new(true).mode(0o600).open(path);
    opened.map(File::into).map_err(|source| LaunchError::Open { path: path.to_owned(), source })
}

/// A socket that only root can connect to, from its first moment on. Paths of sockets hold 107 bytes, so it is bound through the folder's
/// descriptor.
fn bind(dir: &Path, name: &str, kind: SocketType) -> Result<OwnedFd, LaunchError> {
    bind_inner(dir, name, kind).map_err(|source| LaunchError::Bind { path: dir.join(name), source })
}

fn bind_inner(dir: &Path, name: &str, kind: SocketType) -> io::Result<OwnedFd> {
    let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
    // bind(2) gives the file the socket's own mode, less the umask.
    rustix::fs::fchmod(&socket, Mode::from_raw_mode(0o600))?;
    rustix::net::bind(&socket, &client::address(dir, name)?.1)?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

#[cfg(test)]
mod tests;
