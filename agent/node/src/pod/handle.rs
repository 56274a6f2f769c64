//! What others hold of a pod: a way to its task and a look at its last snapshot.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch};

use super::command::{Command, Gone, Message, Reply};
use super::{PodInfo, PodSnapshot};
use crate::trace::Context;

/// A pod, for everyone but its owning task.
#[derive(Debug, Clone)]
pub(crate) struct PodHandle {
    pub(crate) info: Arc<PodInfo>,
    /// Unbounded, because the task must never wait for room in its own queue; what is in it is bounded all the same. A command has
    /// a caller who waits for its answer, a result is of work that a command or news of a container began, and news are not read while many are not
    /// taken in; a guest's are small besides, and come at a pace.
    pub(super) messages: mpsc::UnboundedSender<Message>,
    pub(crate) snapshot: watch::Receiver<Arc<PodSnapshot>>,
}

impl PodHandle {
    /// The pod as it is now.
    pub(crate) fn snapshot(&self) -> Arc<PodSnapshot> {
        self.snapshot.borrow().clone()
    }

    /// Asks, at once, and gives the answer to wait for. Whoever stops waiting does not stop the work.
    pub(crate) fn ask<T, E>(
        &self,
        command: impl FnOnce(Reply<T, E>) -> Command,
    ) -> impl Future<Output = Result<Result<T, Arc<E>>, Gone>> {
        let (reply, answer) = oneshot::channel();
        self.tell(command(reply));
        async { answer.await.map_err(|_| Gone) }
    }

    /// Asks for nothing back.
    pub(crate) fn tell(&self, command: Command) {
        // A pod whose task has ended needs no telling; its reply channels are dropped, which `ask` notices.
        let _ = self.messages.send(Message::Command(Context::current(), command));
    }
}
