//! Connections to a VMM.

use std::io::{self, Read as _, Write as _};
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use rustix::pipe::{PipeFlags, pipe_with};

use super::{CONTROL_SOCKET, VSOCK_SOCKET};
use crate::boot::{Disk, Extent, Fd};
use crate::channel;
use crate::control::{Request, Response};
use crate::counts::Counts;
use crate::log::{LogId, LogToken, NotDigits};
use crate::status::cut;
use crate::virtio::blk::BlockExtent;

/// Bytes of the answer to CONNECT at most: `OK 4294967295\n`, or `ERROR` and why.
const MAX_ANSWER: usize = 128;

/// Why a VMM did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("connect to {}", .path.display())]
    Connect {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("connect to port {port} of the guest")]
    Port {
        port: u32,
        #[source]
        source: io::Error,
    },
    #[error("talk to the VMM")]
    Talk {
        #[source]
        source: io::Error,
    },
    #[error("name {what}")]
    Name {
        what: &'static str,
        #[source]
        source: NotDigits,
    },
    #[error("the log did not go over to its new file within {} seconds", Control::SWITCH_PATIENCE.as_secs())]
    Stuck,
    #[error("the VMM refused: {0}")]
    Refused(String),
}

/// A vsock stream to a port of the guest whose folder is `dir`. Shutting down one side half-closes the stream in the guest.
///
/// # Errors
/// There is no VMM, nobody in the guest listens (`ConnectionRefused`), `patience` is over (`TimedOut`), or the VMM refuses and says why.
pub fn connect(dir: &Path, port: u32, patience: Duration) -> Result<UnixStream, ClientError> {
    let deadline = Instant::now() + patience;
    let socket = dial(dir, VSOCK_SOCKET, SocketType::STREAM, patience)?;
    let mut stream = UnixStream::from(socket);
    let greeted = greet(&mut stream, port, deadline)
        .and_then(|()| stream.set_read_timeout(None))
        .and_then(|()| stream.set_write_timeout(None));
    greeted.map_err(|source| ClientError::Port { port, source })?;
    Ok(stream)
}

fn greet(stream: &mut UnixStream, port: u32, deadline: Instant) -> io::Result<()> {
    stream.write_all(format!("CONNECT {port}\n").as_bytes())?;
    let mut answer = Vec::new();
    // Byte by byte: what follows the line is the guest's.
    while answer.last() != Some(&b'\n') {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        let mut byte = [0];
        match stream.read(&mut byte) {
            Ok(0) => return Err(io::ErrorKind::ConnectionRefused.into()),
            Ok(_) if answer.len() < MAX_ANSWER => answer.push(byte[0]),
            Ok(_) => return Err(io::ErrorKind::InvalidData.into()),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::ConnectionReset => {
                return Err(io::ErrorKind::ConnectionRefused.into());
            }
            Err(e) => return Err(e),
        }
    }
    let answer = String::from_utf8_lossy(&answer);
    match (answer.starts_with("OK "), answer.strip_prefix("ERROR ")) {
        (true, _) => Ok(()),
        (false, Some(why)) => Err(io::Error::other(why.trim_end().to_owned())),
        (false, None) => Err(io::ErrorKind::InvalidData.into()),
    }
}

/// Under which tokens the agent gives what a container says. A terminal has one stream, stdout.
#[derive(Debug, Clone, Copy)]
pub struct LogTokens<'t> {
    pub stdout: Option<&'t str>,
    pub stderr: Option<&'t str>,
}

fn log_id(text: &str) -> Result<LogId, ClientError> {
    text.parse().map_err(|source| ClientError::Name { what: "a log", source })
}

/// A connection for requests to a running VMM. Calls block until the VMM has answered, at most for the patience that it was made with.
#[derive(Debug)]
pub struct Control {
    socket: OwnedFd,
}

impl Control {
    /// Enough for whoever has the time: the VMM answers from a thread that does nothing else.
    pub const PATIENCE: Duration = Duration::from_secs(10);

    /// How long a log may take to go over to another file: more than it waits for a line to end. As the pod agent's on a node.
    pub const SWITCH_PATIENCE: Duration = Duration::from_secs(8);

    /// Connects to the VMM whose folder is `dir`.
    ///
    /// # Errors
    /// There is none, or it takes no connection.
    pub fn connect(dir: &Path) -> Result<Self, ClientError> {
        Self::connect_within(dir, Self::PATIENCE)
    }

    /// The same with another patience than [`PATIENCE`](Self::PATIENCE): for the connection, and for each answer.
    ///
    /// # Errors
    /// There is none, or it takes no connection.
    pub fn connect_within(dir: &Path, patience: Duration) -> Result<Self, ClientError> {
        let socket = dial(dir, CONTROL_SOCKET, SocketType::SEQPACKET, patience)?;
        // No time at all would mean for ever.
        let patience = patience.max(Duration::from_millis(1));
        set_socket_timeout(&socket, Timeout::Recv, Some(patience))
            .map_err(|e| ClientError::Talk { source: e.into() })?;
        Ok(Self { socket })
    }

    /// Puts a disk of these files into an empty slot.
    ///
    /// # Errors
    /// The VMM refuses, or does not answer.
    pub fn fill(&self, slot: u32, disk: &[BlockExtent]) -> Result<(), ClientError> {
        let fds: Vec<BorrowedFd<'_>> = disk.iter().map(|extent| extent.file.as_fd()).collect();
        let extents = disk.iter().enumerate();
        let extents = extents.map(|(number, e)| Extent { file: Fd(number), read_only: e.read_only });
        let disk = Disk { extents: extents.collect() };
        self.ask(&Request::Fill { slot, disk }, &fds)
    }

    /// Puts the file system of volumes into an empty slot, which must be the last one; `server` is the VMM's end of
    /// [`start_file_server`](super::start_file_server).
    ///
    /// # Errors
    /// The VMM refuses, or does not answer.
    pub fn fill_files(&self, slot: u32, server: BorrowedFd<'_>) -> Result<(), ClientError> {
        self.ask(&Request::FillFiles { slot, server: Fd(0) }, &[server])
    }

    /// Takes the disk out of a slot, of which the guest has let go. An empty slot is fine.
    ///
    /// # Errors
    /// The VMM refuses, or does not answer.
    pub fn empty(&self, slot: u32) -> Result<(), ClientError> {
        self.ask(&Request::Empty { slot }, &[])
    }

    /// Has the VMM append what a container says to `file`, which must be a regular file that is open for appending (read it may be, too:
    /// then a line that an earlier writer left unfinished is ended first). The VMM opens the streams by itself; the tokens are those of
    /// CreateContainer, good for one connection within 10 seconds of its answer.
    ///
    /// `id` is the container's: 64 lower-case hexadecimal digits. Of a log that is being written only the file is new, as with
    /// [`reopen_log`](Self::reopen_log), but nothing is waited for: a daemon may repeat itself.
    ///
    /// # Errors
    /// The id or a token is none, the file is no log, there are [`MAX_LOGS`](crate::log::MAX_LOGS) already, or the VMM does not answer.
    pub fn log(&self, id: &str, tokens: LogTokens<'_>, file: BorrowedFd<'_>) -> Result<(), ClientError> {
        let token = |what, text: Option<&str>| {
            text.map(str::parse::<LogToken>).transpose().map_err(|source| ClientError::Name { what, source })
        };
        let stdout = token("the stream of stdout", tokens.stdout)?;
        let stderr = token("the stream of stderr", tokens.stderr)?;
        self.ask(&Request::Log { id: log_id(id)?, stdout, stderr, file: Fd(0) }, &[file])
    }

    /// Has a log go over to `file`, a file as for [`log`](Self::log), at a line's end; returns once it has. A stream that is within a line
    /// for longer than a second stays with the old file until the line ends, and is not waited for. Success where there is no such log:
    /// its container has ended.
    ///
    /// # Errors
    /// As [`log`](Self::log); and the disk of the log does not answer within [`SWITCH_PATIENCE`](Self::SWITCH_PATIENCE).
    pub fn reopen_log(&self, id: &str, file: BorrowedFd<'_>) -> Result<(), ClientError> {
        let talk = |e: rustix::io::Errno| ClientError::Talk { source: e.into() };
        let (switched, done) = pipe_with(PipeFlags::CLOEXEC).map_err(talk)?;
        let request = Request::ReopenLog { id: log_id(id)?, file: Fd(0), done: Fd(1) };
        self.ask(&request, &[file, done.as_fd()])?;
        drop(done);
        let mut hung_up = [PollFd::new(&switched, PollFlags::empty())];
        let patience = Timespec::try_from(Self::SWITCH_PATIENCE).ok();
        match rustix::io::retry_on_intr(|| poll(&mut hung_up, patience.as_ref())).map_err(talk)? {
            0 => Err(ClientError::Stuck),
            _ => Ok(()),
        }
    }

    /// Has the VMM close `done`, a pipe, once all that a container said is written, or its VMM is gone: the other end hangs up then, if
    /// the caller closes its own copy. That is at once where there is no such log, or none any more.
    ///
    /// # Errors
    /// `done` is no pipe, too many wait for the same log, or the VMM does not answer.
    pub fn await_log(&self, id: &str, done: BorrowedFd<'_>) -> Result<(), ClientError> {
        self.ask(&Request::AwaitLog { id: log_id(id)?, done: Fd(0) }, &[done])
    }

    /// Ends a log whose container is removed: the guest's agent could hold its streams open for ever. What has not come by now is not
    /// written. Success where there is no such log.
    ///
    /// # Errors
    /// The id is none, or the VMM does not answer.
    pub fn end_log(&self, id: &str) -> Result<(), ClientError> {
        self.ask(&Request::EndLog { id: log_id(id)? }, &[])
    }

    /// What the guest has done since its start, as the VMM says.
    ///
    /// # Errors
    /// The VMM is of an earlier version, or does not answer.
    pub fn counts(&self) -> Result<Counts, ClientError> {
        match self.exchange(&Request::Counts {}, &[]).map_err(|source| ClientError::Talk { source })? {
            Response::Counts(counts) => Ok(*counts),
            Response::Ok {} => Err(ClientError::Talk { source: io::ErrorKind::InvalidData.into() }),
            Response::Error(why) => Err(ClientError::Refused(cut(&why).to_owned())),
        }
    }

    /// Ends the guest at once.
    ///
    /// # Errors
    /// The VMM does not answer.
    pub fn power_off(&self) -> Result<(), ClientError> {
        self.ask(&Request::PowerOff {}, &[])
    }

    fn ask(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<(), ClientError> {
        match self.exchange(request, fds).map_err(|source| ClientError::Talk { source })? {
            Response::Ok {} => Ok(()),
            Response::Counts(_) => Err(ClientError::Talk { source: io::ErrorKind::InvalidData.into() }),
            Response::Error(why) => Err(ClientError::Refused(cut(&why).to_owned())),
        }
    }

    fn exchange(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> io::Result<Response> {
        channel::send(self.socket.as_fd(), &serde_json::to_vec(request)?, fds)?;
        let packet = channel::receive(self.socket.as_fd())?;
        let packet = packet.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
        Ok(serde_json::from_slice(&packet.bytes)?)
    }
}

/// A connected socket, whose writes wait for `patience` at most from then on.
///
/// connect(2) waits while the backlog is full, and nobody empties it where the VMM hangs, or for vsock where the guest has unbound its driver.
pub(super) fn dial(
    dir: &Path,
    name: &str,
    kind: SocketType,
    patience: Duration,
) -> Result<OwnedFd, ClientError> {
    let connect = || -> io::Result<OwnedFd> {
        let socket = rustix::net::socket_with(AddressFamily::UNIX, kind, SocketFlags::CLOEXEC, None)?;
        // No time at all would mean for ever.
        let patience = patience.max(Duration::from_millis(1));
        set_socket_timeout(&socket, Timeout::Send, Some(patience))?;
        let (_folder, address) = address(dir, name)?;
        match rustix::io::retry_on_intr(|| rustix::net::connect(&socket, &address)) {
            Ok(()) => Ok(socket),
            Err(rustix::io::Errno::AGAIN) => Err(io::ErrorKind::TimedOut.into()),
            Err(error) => Err(error.into()),
        }
    };
    connect().map_err(|source| ClientError::Connect { path: dir.join(name), source })
}

/// A path for a socket that is short however long the folder's is, as long as the folder's descriptor is open.
pub(super) fn address(dir: &Path, name: &str) -> io::Result<(OwnedFd, SocketAddrUnix)> {
    let folder = rustix::fs::open(dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let address = SocketAddrUnix::new(format!("/proc/self/fd/{}/{name}", folder.as_raw_fd()))?;
    Ok((folder, address))
}
