//! What every part of the daemon shares.

use std::path::PathBuf;
use std::sync::Arc;

use hartpod_cni::Cni;
use hartpod_container::cgroup::{Leaf, PathError, Tree};
use hartpod_images::ImageStore;
use hartpod_proto::{ContainerId, SandboxId};

use crate::backend::Backends;
use crate::epoch::Epoch;
use crate::image_use::ImageUses;
use crate::pulls::Pulls;
use crate::records::Records;
use crate::registry::Registry;
use crate::spec::SpecSettings;

/// The folders and files that the daemon keeps.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    /// Outlives a reboot.
    pub(crate) root: PathBuf,
    /// Does not.
    pub(crate) state: PathBuf,
    /// Where network namespaces get names.
    pub(crate) netns: PathBuf,
}

/// Before the pod's id in the name of its network namespace file.
const NETNS_PREFIX: &str = "hartpod-";

impl Layout {
    /// Records, and the files that containers see.
    pub(crate) fn pods(&self) -> PathBuf {
        self.root.join("pods")
    }

    /// Writable layers, a folder per container.
    pub(crate) fn containers(&self) -> PathBuf {
        self.root.join("containers")
    }

    pub(crate) fn images(&self) -> PathBuf {
        self.root.join("images")
    }

    /// Results of CNI plugins.
    pub(crate) fn cni_cache(&self) -> PathBuf {
        self.root.join("cni")
    }

    /// A folder per pod with its agent's sockets.
    pub(crate) fn agents(&self) -> PathBuf {
        self.state.join("pods")
    }

    pub(crate) fn agent(&self, pod: &SandboxId) -> PathBuf {
        self.agents().join(pod.as_str())
    }

    /// The writable layer of a container.
    pub(crate) fn scratch(&self, container: &ContainerId) -> PathBuf {
        self.containers().join(container.as_str())
    }

    pub(crate) fn netns_file(&self, pod: &SandboxId) -> PathBuf {
        self.netns.join(format!("{NETNS_PREFIX}{pod}"))
    }
}

/// The node.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) layout: Layout,
    pub(crate) epoch: Epoch,
    pub(crate) images: ImageStore,
    pub(crate) image_uses: Arc<ImageUses>,
    pub(crate) pulls: Pulls,
    pub(crate) cni: Cni,
    pub(crate) cgroups: Tree,
    pub(crate) backends: Backends,
    pub(crate) records: Records,
    pub(crate) registry: Registry,
    pub(crate) spec_settings: SpecSettings,
}

impl Node {
    /// The cgroup leaf `id` (of an agent or a container) below a pod's parent.
    pub(crate) fn leaf(&self, parent: &str, id: &str) -> Result<Leaf, PathError> {
        self.cgroups.leaf(parent, id)
    }
}
