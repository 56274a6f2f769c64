//! A container that exists: what an exec, another container or its owner need of it.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use hartpod_proto::ContainerId;

use crate::cgroup::Leaf;
use crate::container::settings::ProcessSettings;
use crate::request::ResolvedUser;
use crate::user_namespace::UserNamespace;

/// Namespaces (by descriptors taken at its start, so that nothing it does later can redirect an exec), cgroup leaf and
/// process settings of a container.
#[derive(Debug)]
pub struct ContainerProcess {
    pub(crate) id: ContainerId,
    pub(crate) leaf: Leaf,
    pub(crate) settings: ProcessSettings,
    pub(crate) user: ResolvedUser,
    pub(crate) home: String,
    /// The pod's, which owns the namespaces below; `None`: the node's.
    pub(crate) users: Option<Arc<UserNamespace>>,
    pub(crate) mounts: OwnedFd,
    /// `None`: the host's.
    pub(crate) cgroup_namespace: Option<OwnedFd>,
    /// `None`: the host's.
    pub(crate) pid_namespace: Option<Arc<OwnedFd>>,
}

impl ContainerProcess {
    /// Its identifier.
    #[must_use]
    pub fn id(&self) -> &ContainerId {
        &self.id
    }

    /// Its cgroup leaf.
    #[must_use]
    pub fn leaf(&self) -> &Leaf {
        &self.leaf
    }

    /// What it runs as.
    #[must_use]
    pub fn user(&self) -> &ResolvedUser {
        &self.user
    }

    pub(crate) fn namespaces(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        let optional = [self.cgroup_namespace.as_ref(), self.pid_namespace.as_deref()];
        let users = self.users.as_ref().map(|users| users.as_fd());
        let all = optional.into_iter().flatten().map(AsFd::as_fd).chain(users);
        [self.mounts.as_fd()].into_iter().chain(all)
    }
}
