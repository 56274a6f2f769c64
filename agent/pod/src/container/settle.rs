//! After a container's init: nothing of it may go on running, and its last words belong into its log.

use std::io;
use std::time::Duration;

use hartpod_container::cgroup::{CgroupError, DestroyError, Leaf};
use tokio::time::{sleep, timeout};
use tracing::warn;

use super::disk::DiskError;
use super::leaf::emptied;

/// How long what was killed may take to go. Longer is a process that hangs in the kernel, on a dead disk or mount.
const EMPTY_WAIT: Duration = Duration::from_secs(10);

/// How long the log writer may take to write what is left once nobody can add to it.
pub(super) const DRAIN_WAIT: Duration = Duration::from_secs(2);

/// Pauses between tries to remove an empty leaf, which the kernel may refuse for a moment without telling when to try again.
const REMOVE_PAUSES: [Duration; 6] = [
    Duration::from_millis(1),
    Duration::from_millis(4),
    Duration::from_millis(16),
    Duration::from_millis(64),
    Duration::from_millis(256),
    Duration::from_millis(1024),
];

/// Why a container's leaf is still there.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RemoveError {
    #[error("kill its processes")]
    Kill(#[source] CgroupError),
    #[error("watch its processes go")]
    Watch(#[source] io::Error),
    #[error("its processes are not gone {} seconds after they were killed", EMPTY_WAIT.as_secs())]
    Stuck,
    #[error("remove its cgroup")]
    Cgroup(#[source] DestroyError),
    #[error("let its disk go")]
    Disk(#[source] DiskError),
}

/// Kills what is left of a container whose init has ended, waits until it is gone, and then for `log_ended`. Both waits are
/// bounded, and what they could not wait for is returned in words.
pub(crate) async fn settle(leaf: &Leaf, log_ended: impl Future<Output = ()>) -> Vec<String> {
    let mut odd = Vec::new();
    if let Err(error) = empty(leaf).await {
        odd.push(crate::status_code::chain(&error));
    }
    if timeout(DRAIN_WAIT, log_ended).await.is_err() {
        odd.push(format!("its log was not written to the end within {} seconds", DRAIN_WAIT.as_secs()));
    }
    odd
}

/// Kills what is in the leaf, waits until that is gone, and removes the leaf. A leaf that is gone is success.
pub(crate) async fn remove(leaf: &Leaf) -> Result<(), RemoveError> {
    empty(leaf).await?;
    for pause in REMOVE_PAUSES {
        match leaf.remove() {
            Ok(()) => return Ok(()),
            Err(error) => warn!(%error, leaf = leaf.cgroup_path(), "the cgroup is still busy"),
        }
        sleep(pause).await;
    }
    leaf.remove().map_err(RemoveError::Cgroup)
}

async fn empty(leaf: &Leaf) -> Result<(), RemoveError> {
    leaf.kill().map_err(RemoveError::Kill)?;
    let Ok(events) = leaf.open_events() else {
        // Not there, or so broken that the removal will say more.
        return Ok(());
    };
    match timeout(EMPTY_WAIT, emptied(events)).await {
        Ok(outcome) => outcome.map_err(RemoveError::Watch),
        Err(_) => Err(RemoveError::Stuck),
    }
}
