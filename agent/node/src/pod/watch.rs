//! Follows the news of a pod's agent, for as long as the agent lives.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hartpod_proto::ContainerId;
use hartpod_proto::pod::v1 as pod;
use hartpod_proto::pod::v1::watch_response::Change;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tonic::Streaming;

use super::bring_up::ran_out_of_memory;
use super::command::{Message, News};
use super::{PodInfo, RunningAgent};
use crate::guest;
use crate::node::Node;

/// Between attempts to get a living agent to talk.
const RETRY: Duration = Duration::from_millis(200);
/// News of containers that the pod's task has not taken in: more are not read.
const UNHANDLED: usize = 64;
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
    let dir = node.layout.agent(&pod.id);
    let to =
        Ears { to, guest: pod.is_guest().then(|| dir.clone()), room: Arc::new(Semaphore::new(UNHANDLED)) };
    tokio::spawn(async move {
        let how = loop {
            if let Ok(mut stream) = agent.client.watch().await {
                tokio::select! {
                    () = pass_on(&mut stream, &to) => {}
                    how = agent.process.ended() => {
                        let _ = tokio::time::timeout(LAST_WORDS, pass_on(&mut stream, &to)).await;
                        break how;
                    }
                }
            }
            tokio::select! {
                () = tokio::time::sleep(RETRY) => {}
                how = agent.process.ended() => break how,
            }
        };
        let words = tokio::task::spawn_blocking(move || {
            if ran_out_of_memory(&node, &pod) {
                return Some("the kernel killed it because a memory limit of the pod was hit".to_owned());
            }
            node.backends.of(&pod.handler).ok().and_then(|backend| backend.last_words_blocking(&dir))
        });
        let said = words.await.ok().flatten().map(|words| format!(" ({words})"));
        to.tell(News::Lost(how + &said.unwrap_or_default()));
    })
}

/// Who hears of it.
#[derive(Debug, Clone)]
struct Ears {
    to: mpsc::UnboundedSender<Message>,
    /// The folder of the VMM, for a guest.
    guest: Option<PathBuf>,
    /// What a guest tells without end waits in its own memory, not in ours.
    room: Arc<Semaphore>,
}

impl Ears {
    fn tell(&self, news: News) {
        // The pod's task may have ended: then nobody needs the news.
        let _ = self.to.send(Message::News(news));
    }

    /// A container has ended when its log is whole, which in a guest is the VMM's to know.
    async fn tell_of(&self, state: pod::ContainerState) {
        // Never closed.
        let Ok(room) = self.room.clone().acquire_owned().await else { return };
        let ended = self.guest.clone().filter(|_| state.phase() == pod::Phase::Exited);
        let (Some(dir), Ok(id)) = (ended, state.container_id.parse::<ContainerId>()) else {
            return self.tell(News::Container(state, room));
        };
        let ears = self.clone();
        tokio::spawn(async move {
            guest::last_lines(dir, id).await;
            ears.tell(News::Container(state, room));
        });
    }
}

/// Until the stream ends.
async fn pass_on(stream: &mut Streaming<pod::WatchResponse>, to: &Ears) {
    let mut known = BTreeSet::new();
    while let Ok(Some(news)) = stream.message().await {
        match news.change {
            Some(Change::Container(state)) => {
                known.extend(state.container_id.parse::<ContainerId>());
                to.tell_of(state).await;
            }
            // Once per stream.
            Some(Change::Synced(_)) => to.tell(News::Synced(std::mem::take(&mut known))),
            // A container is removed only when this side asks for it.
            Some(Change::Removed(_)) | None => {}
        }
    }
}
