//! What every part of the daemon shares.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use hartpod_cni::{Cni, ConfTemplate};
use hartpod_container::UserNamespaceError;
use hartpod_container::cgroup::{Leaf, Limits, PathError, Tree, Update, UpdateError, Warning};
use hartpod_images::ImageStore;
use hartpod_proto::{ContainerId, SandboxId};

use crate::backend::{Backends, printable};
use crate::epoch::Epoch;
use crate::events::Events;
use crate::image_use::ImageUses;
use crate::metrics::Own;
use crate::pod::PodInfo;
use crate::pulls::Pulls;
use crate::records::Records;
use crate::registry::Registry;
use crate::spec::SpecSettings;
use crate::stats::Book;
use crate::systemd::{DEFAULT_SLICE, Placeholder, ScopeError, Systemd};
use crate::trash::Trash;

/// The folders and files that the daemon keeps.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    /// Outlives a reboot.
    pub(crate) root: PathBuf,
    /// Does not.
    pub(crate) state: PathBuf,
    /// Where network namespaces get names.
    pub(crate) netns: PathBuf,
    /// Where control groups are mounted.
    pub(crate) cgroups: PathBuf,
}

/// Different warnings of pods that are told at all.
const MAX_WARNED: usize = 64;
/// Characters of a warning.
const MAX_WARNING: usize = 512;
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

    /// Writable layers that nobody needs any more; beside the others, so that they can be renamed.
    pub(crate) fn trash(&self) -> PathBuf {
        self.containers().join("trash")
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
    /// Of the network's configuration, where the kubelet's address ranges are to make it.
    pub(crate) conf_template: Option<Arc<ConfTemplate>>,
    pub(crate) cgroups: Tree,
    /// With systemd's cgroup driver.
    pub(crate) systemd: Option<Systemd>,
    pub(crate) backends: Backends,
    pub(crate) records: Records,
    pub(crate) trash: Arc<Trash>,
    pub(crate) registry: Registry,
    pub(crate) events: Events,
    pub(crate) stats: Book,
    /// Of the daemon's own work.
    pub(crate) own_metrics: Own,
    pub(crate) spec_settings: SpecSettings,
    /// Of guests.
    pub(crate) guest_spec_settings: SpecSettings,
    /// Whether pods can have user namespaces, or why not.
    pub(crate) user_namespaces: Result<(), Arc<UserNamespaceError>>,
    /// Guards the texts that were warned about; held for one look-up.
    pub(crate) warned: Mutex<HashSet<String>>,
}

impl Node {
    /// Warns of what concerns the node as much as the pod: every pod would tell it.
    pub(crate) fn warn_once(&self, pod: &SandboxId, warning: &str) {
        let warning = cut(warning);
        let mut warned = self.warned.lock().unwrap_or_else(PoisonError::into_inner);
        // Texts that differ by pod must not fill the memory.
        if warned.len() < MAX_WARNED && warned.insert(warning.to_owned()) {
            tracing::warn!(sandbox = %pod, warning, "odd but handled; not told again for other pods");
        } else {
            tracing::debug!(sandbox = %pod, warning, "odd but handled");
        }
    }

    /// What an agent warned of. What one in a guest says is its own words, however many: they are told for its pod, and take no room from those
    /// of the node.
    pub(crate) fn warn_of(&self, pod: &PodInfo, warnings: Vec<String>) {
        for warning in warnings {
            match &pod.guest {
                None if !pod.is_guest() => self.warn_once(&pod.id, &warning),
                Some(guest) if guest.may_warn() => {
                    tracing::warn!(sandbox = %pod.id, warning = printable(cut(&warning)), "odd but handled in a guest");
                }
                Some(_) | None => return,
            }
        }
    }

    /// The cgroup leaf `id` (of an agent or a container) below a pod's parent.
    pub(crate) fn leaf(&self, parent: &str, id: &str) -> Result<Leaf, PathError> {
        self.cgroups.leaf(self.parent(parent), id)
    }

    /// A pod's parent, or what it has when its request names none.
    pub(crate) fn parent<'a>(&self, parent: &'a str) -> &'a str {
        match &self.systemd {
            Some(_) if parent.is_empty() => DEFAULT_SLICE,
            Some(_) | None => parent,
        }
    }

    /// With systemd's driver, makes the scope that a leaf is; what is answered is held until the leaf has its process.
    pub(crate) fn scope_blocking(
        &self,
        leaf: &Leaf,
        limits: &Limits,
    ) -> Result<Option<Placeholder>, ScopeError> {
        self.systemd.as_ref().map_or(Ok(None), |systemd| systemd.make_blocking(leaf, limits))
    }

    /// Sets limits anew, and has systemd know where the leaf is a scope.
    pub(crate) fn update_blocking(&self, leaf: &Leaf, update: &Update) -> Result<Vec<Warning>, UpdateError> {
        let warnings = leaf.update_blocking(update)?;
        for error in self.systemd.iter().flat_map(|systemd| systemd.set_blocking(leaf, &update.limits)) {
            tracing::warn!(
                cgroup = leaf.cgroup_path(),
                error = %crate::chain(&error),
                "limits of a scope are not all as systemd has them"
            );
        }
        Ok(warnings)
    }
}

fn cut(warning: &str) -> &str {
    let end = warning.char_indices().nth(MAX_WARNING).map_or(warning.len(), |(at, _)| at);
    &warning[..end]
}
