//! Follows the news of a pod's agent, for as long as the agent lives.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use hartpod_proto::ContainerId;
use hartpod_proto::pod::v1 as pod;
use hartpod_proto::pod::v1::watch_response::Change;
use prost::Message as _;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tonic::Streaming;

use super::command::{Message, News};
use super::last_words::how_it_ended;
use super::pace::Pace;
use super::{PodInfo, RunningAgent};
use crate::guest;
use crate::node::Node;

/// Between attempts to get a living agent to talk.
const RETRY: Duration = Duration::from_millis(200);
/// News of containers that the pod's task has not taken in: more are not read.
const UNHANDLED: usize = 64;
/// Containers that an agent on this host may have (pod.proto).
const MAX_CONTAINERS: usize = 1024;
/// In a guest each has a slot.
const MAX_IN_GUEST: usize = guest::SLOTS as usize;
/// For what a dead agent said last to be read.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// Passes news on until the agent has ended; the loss itself is the last of them.
///
/// How it ended is what its backend knows of it, or the kernel.
pub(super) fn follow(
    node: Arc<Node>,
    pod: Arc<PodInfo>,
    agent: RunningAgent,
    to: mpsc::UnboundedSender<Message>,
) -> JoinHandle<()> {
    let mut to = Ears {
        to,
        pace: pod.is_guest().then(|| Pace::new(Instant::now())),
        most: if pod.is_guest() { MAX_IN_GUEST } else { MAX_CONTAINERS },
        room: Arc::new(Semaphore::new(UNHANDLED)),
    };
    tokio::spawn(async move {
        while agent.process.is_alive() {
            if let Ok(stream) = agent.client.watch().await {
                let mut listening = std::pin::pin!(to.listen(stream));
                tokio::select! {
                    () = &mut listening => {}
                    _ = agent.process.ended() => drop(tokio::time::timeout(LAST_WORDS, listening).await),
                }
            }
            tokio::select! {
                () = tokio::time::sleep(RETRY) => {}
                _ = agent.process.ended() => {}
            }
        }
        to.tell(News::Lost(how_it_ended(&node, &pod, &agent).await));
    })
}

/// Who hears of it.
#[derive(Debug)]
struct Ears {
    to: mpsc::UnboundedSender<Message>,
    /// How fast a guest may tell; what is said on this host is believed.
    pace: Option<Pace>,
    /// Containers that there can be.
    most: usize,
    /// What is told without end waits with who tells it, not in our memory.
    room: Arc<Semaphore>,
}

impl Ears {
    fn tell(&self, news: News) {
        // The pod's task may have ended: then nobody needs the news.
        let _ = self.to.send(Message::News(news));
    }

    /// Until the stream ends, or says too much.
    async fn listen(&mut self, mut stream: Streaming<pod::WatchResponse>) {
        // Until the agent is in step.
        let mut known = Some(BTreeSet::new());
        while let Ok(Some(news)) = stream.message().await {
            let bytes = news.encoded_len();
            // Never closed.
            let Ok(room) = self.room.clone().acquire_owned().await else { return };
            match news.change {
                Some(Change::Container(mut state)) => {
                    let Ok(id) = state.container_id.parse::<ContainerId>() else { return };
                    if let Some(known) = &mut known {
                        known.insert(id.clone());
                        if known.len() > self.most {
                            return;
                        }
                    }
                    if self.pace.is_some() {
                        guest::cut(&mut state);
                    }
                    self.tell(News::Container(id, state, room));
                }
                Some(Change::Synced(_)) => {
                    if let Some(known) = known.take() {
                        self.tell(News::Synced(known, room));
                    }
                }
                // A container is removed only when this side asks for it.
                Some(Change::Removed(_)) | None => {}
            }
            if let Some(pace) = &mut self.pace {
                pace.keep(bytes).await;
            }
        }
    }
}
