//! One pod: its owning task, and what the rest of the daemon sees of it.

mod bring_up;
mod command;
mod containers;
mod files;
mod handle;
mod info;
mod make;
mod network;
mod remove;
mod snapshot;
mod state;
mod stopping;
mod task;
mod teardown;
mod unheard;
mod watch;

pub(crate) use bring_up::{RunError, own_leaf};
pub(crate) use command::{Command, Gone};
pub(crate) use containers::{container_name, kill_leaves, log_path};
pub(crate) use handle::PodHandle;
pub(crate) use info::{PodInfo, pod_name, uses_host_network};
pub(crate) use make::CreateError;
pub(crate) use network::{attachment, bare_attachment};
pub(crate) use remove::{RemoveContainerError, RemovePodError};
#[cfg(test)]
pub(crate) use snapshot::test_pod;
pub(crate) use snapshot::{PodSnapshot, RunningAgent};
pub(crate) use state::{SandboxEvent, SandboxState};
pub(crate) use stopping::StopContainerError;
pub(crate) use task::{
    Restored, RestoredContainer, StartError, StopError, Unborn, new_pod, restored_pod, spawn,
};
pub(crate) use teardown::{HeldAgent, Holdings, tear_down};
pub(crate) use unheard::Word;
