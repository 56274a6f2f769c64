//! A raw connection, from its token on.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::Shutdown;
use rustix::pipe::SpliceFlags;
use tokio::io::Interest;
use tokio::net::UnixStream;

/// Bytes that one splice may move; more than any pipe holds.
const SPLICE: usize = 1 << 20;

/// A stream's connection.
///
/// Reading and writing are tried before they are waited for: [`Connection::hung_up`] uses up what the runtime knows of the room to write.
#[derive(Debug)]
pub(crate) struct Connection(UnixStream);

impl Connection {
    pub(crate) fn new(stream: UnixStream) -> Self {
        Self(stream)
    }

    pub(super) async fn io<R>(
        &self,
        interest: Interest,
        mut operation: impl FnMut(BorrowedFd<'_>) -> io::Result<R>,
    ) -> io::Result<R> {
        // A stream that never has to wait lets others have their turn.
        tokio::task::coop::consume_budget().await;
        let mut operation = || operation(self.0.as_fd());
        match operation() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.0.async_io(interest, operation).await
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
        while let Ok(ready) = self.0.ready(Interest::WRITABLE).await {
            if ready.is_write_closed() {
                return;
            }
            // Room to write is no news: forgotten, so that the next thing that happens is waited for.
            let _ = self.0.try_io(Interest::WRITABLE, || Err::<(), _>(io::ErrorKind::WouldBlock.into()));
        }
    }

    /// Whether it is gone already.
    pub(super) fn has_hung_up(&self) -> bool {
        let mut polled = [PollFd::new(&self.0, PollFlags::empty())];
        let _ = poll(&mut polled, Some(&Timespec::default()));
        let [polled] = polled;
        polled.revents().contains(PollFlags::HUP)
    }

    /// Tells the other end that nothing more comes.
    pub(super) fn end(&self) {
        // It fails where the other end is gone.
        let _ = rustix::net::shutdown(&self.0, Shutdown::Write);
    }
}

/// One read into memory that is made for it.
pub(super) fn read_some(fd: BorrowedFd<'_>, most: usize) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(most);
    rustix::io::read(fd, rustix::buffer::spare_capacity(&mut bytes))?;
    Ok(bytes)
}
