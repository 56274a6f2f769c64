//! The whole text of `/metrics`, and who shares one.

use std::sync::Arc;
use std::time::Duration;

use hyper::body::Bytes;
use tokio::sync::Mutex;
use tokio::time::{Instant, sleep};

use super::guests::guests;
use super::{collect, node_text, text};
use crate::clock;
use crate::node::Node;
use crate::stats::ReadError;

/// For how long an answer is good for who asks next: two that scrape a node at one time pay for one, and who asks all the time gets one a second.
const SHARED: Duration = Duration::from_secs(1);

/// Bytes of a text that took memory worth giving back: it and what it was made of.
const LARGE: usize = 256 << 10;

/// Reads everything, one at a time.
#[derive(Debug, Clone)]
pub(super) struct Scraper {
    node: Arc<Node>,
    /// Held while everything is read.
    last: Arc<Mutex<Option<Answer>>>,
}

#[derive(Debug)]
struct Answer {
    at: Instant,
    text: Bytes,
}

impl Answer {
    fn is_good(&self) -> bool {
        self.at.elapsed() < SHARED
    }
}

impl Scraper {
    pub(super) fn new(node: Arc<Node>) -> Self {
        Self { node, last: Arc::default() }
    }

    /// All metrics; nothing if what reads them has panicked.
    pub(super) async fn text(&self) -> Option<Bytes> {
        let mut last = self.last.clone().lock_owned().await;
        if let Some(answer) = last.as_ref().filter(|answer| answer.is_good()) {
            return Some(answer.text.clone());
        }
        let this = self.clone();
        // A client that leaves ends what waits here, but not what reads: that keeps its turn until it is done.
        let read = tokio::spawn(async move {
            let text = render(&this.node).await;
            let text = text
                .inspect_err(|error| tracing::error!(error = crate::chain(error), "metrics are not told"));
            let text = Bytes::from(text.ok()?);
            *last = Some(Answer { at: Instant::now(), text: text.clone() });
            drop(last);
            tokio::spawn(this.forget());
            Some(text)
        });
        read.await.ok().flatten()
    }

    /// It is megabytes on a node with many pods, and the next scrape is far off.
    async fn forget(self) {
        sleep(SHARED).await;
        let old = self.last.lock().await.take_if(|answer| !answer.is_good());
        if old.is_some_and(|answer| answer.text.len() >= LARGE) {
            // On a thread that may block, as it takes a millisecond or two.
            let _ = tokio::task::spawn_blocking(crate::sys::give_back_free_memory).await;
        }
    }
}

async fn render(node: &Arc<Node>) -> Result<String, ReadError> {
    let began_at = clock::now();
    let pods = collect(node, move |node, mut readings| {
        let mut text = text::render(node, &mut readings);
        text.push_str(&node_text::overheads(node, &readings.pods));
        let snapshots: Vec<_> = node.registry.pods().iter().map(|pod| pod.snapshot()).collect();
        text.push_str(&node_text::states(snapshots.iter().map(Arc::as_ref)));
        text.push_str(&node_text::process_blocking());
        text.push_str(&node_text::read_at(began_at));
        text.push_str(&node.own_metrics.render());
        text
    });
    let (pods, guests) = tokio::join!(pods, guests(node));
    Ok(pods? + &guests?)
}
