//! The CRI socket.

use std::io;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileTypeExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

/// Connections that wait to be accepted, for instance while the daemon starts.
const BACKLOG: i32 = 128;
/// Root and its group: whoever talks to this socket owns the node.
const MODE: u32 = 0o660;

/// There is no CRI socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    #[error("somebody else answers on {}", path.display())]
    Taken { path: PathBuf },
    #[error("{} is there and is not a socket", path.display())]
    NotASocket { path: PathBuf },
    #[error("make the folder of {}", path.display())]
    Folder { path: PathBuf, source: io::Error },
    #[error("bind {}", path.display())]
    Bind { path: PathBuf, source: io::Error },
}

/// Binds the socket, in place of one that nobody listens on.
pub(super) fn bind(path: &Path) -> Result<UnixListener, SocketError> {
    let bind_error = |source| SocketError::Bind { path: path.to_owned(), source };
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(bind_error(io::ErrorKind::InvalidInput.into()));
    };
    std::fs::create_dir_all(parent)
        .map_err(|source| SocketError::Folder { path: path.to_owned(), source })?;
    let folder = rustix::fs::open(parent, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| bind_error(e.into()))?;
    // An address holds 107 bytes; through the folder's descriptor any path will do.
    let short = Path::new("/proc/self/fd").join(folder.as_raw_fd().to_string()).join(name);
    clear(path, &short)?;
    listen(&short).map_err(bind_error)
}

fn clear(path: &Path, short: &Path) -> Result<(), SocketError> {
    let bind_error = |source| SocketError::Bind { path: path.to_owned(), source };
    match std::fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(bind_error(e)),
        Ok(data) if !data.file_type().is_socket() => {
            return Err(SocketError::NotASocket { path: path.to_owned() });
        }
        Ok(_) => {}
    }
    match UnixStream::connect(short) {
        Ok(_) => Err(SocketError::Taken { path: path.to_owned() }),
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path).map_err(bind_error)
        }
        Err(e) => Err(bind_error(e)),
    }
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    // bind(2) gives the file the socket's own mode, so there is no moment at which others could connect.
    rustix::fs::fchmod(&socket, Mode::from_raw_mode(MODE))?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    // The umask was taken off the mode.
    std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(MODE))?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket.into())
}

/// At the daemon's end.
pub(super) fn unlink(path: &Path) {
    if let Err(error) = std::fs::remove_file(path) {
        tracing::debug!(path = %path.display(), %error, "socket not removed");
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_stale_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("d".repeat(110)).join("cri.sock");
        let first = bind(&path).unwrap();
        assert!(matches!(bind(&path), Err(SocketError::Taken { .. })));
        drop(first);
        let second = bind(&path).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        drop(second);
    }

    #[test]
    fn a_file_that_is_no_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("precious");
        std::fs::write(&path, "x").unwrap();
        assert!(matches!(bind(&path), Err(SocketError::NotASocket { .. })));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "x");
    }
}
