//! What the node agent may know of the pod's containers: the latest state of each, and who is watching.
//!
//! A watcher that is slow, or stuck, costs nothing: it is told the latest state of what changed, not every state in between.
//! What it must remember is one number per container that it was told of.

use std::collections::BTreeMap;

use hartpod_proto::pod::v1::watch_response::Change;
use hartpod_proto::pod::v1::{ContainerState, Synced, WatchResponse};
use tokio::sync::{mpsc, watch};
use tonic::Status;

/// A container's state, and when it changed last, counted in changes of the board.
#[derive(Debug)]
struct Entry {
    version: u64,
    state: ContainerState,
}

#[derive(Debug, Default)]
struct Contents {
    version: u64,
    entries: BTreeMap<String, Entry>,
}

/// The states of all containers. Watches end when it is dropped.
#[derive(Debug, Default)]
pub(crate) struct Board {
    contents: watch::Sender<Contents>,
}

/// What a watcher reads from.
pub(crate) type Watch = mpsc::Receiver<Result<WatchResponse, Status>>;

impl Board {
    /// Makes `state` the state of its container; the same state again is no change.
    pub(crate) fn put(&self, state: ContainerState) {
        self.contents.send_if_modified(|contents| {
            if contents.entries.get(&state.container_id).is_some_and(|entry| entry.state == state) {
                return false;
            }
            contents.version += 1;
            let entry = Entry { version: contents.version, state };
            contents.entries.insert(entry.state.container_id.clone(), entry);
            true
        });
    }

    /// Forgets a container.
    pub(crate) fn remove(&self, container_id: &str) {
        self.contents.send_if_modified(|contents| contents.entries.remove(container_id).is_some());
    }

    /// Every state as it is now.
    pub(crate) fn states(&self) -> Vec<ContainerState> {
        self.contents.borrow().entries.values().map(|entry| entry.state.clone()).collect()
    }

    /// Every state as it is now, `synced`, and then each change.
    pub(crate) fn watch(&self) -> Watch {
        let (changes, watch) = mpsc::channel(1);
        tokio::spawn(tell(self.contents.subscribe(), changes));
        watch
    }
}

async fn tell(mut contents: watch::Receiver<Contents>, watcher: mpsc::Sender<Result<WatchResponse, Status>>) {
    let mut told = BTreeMap::new();
    let mut synced = false;
    loop {
        let change = next_change(&contents.borrow_and_update(), &mut told);
        let change = change.or_else(|| (!synced).then_some(Change::Synced(Synced {})));
        if let Some(change) = change {
            synced |= matches!(change, Change::Synced(_));
            if watcher.send(Ok(WatchResponse { change: Some(change) })).await.is_err() {
                return;
            }
            continue;
        }
        tokio::select! {
            changed = contents.changed() => if changed.is_err() { return },
            () = watcher.closed() => return,
        }
    }
}

/// The oldest change that was not told yet; `told` is updated.
fn next_change(contents: &Contents, told: &mut BTreeMap<String, u64>) -> Option<Change> {
    let gone = told.keys().find(|id| !contents.entries.contains_key(*id)).cloned();
    if let Some(id) = gone {
        told.remove(&id);
        return Some(Change::Removed(id));
    }
    let news =
        contents.entries.iter().filter(|(id, entry)| told.get(*id).is_none_or(|&seen| seen < entry.version));
    let (id, entry) = news.min_by_key(|(_, entry)| entry.version)?;
    told.insert(id.clone(), entry.version);
    Some(Change::Container(entry.state.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(id: &str, pid: i32) -> ContainerState {
        ContainerState { container_id: id.to_owned(), pid, ..ContainerState::default() }
    }

    /// The next change, as text.
    async fn next(watch: &mut Watch) -> String {
        match watch.recv().await.unwrap().unwrap().change.unwrap() {
            Change::Container(state) => format!("{}={}", state.container_id, state.pid),
            Change::Synced(_) => "synced".to_owned(),
            Change::Removed(id) => format!("-{id}"),
        }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn what_is_there_comes_first_and_then_each_change_in_order() {
        let board = Board::default();
        board.put(state("b", 1));
        board.put(state("a", 2));
        let mut watch = board.watch();
        for expected in ["b=1", "a=2", "synced"] {
            assert_eq!(next(&mut watch).await, expected);
        }
        board.put(state("b", 3));
        assert_eq!(next(&mut watch).await, "b=3");
        board.remove("a");
        assert_eq!(next(&mut watch).await, "-a");
    }

    #[tokio::test(flavor = "current_thread")]
    async fn a_slow_watcher_is_told_the_latest_state_only() {
        let board = Board::default();
        let mut watch = board.watch();
        assert_eq!(next(&mut watch).await, "synced");
        board.put(state("kept", 1));
        assert_eq!(next(&mut watch).await, "kept=1");
        // One change may be on its way already; nothing else is stored for it.
        board.put(state("first", 0));
        tokio::task::yield_now().await;
        for pid in 0..1000 {
            board.put(state("kept", pid));
            board.put(state("unseen", pid));
        }
        board.remove("unseen");
        board.remove("kept");
        board.put(state("last", 7));
        for expected in ["first=0", "-kept", "last=7"] {
            assert_eq!(next(&mut watch).await, expected);
        }
        assert!(watch.try_recv().is_err());
    }

    #[tokio::test(flavor = "current_thread")]
    async fn watches_end_with_the_board() {
        let board = Board::default();
        let mut watch = board.watch();
        assert_eq!(next(&mut watch).await, "synced");
        drop(board);
        assert!(watch.recv().await.is_none());
    }
}
