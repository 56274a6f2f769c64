//! The layers of one pull, some at a time.

use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::Arc;

use futures_util::StreamExt;
use hyper::body::{Buf, Bytes};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::failure::Failure;
use super::layout::Layout;
use super::source::{Source, blocking};
use crate::file_error::At;
use crate::image::{LayerState, Progress};
use crate::layer::{LayerError, LayerFacts, Limits, StreamFacts, unpack_blocking};
use crate::registry::{BlobError, Registry};
use crate::store::{LayerTable, TempLayer};

/// Pieces of a layer that wait for the unpacker. Each is what one read of a socket gave, 400 KiB at most.
const AHEAD: usize = 8;
/// Entries of one layer, the folders made for them included. The largest real layers have a third of that.
const MAX_ENTRIES: u64 = 1_000_000;

/// What the layers of a pull share.
pub(crate) struct LayerPull<'a> {
    pub(crate) table: &'a Arc<LayerTable>,
    pub(crate) source: &'a Source,
    pub(crate) progress: &'a watch::Sender<Progress>,
    pub(crate) cancel: CancellationToken,
    pub(crate) max_bytes: u64,
    pub(crate) parallel: usize,
}

/// One layer, and its places in the image (an image may have a layer several times).
#[derive(Clone, Debug)]
pub(crate) struct LayerJob {
    pub(crate) facts: StreamFacts,
    pub(crate) places: Vec<usize>,
}

impl LayerPull<'_> {
    /// Makes every layer present. After an error no other layer is begun, and those at work have stopped and cleaned up.
    pub(crate) async fn all(&self, jobs: Vec<LayerJob>) -> Result<(), Failure> {
        let work = futures_util::stream::iter(jobs).map(|job| async move {
            let result = self.one(&job).await;
            if result.is_err() {
                self.cancel.cancel();
            }
            result
        });
        let results: Vec<_> = work.buffer_unordered(self.parallel.max(1)).collect().await;
        let mut failures: Vec<_> = results.into_iter().filter_map(Result::err).collect();
        // The others were only cancelled because of the first.
        match failures.iter().position(|failure| !matches!(failure, Failure::Cancelled)) {
            Some(first) => Err(failures.swap_remove(first)),
            None => failures.pop().map_or(Ok(()), Err),
        }
    }

    async fn one(&self, job: &LayerJob) -> Result<(), Failure> {
        let diff_id = &job.facts.diff_id;
        let gate = self.table.gate(diff_id);
        // Another pull may be at it. When it fails or is cancelled, it is our turn.
        let _turn = tokio::select! {
            biased;
            () = self.cancel.cancelled() => return Err(Failure::Cancelled),
            turn = gate.lock() => turn,
        };
        if self.table.facts(diff_id).is_some() {
            self.show(job, LayerState::Exists, Some(job.facts.size));
            return Ok(());
        }
        self.show(job, LayerState::Pulling, Some(0));
        let facts = match self.source {
            Source::Registry(registry) => self.download(registry, job).await?,
            Source::Layout(layout) => self.take(layout, job).await?,
        };
        self.table.set_present(diff_id, facts);
        self.show(job, LayerState::Done, Some(job.facts.size));
        Ok(())
    }

    /// From a registry; from its next host when one sends the wrong bytes.
    async fn download(&self, registry: &Registry, job: &LayerJob) -> Result<LayerFacts, Failure> {
        loop {
            let mut blob = registry.blob(&job.facts.digest, job.facts.size);
            match self.stream(&mut blob, job).await {
                Err(Failure::Invalid(error)) if error.is_wrong_bytes() && blob.distrust() => {
                    tracing::warn!(%error, "a mirror sent a wrong layer, trying the next");
                    self.show(job, LayerState::Pulling, Some(0));
                }
                other => return other,
            }
        }
    }

    async fn stream(
        &self,
        blob: &mut crate::registry::Blob<'_>,
        job: &LayerJob,
    ) -> Result<LayerFacts, Failure> {
        let (sender, receiver) = mpsc::channel(AHEAD);
        let from = PathBuf::from(format!("blob {}", job.facts.digest));
        let unpack = self.unpack(job, move || Ok((Box::new(Pieces::new(receiver)), from)));
        let (fed, unpacked) = tokio::join!(self.feed(blob, job, sender), unpack);
        match (fed, unpacked) {
            // All bytes came and were right, whatever was said after them.
            (_, Ok(facts)) => Ok(facts),
            (Err(failure), Err(_)) => Err(failure),
            (Ok(()), Err(failure)) => Err(failure),
        }
    }

    /// Hands the blob's bytes to the unpacker, until it has enough of them.
    async fn feed(
        &self,
        blob: &mut crate::registry::Blob<'_>,
        job: &LayerJob,
        sender: mpsc::Sender<Bytes>,
    ) -> Result<(), Failure> {
        let mut done = 0;
        loop {
            let chunk = tokio::select! {
                biased;
                () = self.cancel.cancelled() => return Err(Failure::Cancelled),
                // It failed, and its error is the one that counts.
                () = sender.closed() => return Ok(()),
                chunk = blob.chunk() => chunk,
            };
            let layer = || job.facts.digest.clone();
            let chunk = match chunk {
                Ok(Some(chunk)) => chunk,
                Ok(None) => return Ok(()),
                Err(BlobError::Refused(refusals)) => return Err(refusals.into()),
                Err(BlobError::Truncated { found }) => {
                    return Err(
                        LayerError::Truncated { layer: layer(), expected: job.facts.size, found }.into()
                    );
                }
                Err(BlobError::TooLong) => {
                    return Err(LayerError::TooLong { layer: layer(), expected: job.facts.size }.into());
                }
            };
            done += chunk.len() as u64;
            self.show(job, LayerState::Pulling, Some(done));
            tokio::select! {
                biased;
                () = self.cancel.cancelled() => return Err(Failure::Cancelled),
                sent = sender.send(chunk) => if sent.is_err() { return Ok(()) },
            }
        }
    }

    /// From a layout's file.
    async fn take(&self, layout: &Layout, job: &LayerJob) -> Result<LayerFacts, Failure> {
        let path = layout.path(&job.facts.digest);
        self.unpack(job, move || {
            let file = std::fs::File::open(&path).at("open", &path)?;
            Ok((Box::new(file), path))
        })
        .await
    }

    /// Unpacks on a blocking thread into a folder of its own, and moves that to its place when all of it is right.
    async fn unpack(
        &self,
        job: &LayerJob,
        open: impl FnOnce() -> Result<(Box<dyn Read + Send>, PathBuf), Failure> + Send + 'static,
    ) -> Result<LayerFacts, Failure> {
        let limits = Limits { bytes: self.max_bytes, entries: MAX_ENTRIES };
        let (facts, table) = (job.facts.clone(), Arc::clone(self.table));
        blocking(move || {
            let (source, from) = open()?;
            let temp = TempLayer::create_blocking(table.paths())?;
            let diff_id = facts.diff_id.clone();
            let unpacked = unpack_blocking(source, from, facts, limits, temp.target());
            let placed = unpacked.map_err(Failure::from).and_then(|facts| {
                temp.place_blocking(table.paths(), &diff_id)?;
                Ok(facts)
            });
            temp.discard_blocking();
            placed
        })
        .await
    }

    fn show(&self, job: &LayerJob, state: LayerState, done: Option<u64>) {
        self.progress.send_modify(|progress| {
            for &place in &job.places {
                if let Some(layer) = progress.layers.get_mut(place) {
                    layer.state = state;
                    layer.done = done.unwrap_or(layer.done);
                }
            }
        });
    }
}

/// The receiving end of a download as a reader.
struct Pieces {
    receiver: mpsc::Receiver<Bytes>,
    current: Bytes,
}

impl Pieces {
    fn new(receiver: mpsc::Receiver<Bytes>) -> Pieces {
        Pieces { receiver, current: Bytes::new() }
    }
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            match self.receiver.blocking_recv() {
                Some(piece) => self.current = piece,
                None => return Ok(0),
            }
        }
        let read = self.current.len().min(buffer.len());
        self.current.copy_to_slice(&mut buffer[..read]);
        Ok(read)
    }
}
