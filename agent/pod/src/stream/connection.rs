//! A raw connection, from its token on.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{SendFlags, Shutdown};
use rustix::pipe::SpliceFlags;
use tokio::io::Interest;
use tokio::net::UnixStream;

/// Bytes that one splice may move; more than any pipe holds.
const SPLICE: usize = 1 << 20;

/// A stream's connection.
///
/// Reading and writing are tried before they are waited for: [`Connection::hung_up`] uses up what the runtime knows of the room to write.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: UnixStream,
    /// The other end was told that nothing more comes.
    ended: AtomicBool,
}

impl Connection {
    pub(crate) fn new(stream: UnixStream) -> Self {
        Self { stream, ended: AtomicBool::new(false) }
    }

    pub(super) async fn io<R>(
        &self,
        interest: Interest,
        mut operation: impl FnMut(BorrowedFd<'_>) -> io::Result<R>,
    ) -> io::Result<R> {
        // A stream that never has to wait lets others have their turn.
        tokio::task::coop::consume_budget().await;
        let mut operation = || operation(self.stream.as_fd());
        match operation() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.stream.async_io(interest, operation).await
            }
            outcome => outcome,
        }
    }

    /// What has come; empty at the end. Nothing is held while there is nothing.
    pub(super) async fn read(&self, most: usize) -> io::Result<Vec<u8>> {
        self.io(Interest::READABLE, |fd| read_some(fd, most)).await
    }

    pub(super) async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let count = self.io(Interest::WRITABLE, |fd| Ok(rustix::io::write(fd, bytes)?)).await?;
            bytes = bytes.get(count..).unwrap_or_default();
        }
        Ok(())
    }

    /// Moves what is in `pipe`, which must not be empty unless it has ended, as soon as there is room; 0 at its end. Nothing, when `unless`
    /// holds before anything was moved. `InvalidInput` for what is no pipe.
    pub(super) async fn splice_from(
        &self,
        pipe: BorrowedFd<'_>,
        unless: impl Fn() -> bool,
    ) -> io::Result<Option<usize>> {
        let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
        self.io(Interest::WRITABLE, |fd| {
            if unless() {
                return Ok(None);
            }
            Ok(Some(rustix::pipe::splice(pipe, None, fd, None, SPLICE, flags)?))
        })
        .await
    }

    /// Becomes ready when the other end is gone, which its end of input alone is not.
    pub(crate) async fn hung_up(&self) {
        while let Ok(ready) = self.stream.ready(Interest::WRITABLE).await {
            if ready.is_write_closed() || self.is_refused() {
                return;
            }
            // Room to write is no news: forgotten, so that the next thing that happens is waited for.
            let _ = self.stream.try_io(Interest::WRITABLE, || Err::<(), _>(io::ErrorKind::WouldBlock.into()));
        }
    }

    /// Whether it is gone already.
    pub(super) fn has_hung_up(&self) -> bool {
        let mut polled = [PollFd::new(&self.stream, PollFlags::empty())];
        let _ = poll(&mut polled, Some(&Timespec::default()));
        let [polled] = polled;
        polled.revents().contains(PollFlags::HUP) || self.is_refused()
    }

    /// Whether the other end takes nothing any more. A vsock whose peer has closed is no hang-up to poll(2) until our end is shut down too
    /// (net/vmw_vsock/af_vsock.c, vsock_poll), but writing fails there, if only of nothing; of a unix socket it never does.
    fn is_refused(&self) -> bool {
        let nothing = || rustix::net::send(&self.stream, &[], SendFlags::NOSIGNAL | SendFlags::DONTWAIT);
        !self.ended.load(Ordering::Relaxed) && matches!(nothing(), Err(Errno::PIPE | Errno::CONNRESET))
    }

    /// Tells the other end that nothing more comes.
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
        // It fails where the other end is gone.
        let _ = rustix::net::shutdown(&self.stream, Shutdown::Write);
    }
}

/// One read into memory that is made for it.
pub(super) fn read_some(fd: BorrowedFd<'_>, most: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(most);
    rustix::io::read(fd, rustix::buffer::spare_capacity(&mut bytes))?;
    Ok(bytes)
}
