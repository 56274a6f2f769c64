//! The daemon's side of a guest's file server: starts it, and tells it of volumes.

use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::fs::AtFlags;
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_send_buffer_size_force, set_socket_timeout};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};

use super::client::{ClientError, address, dial};
use super::{LaunchError, VmmProcess, bind, end, spawn};
use crate::boot::Fd;
use crate::channel;
use crate::share::control::{Request, Response};
use crate::share::process::{BootMessage, NAME};
use crate::share::wire::SOCKET_BUFFER;
use crate::status::cut;

/// In a guest's folder: where its file server is told of volumes. It is there once the VMM knows the file server.
pub const VOLUMES_SOCKET: &str = "volumes.sock";
/// Until then.
const NEW_SOCKET: &str = "volumes.new";

/// Why a file server did not do what it was asked.
pub type FileServerError = ClientError;

/// A file server that waits for its boot message: time to put it into its cgroup.
#[derive(Debug)]
pub struct WaitingFileServer {
    process: VmmProcess,
    socket: OwnedFd,
    message: BootMessage,
    fds: Vec<OwnedFd>,
}

/// Starts the file server of the guest whose folder is `dir`, and gives the VMM's end of the socket between them. `program` is the VMM's. It ends
/// when that end is closed.
///
/// # Errors
/// See [`LaunchError`].
pub fn start_file_server(
    program: &Path,
    dir: &Path,
    stderr: OwnedFd,
) -> Result<(WaitingFileServer, OwnedFd), LaunchError> {
    let send = |e: Errno| LaunchError::Send { source: e.into() };
    // Of a daemon that ended half-way.
    let (folder, _) = address(dir, NEW_SOCKET).map_err(|source| LaunchError::Send { source })?;
    match rustix::fs::unlinkat(&folder, NEW_SOCKET, AtFlags::empty()) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(error) => return Err(send(error)),
    }
    let control = bind(dir, NEW_SOCKET, SocketType::SEQPACKET)?;
    let pair =
        || socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None).map_err(send);
    let ((socket, theirs), (requests, of_vmm)) = (pair()?, pair()?);
    for end in [&requests, &of_vmm] {
        set_socket_send_buffer_size_force(end, SOCKET_BUFFER).map_err(send)?;
    }
    let process = spawn(program, Some(NAME), theirs, stderr)
        .map_err(|source| LaunchError::Spawn { program: program.to_owned(), source })?;
    let message = BootMessage { requests: Fd(0), control: Fd(1) };
    Ok((WaitingFileServer { process, socket, message, fds: vec![requests, control] }, of_vmm))
}

impl WaitingFileServer {
    #[must_use]
    pub fn process(&self) -> &VmmProcess {
        &self.process
    }

    /// Lets it begin. It is a child of the caller: reap it once its pidfd is readable.
    ///
    /// # Errors
    /// The message cannot be sent; the process has ended and is reaped then.
    pub fn boot(self) -> Result<VmmProcess, LaunchError> {
        let Self { process, socket, message, fds } = self;
        let fds: Vec<BorrowedFd<'_>> = fds.iter().map(OwnedFd::as_fd).collect();
        let sent = serde_json::to_vec(&message).map_err(io::Error::from);
        match sent.and_then(|bytes| channel::send(socket.as_fd(), &bytes, &fds)) {
            Ok(()) => Ok(process),
            Err(source) => {
                end(&process);
                Err(LaunchError::Send { source })
            }
        }
    }

    /// Ends and reaps it.
    pub fn cancel(self) {
        end(&self.process);
    }
}

/// A connection to a guest's file server.
#[derive(Debug)]
pub struct FileServer {
    socket: OwnedFd,
}

impl FileServer {
    /// Says that the VMM knows it: others will find it.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn publish(dir: &Path) -> io::Result<()> {
        let (folder, _) = address(dir, NEW_SOCKET)?;
        Ok(rustix::fs::renameat(&folder, NEW_SOCKET, &folder, VOLUMES_SOCKET)?)
    }

    /// Connects to that of the guest whose folder is `dir`; `patience` is for the connection and for each answer.
    ///
    /// # Errors
    /// There is none, or it takes no connection.
    pub fn connect_within(dir: &Path, patience: Duration) -> Result<Self, FileServerError> {
        let socket = dial(dir, VOLUMES_SOCKET, SocketType::SEQPACKET, patience)?;
        set_socket_timeout(&socket, Timeout::Recv, Some(patience.max(Duration::from_millis(1))))
            .map_err(|e| ClientError::Talk { source: e.into() })?;
        Ok(Self { socket })
    }

    /// Shows a file or folder to the guest, as an entry of its file system: the number. The same identity again is the same entry.
    ///
    /// # Errors
    /// It refuses, or does not answer.
    pub fn share(
        &self,
        root: BorrowedFd<'_>,
        read_only: bool,
        identity: &str,
        owner: &str,
    ) -> Result<u64, FileServerError> {
        let request =
            Request::Share { root: Fd(0), read_only, identity: identity.to_owned(), owner: owner.to_owned() };
        match self.ask(&request, &[root])? {
            Response::Shared(number) => Ok(number),
            Response::Released {} => Err(ClientError::Refused("it said something else".to_owned())),
            Response::Error(why) => Err(ClientError::Refused(cut(&why).to_owned())),
        }
    }

    /// Shows nothing more that `owner` alone uses.
    ///
    /// # Errors
    /// It does not answer.
    pub fn release(&self, owner: &str) -> Result<(), FileServerError> {
        match self.ask(&Request::Release { owner: owner.to_owned() }, &[])? {
            Response::Error(why) => Err(ClientError::Refused(cut(&why).to_owned())),
            Response::Shared(_) | Response::Released {} => Ok(()),
        }
    }

    fn ask(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<Response, FileServerError> {
        let exchange = || -> io::Result<Response> {
            channel::send(self.socket.as_fd(), &serde_json::to_vec(request)?, fds)?;
            let packet = channel::receive(self.socket.as_fd())?;
            let packet = packet.ok_or_else(|| io::Error::from(io::ErrorKind::UnexpectedEof))?;
            Ok(serde_json::from_slice(&packet.bytes)?)
        };
        exchange().map_err(|source| ClientError::Talk { source })
    }
}

/// Whether there was a file server, and is none any more. One that is merely busy is there. Does not block.
#[must_use]
pub fn is_file_server_gone(dir: &Path) -> bool {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let Ok(socket) = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None) else {
        return false;
    };
    let Ok((_folder, address)) = address(dir, VOLUMES_SOCKET) else { return false };
    rustix::net::connect(&socket, &address) == Err(Errno::CONNREFUSED)
}
