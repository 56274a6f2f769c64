//! The agent's ends of everything that connects it with a child on its way to execve.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::child::Child;
use crate::container::console;
use crate::launch::{LaunchError, agent};
use crate::report::{Listener, Told};
use crate::sys::mailbox::Mailbox;

/// Kills the child when dropped.
#[derive(Debug)]
pub(crate) struct Channel {
    listener: Listener,
    child: Option<Child>,
    /// Where a terminal arrives.
    console: Option<OwnedFd>,
    /// Where the number of the process that takes over arrives; only with a shared pid namespace.
    mailbox: Option<Mailbox>,
    handed_over: bool,
}

impl Channel {
    pub(crate) fn new(
        listener: Listener,
        child: Child,
        console: Option<OwnedFd>,
        mailbox: Option<Mailbox>,
    ) -> Self {
        Self { listener, child: Some(child), console, mailbox, handed_over: false }
    }

    /// What to poll.
    pub(crate) fn pipe(&self) -> Arc<File> {
        Arc::clone(self.listener.pipe())
    }

    pub(crate) fn child(&self) -> Option<&Child> {
        self.child.as_ref()
    }

    /// What the child told, less what only matters in here.
    pub(crate) fn next(&mut self) -> Result<Option<Told>, LaunchError> {
        loop {
            let told = self.listener.next().map_err(agent("read the report"))?;
            match told.map_err(|_| LaunchError::Garbled)? {
                Some(Told::HandedOver) if !self.handed_over && self.mailbox.is_some() => {
                    self.handed_over = true
                }
                // Whoever writes now may be a tracer of P2; no frame but these can be P2's own.
                Some(Told::Ready(_) | Told::Failed(_) | Told::HandedOver) if self.handed_over => {
                    return Err(LaunchError::Garbled);
                }
                other => return Ok(other),
            }
        }
    }

    /// The terminal, which was sent before the report that is being handled.
    pub(crate) fn take_console(&self) -> io::Result<Option<OwnedFd>> {
        self.console
            .as_ref()
            .map(console::receive)
            .transpose()
            .map_err(|e| io::Error::from_raw_os_error(e.raw()))
    }

    /// The process that runs the program, once every writing end of the report is closed without a failure.
    pub(crate) fn finish(mut self) -> Result<Child, LaunchError> {
        let child = self.child.take().ok_or(LaunchError::Died)?;
        let Some(mailbox) = self.mailbox.take() else { return Ok(child) };
        // P1 is gone or about to go; it is reaped as an orphan.
        let pid = mailbox.get().filter(|_| self.handed_over).ok_or(LaunchError::Died)?;
        Child::adopt(pid).map_err(agent("take over the container's process"))
    }
}

impl Drop for Channel {
    fn drop(&mut self) {
        let late = self.mailbox.as_ref().and_then(Mailbox::get).and_then(|pid| Child::adopt(pid).ok());
        for child in [self.child.take(), late].into_iter().flatten() {
            // It may have died already.
            let _ = child.signal(libc::SIGKILL);
        }
    }
}
