//! A container's stdin, which is held open for those who attach to it.

use std::io;
use std::os::fd::OwnedFd;

use tokio::task::{AbortHandle, JoinHandle};

use crate::stream::Pipe;

/// What attachers feed. When it is dropped it is closed, and nobody feeds it any more.
#[derive(Debug)]
pub(crate) struct Input {
    /// The end to write to.
    fd: OwnedFd,
    closes_after_first: bool,
    feeders: Vec<AbortHandle>,
}

impl Input {
    /// A pipe, which is closed `once` an attacher's input has ended, or stays open.
    pub(crate) fn pipe(writer: OwnedFd, once: bool) -> Self {
        Self { fd: writer, closes_after_first: once, feeders: Vec::new() }
    }

    /// The master of a terminal, which knows no end of input.
    pub(crate) fn terminal(master: OwnedFd) -> Self {
        Self { fd: master, closes_after_first: false, feeders: Vec::new() }
    }

    /// Whether the end of an attacher's input is the end of it.
    pub(crate) fn closes_after_first(&self) -> bool {
        self.closes_after_first
    }

    /// An end of one's own to write to.
    pub(crate) fn open(&self) -> io::Result<Pipe> {
        Pipe::writer(self.fd.try_clone()?)
    }

    /// Takes note of who feeds it.
    pub(crate) fn fed_by<T>(&mut self, feeder: &JoinHandle<T>) {
        self.feeders.retain(|feeder| !feeder.is_finished());
        self.feeders.push(feeder.abort_handle());
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        for feeder in &self.feeders {
            feeder.abort();
        }
    }
}
