//! The layers of an image that is pulled, each a part of the pull.

use std::collections::BTreeMap;

use hartpod_images::{LayerState, Progress};
use tokio::sync::watch;

use super::span::{Context, Span};

/// Does `pull`, with a span for the time until the image is known, and one for each layer that is fetched and unpacked.
pub(crate) async fn layers<T>(mut progress: watch::Receiver<Progress>, pull: impl Future<Output = T>) -> T {
    if !Context::current().is_recorded() {
        return pull.await;
    }
    let mut spans = Spans { resolving: Some(Span::child("resolve image")), layers: BTreeMap::new() };
    let mut pull = std::pin::pin!(pull);
    let pulled = loop {
        tokio::select! {
            biased;
            pulled = &mut pull => break pulled,
            Ok(()) = progress.changed() => spans.follow(&progress.borrow_and_update()),
        }
    };
    spans.follow(&progress.borrow());
    pulled
}

/// Those that are left when the pull is over were broken off.
struct Spans {
    resolving: Option<Span>,
    /// By their place in the image.
    layers: BTreeMap<usize, Span>,
}

impl Spans {
    fn follow(&mut self, progress: &Progress) {
        if let Some(resolving) = self.resolving.take_if(|_| !progress.layers.is_empty()) {
            resolving.end();
        }
        for (index, layer) in progress.layers.iter().enumerate() {
            match layer.state {
                LayerState::Pulling if !self.layers.contains_key(&index) => {
                    let span = Span::child("fetch and unpack layer");
                    span.set("hartpod.layer.digest", layer.digest.to_string().as_str());
                    span.set("hartpod.layer.bytes", i64::try_from(layer.total).unwrap_or(i64::MAX));
                    self.layers.insert(index, span);
                }
                LayerState::Done => drop(self.layers.remove(&index).map(Span::end)),
                LayerState::Pulling | LayerState::Waiting | LayerState::Exists => {}
            }
        }
    }
}
