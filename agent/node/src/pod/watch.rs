//! Follows the news of a pod's agent, for as long as the agent lives.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use hartpod_proto::ContainerId;
use hartpod_proto::pod::v1 as pod;
use hartpod_proto::pod::v1::watch_response::Change;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tonic::Streaming;

use super::RunningAgent;
use super::command::{Message, News};
use crate::backend::last_words_blocking;

/// Between attempts to get a living agent to talk.
const RETRY: Duration = Duration::from_millis(200);
/// For what a dead agent said last to be read.
const LAST_WORDS: Duration = Duration::from_millis(500);

/// Passes news on until the agent has ended; the loss itself is the last of them.
///
/// `dir` is the agent's folder, with what it said outside of pod/v1.
pub(super) fn follow(
    agent: RunningAgent,
    dir: PathBuf,
    to: mpsc::UnboundedSender<Message>,
) -> JoinHandle<()> {
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
        let words = tokio::task::spawn_blocking(move || last_words_blocking(&dir)).await;
        let said = words.ok().flatten().map(|words| format!(" (it last said: {words})"));
        tell(&to, News::Lost(how + &said.unwrap_or_default()));
    })
}

/// Until the stream ends.
async fn pass_on(stream: &mut Streaming<pod::WatchResponse>, to: &mpsc::UnboundedSender<Message>) {
    let mut known = BTreeSet::new();
    while let Ok(Some(news)) = stream.message().await {
        match news.change {
            Some(Change::Container(state)) => {
                known.extend(state.container_id.parse::<ContainerId>());
                tell(to, News::Container(state));
            }
            // Once per stream.
            Some(Change::Synced(_)) => tell(to, News::Synced(std::mem::take(&mut known))),
            // A container is removed only when this side asks for it.
            Some(Change::Removed(_)) | None => {}
        }
    }
}

fn tell(to: &mpsc::UnboundedSender<Message>, news: News) {
    // The pod's task may have ended: then nobody needs the news.
    let _ = to.send(Message::News(news));
}
