//! What the agent is started with: two listening unix sockets, as descriptors 3 and 4.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::OFlags;
use rustix::io::FdFlags;
use rustix::net::{AddressFamily, SocketType, sockopt};
use tokio::net::UnixListener;

use crate::sys;

/// Descriptor of the socket for pod/v1.
const CONTROL: i32 = 3;
/// Descriptor of the socket for raw streams.
const STREAMS: i32 = 4;

/// Why the agent cannot work with what it was started with.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InheritedError {
    #[error("descriptor {fd}")]
    Descriptor { fd: i32, source: io::Error },
    #[error("descriptor {fd} is no listening unix stream socket")]
    NotListening { fd: i32 },
}

/// The two sockets, not yet with a runtime.
#[derive(Debug)]
pub(crate) struct Sockets {
    control: OwnedFd,
    streams: OwnedFd,
}

impl Sockets {
    /// Takes them over. Call it once, before anything else opens descriptors.
    pub(crate) fn take() -> Result<Self, InheritedError> {
        Ok(Self { control: listening(CONTROL)?, streams: listening(STREAMS)? })
    }

    /// Listens with the current runtime: for pod/v1, and for streams.
    pub(crate) fn listen(self) -> io::Result<(UnixListener, UnixListener)> {
        Ok((UnixListener::from_std(self.control.into())?, UnixListener::from_std(self.streams.into())?))
    }
}

fn listening(number: i32) -> Result<OwnedFd, InheritedError> {
    let bad = |source: io::Error| InheritedError::Descriptor { fd: number, source };
    let fd = sys::take_inherited(number).map_err(bad)?;
    if !is_listening(fd.as_fd()).map_err(bad)? {
        return Err(InheritedError::NotListening { fd: number });
    }
    rustix::io::fcntl_setfd(&fd, FdFlags::CLOEXEC).map_err(|errno| bad(errno.into()))?;
    rustix::fs::fcntl_getfl(&fd)
        .and_then(|flags| rustix::fs::fcntl_setfl(&fd, flags | OFlags::NONBLOCK))
        .map_err(|errno| bad(errno.into()))?;
    Ok(fd)
}

fn is_listening(fd: impl AsFd) -> io::Result<bool> {
    let kind = (sockopt::socket_domain(&fd)?, sockopt::socket_type(&fd)?, sockopt::socket_acceptconn(&fd)?);
    Ok(kind == (AddressFamily::UNIX, SocketType::STREAM, true))
}
