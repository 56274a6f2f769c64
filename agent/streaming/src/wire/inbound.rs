//! What clients send, between the reader of a connection and those that it is for.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};

use super::{End, Peer};

/// Bytes of one client that may wait for slow processes and ports: after that its connection is not read from.
///
/// Neither SPDY as Kubernetes speaks it nor WebSocket lets a server slow down one stream alone, so whatever a client sends behind these
/// bytes waits too, its pings included.
const BUDGET: usize = 1024 * 1024;

/// What the shortest chunk counts, for the memory of its place in a queue.
const LEAST: usize = 256;

/// A chunk shorter than this is copied, so as not to hold on to the much larger piece of memory that it was read into.
const COPIED: usize = 16 * 1024;

/// What others count at least: half of the largest piece that is read, so that what is held on to is at most twice what counts.
const LEAST_UNCOPIED: usize = 32 * 1024;

/// How often a reader that waits looks whether its client is still there.
const LOOK: Duration = Duration::from_secs(2);

/// Bounds what of one connection waits.
#[derive(Debug)]
pub(crate) struct Budget {
    bytes: Arc<Semaphore>,
    peer: Peer,
}

/// Some bytes that a client sent. They count until dropped.
#[derive(Debug)]
pub(crate) struct Chunk {
    bytes: Bytes,
    _counts: OwnedSemaphorePermit,
}

/// The reader's end of a queue. Dropped, the client is told to have reset the stream.
#[derive(Debug)]
pub(crate) struct Feed(mpsc::UnboundedSender<Option<Chunk>>);

/// The end of a queue at which a session takes.
#[derive(Debug)]
pub(crate) struct Inbound(mpsc::UnboundedReceiver<Option<Chunk>>);

/// What comes next on a stream.
#[derive(Debug)]
pub(crate) enum Next {
    Data(Chunk),
    /// The client sends no more.
    End,
    /// The client wants no more of the stream, or is gone.
    Reset,
}

/// A queue. Not bounded by itself, but by what each chunk in it took from its connection's budget.
pub(crate) fn inbound() -> (Feed, Inbound) {
    let (feed, inbound) = mpsc::unbounded_channel();
    (Feed(feed), Inbound(inbound))
}

impl Budget {
    pub(crate) fn new(peer: Peer) -> Self {
        Self { bytes: Arc::new(Semaphore::new(BUDGET)), peer }
    }

    /// Waits until the bytes may be kept, or the client has gone. `waiting` is called now and then meanwhile.
    pub(crate) async fn take(
        &self,
        bytes: Bytes,
        mut waiting: impl FnMut() -> Result<(), End>,
    ) -> Result<Chunk, End> {
        let (bytes, least) = match bytes.len() {
            ..COPIED => (Bytes::copy_from_slice(&bytes), LEAST),
            _ => (bytes, LEAST_UNCOPIED),
        };
        let count = u32::try_from(bytes.len().clamp(least, BUDGET)).unwrap_or(u32::MAX);
        loop {
            tokio::select! {
                biased;
                taken = Arc::clone(&self.bytes).acquire_many_owned(count) => {
                    // Never closed.
                    let counts = taken.map_err(|_| End::Closed)?;
                    return Ok(Chunk { bytes, _counts: counts });
                }
                () = tokio::time::sleep(LOOK) => {}
            }
            if self.peer.hung_up() {
                return Err(End::Closed);
            }
            waiting()?;
        }
    }
}

impl Chunk {
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }
}

impl Feed {
    /// To nobody, if the session does not want it.
    pub(crate) fn data(&self, chunk: Chunk) {
        let _ = self.0.send(Some(chunk));
    }

    pub(crate) fn end(self) {
        let _ = self.0.send(None);
    }
}

impl Inbound {
    pub(crate) async fn next(&mut self) -> Next {
        match self.0.recv().await {
            Some(Some(chunk)) => Next::Data(chunk),
            Some(None) => {
                self.0.close();
                Next::End
            }
            None => Next::Reset,
        }
    }

    /// What has come already, without waiting. For streams whose end means nothing.
    pub(crate) fn waiting(&mut self) -> Option<Chunk> {
        self.0.try_recv().ok().flatten()
    }

    /// Throws away what comes, until nothing comes any more.
    pub(crate) async fn discard(&mut self) {
        while let Next::Data(_) = self.next().await {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nothing() -> Result<(), End> {
        Ok(())
    }

    #[tokio::test(start_paused = true)]
    async fn a_reader_waits_while_its_budget_is_spent() {
        let budget = Budget::new(Peer::default());
        let (feed, mut inbound) = inbound();
        for _ in 0..BUDGET / 65536 {
            feed.data(budget.take(vec![0; 65536].into(), nothing).await.unwrap());
        }
        let mut looks = 0;
        let mut wait = Box::pin(budget.take(Bytes::from_static(b"more"), || {
            looks += 1;
            Ok(())
        }));
        assert!(tokio::time::timeout(Duration::from_secs(9), &mut wait).await.is_err());
        let Next::Data(chunk) = inbound.next().await else { panic!() };
        drop(chunk);
        assert_eq!(wait.await.unwrap().bytes(), b"more");
        assert_eq!(looks, 4);
    }

    #[tokio::test]
    async fn tiny_chunks_count_more_than_their_bytes() {
        let budget = Budget::new(Peer::default());
        let mut kept = Vec::new();
        while budget.bytes.available_permits() >= LEAST {
            kept.push(budget.take(Bytes::from_static(b"x"), nothing).await.unwrap());
        }
        assert_eq!(kept.len(), BUDGET / LEAST);
    }

    #[tokio::test]
    async fn chunks_hold_on_to_little_more_than_they_count() {
        const READ: usize = 64 * 1024;
        for length in [4096, 8192, 16383, 16384, 20_000, 40_000, READ] {
            let (budget, mut kept, mut held) = (Budget::new(Peer::default()), Vec::new(), 0);
            while budget.bytes.available_permits() >= length.max(LEAST_UNCOPIED) {
                // The rest of what was read is something else, and long gone.
                let read = Bytes::from(vec![0; READ]);
                let chunk = budget.take(read.slice(..length), nothing).await.unwrap();
                held += if chunk.bytes.as_ptr() == read.as_ptr() { READ } else { length };
                kept.push(chunk);
            }
            assert!(held <= 2 * BUDGET, "{held} bytes are held in chunks of {length}");
        }
    }

    #[tokio::test]
    async fn an_end_is_no_reset() {
        let (feed, mut queue) = inbound();
        feed.end();
        assert!(matches!(queue.next().await, Next::End));
        let (feed, mut queue) = inbound();
        drop(feed);
        assert!(matches!(queue.next().await, Next::Reset));
    }
}
