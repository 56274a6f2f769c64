//! The end of a pod: every container is removed, then the agent answers and ends.

use hartpod_proto::pod::v1::ShutDownResponse;
use tracing::{info, warn};

use super::Supervisor;
use crate::call::Reply;
use crate::container::answer;

/// How far a shutdown is.
#[derive(Debug, Default)]
pub(super) struct ShutDown {
    asked_for: bool,
    over: bool,
    on_over: Vec<Reply<ShutDownResponse>>,
}

impl ShutDown {
    /// From the first request on, nothing new may begin; a shutdown that could not be finished can be asked for again.
    pub(super) fn was_asked_for(&self) -> bool {
        self.asked_for
    }

    /// The pod is gone and the answer is given.
    pub(super) fn is_over(&self) -> bool {
        self.over
    }
}

impl Supervisor {
    pub(super) fn shut_down(&mut self, reply: Reply<ShutDownResponse>) {
        self.shutdown.asked_for = true;
        self.shutdown.on_over.push(reply);
        let ids: Vec<_> = self.containers.keys().cloned().collect();
        info!(containers = ids.len(), "shutting down");
        for id in ids {
            self.begin_removal(&id);
        }
    }

    /// Answers a shutdown once every removal has ended: well, and the agent ends too, or not, and it stays.
    pub(super) fn advance_shutdown(&mut self) {
        if self.shutdown.on_over.is_empty() || self.containers.values().any(|c| c.removal_running) {
            return;
        }
        let left: Vec<_> = self.containers.values().filter_map(|c| c.removal_error.clone()).collect();
        if let Some(error) = left.into_iter().next() {
            return answer(&mut self.shutdown.on_over, &Err(error));
        }
        if let Some(holder) = self.set_up.as_ref().and_then(|set_up| set_up.pod.holder()) {
            if let Err(error) = holder.signal(libc::SIGKILL) {
                warn!(%error, "cannot end the holder of the pid namespace");
            }
        }
        self.shutdown.over = true;
        answer(&mut self.shutdown.on_over, &Ok(ShutDownResponse {}));
    }
}
