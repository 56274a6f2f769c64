//! One pod: its owning task, and what the rest of the daemon sees of it.

mod birth;
mod bring_up;
mod command;
mod creation;
mod entry;
mod files;
mod guest_kill;
mod handle;
mod happenings;
mod heartbeat;
mod info;
mod last_words;
mod lost_agent;
mod make;
mod network;
mod pace;
mod recording;
mod remove;
mod resize;
mod snapshot;
mod start;
mod state;
mod stop;
mod stopping;
mod task;
mod teardown;
#[cfg(test)]
mod tests;
mod unheard;
mod update;
mod watch;

pub(crate) use birth::{Restored, Unborn, new_pod, restored_pod, spawn};
pub(crate) use bring_up::{RunError, own_leaf};
pub(crate) use command::{Command, Gone};
pub(crate) use entry::{RestoredContainer, cgroup_path, container_name, log_path};
pub(crate) use handle::PodHandle;
pub(crate) use info::{PodInfo, namespaces, pod_name, uses_host_network};
pub(crate) use last_words::last_words_blocking;
pub(crate) use lost_agent::kill_leaves;
pub(crate) use make::CreateError;
pub(crate) use network::{INTERFACE, attachment, bare_attachment};
pub(crate) use remove::{RemoveContainerError, RemovePodError};
pub(crate) use resize::ResizeError;
#[cfg(test)]
pub(crate) use snapshot::test_pod;
pub(crate) use snapshot::{PodSnapshot, RunningAgent};
pub(crate) use start::StartError;
pub(crate) use state::{SandboxEvent, SandboxState};
pub(crate) use stop::StopError;
pub(crate) use stopping::StopContainerError;
pub(crate) use teardown::{HeldAgent, Holdings, tear_down};
pub(crate) use unheard::Word;
pub(crate) use update::UpdateContainerError;
