//! A container that exists: what an exec, another container or its owner need of it.

use hartpod_proto::ContainerId;

use crate::cgroup::Leaf;

/// Namespaces (by descriptors taken at its start, so that nothing it does later can redirect an exec), cgroup leaf and
/// process settings of a container.
#[derive(Debug)]
pub struct ContainerProcess {
    pub(crate) id: ContainerId,
    pub(crate) leaf: Leaf,
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
}
