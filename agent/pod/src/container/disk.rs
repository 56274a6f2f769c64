//! Letting a container's disk go, so that the host can take it out of its slot.

use std::io;
use std::os::fd::AsFd as _;
use std::time::Duration;

use hartpod_container::{HostMounts, Slot, fork_role};
use tracing::warn;

use crate::children::Children;
use crate::status_code::chain;

/// What ps shows of the child.
const NAME: &str = "hartpod-disk";

/// How long the kernel may take to unmount what the container's last process has left.
const UNUSED_WAIT: Duration = Duration::from_secs(2);

/// How long a disk may take that does not answer.
const RELEASE_WAIT: Duration = Duration::from_secs(10);

/// Why a disk is still bound.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DiskError {
    #[error("start a child that lets the disk go")]
    Fork(#[source] io::Error),
    #[error("the guest's kernel does not let the disk go")]
    Refused,
    #[error("the disk does not answer")]
    Stuck,
}

/// Unbinds the driver of `slot` once nothing of the disk is mounted any more. In a child: the agent must not wait for a disk.
pub(crate) async fn release(slot: Slot, host: &HostMounts, children: &Children) -> Result<(), DiskError> {
    let release = || {
        if let Err(error) = host.enter() {
            warn!(%error, "cannot enter the mount namespace of the disks");
            return 1;
        }
        match slot.release(UNUSED_WAIT) {
            Ok(()) => 0,
            Err(error) => {
                warn!(error = chain(&error), "a disk is still bound");
                1
            }
        }
    };
    let child = fork_role(NAME, &[host.as_fd()], release).map_err(DiskError::Fork)?;
    match tokio::time::timeout(RELEASE_WAIT, tokio::spawn(children.own(&child))).await {
        Ok(Ok(exit)) if exit.code == 0 => Ok(()),
        Ok(_) => Err(DiskError::Refused),
        // The child stays until the disk answers, and is buried then.
        Err(_) => Err(DiskError::Stuck),
    }
}
