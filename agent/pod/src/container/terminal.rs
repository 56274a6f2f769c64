//! A container's terminal, as the agent holds it.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use hartpod_container::{TerminalSize, open_terminal_peer, resize_terminal};
use tracing::warn;

/// The master of a terminal, and its other side, open once more: what reads the master takes it for ended when nobody has the other side
/// open, and there are programs that close it and open it again (systemd as init).
#[derive(Debug)]
pub(crate) struct Terminal {
    master: OwnedFd,
    _other_side: Option<OwnedFd>,
}

impl Terminal {
    pub(crate) fn new(master: OwnedFd) -> Self {
        let other_side = open_terminal_peer(master.as_fd());
        if let Err(error) = &other_side {
            warn!(%error, "a terminal ends when its container closes it");
        }
        Self { master, _other_side: other_side.ok() }
    }

    pub(crate) fn resize(&self, size: TerminalSize) -> io::Result<()> {
        resize_terminal(self.master.as_fd(), size)
    }
}
