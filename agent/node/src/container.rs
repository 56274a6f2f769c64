//! One container, as the node sees it.

mod exec;
mod exec_target;
mod exit;
mod snapshot;
mod state;

pub(crate) use exec::{ExecError, exec_sync};
pub(crate) use exec_target::{BegunExec, ExecTarget};
pub(crate) use exit::Exit;
#[cfg(test)]
pub(crate) use snapshot::test_container;
pub(crate) use snapshot::{ContainerInfo, ContainerSnapshot, ImageVolume, User};
pub(crate) use state::{ContainerEvent, ContainerState, Refused};
