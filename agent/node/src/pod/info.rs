//! What never changes of a pod.

use std::path::PathBuf;

use hartpod_container::IdMaps;
use hartpod_proto::SandboxId;
use hartpod_proto::cri::v1 as cri;
use hartpod_proto::pod::v1::NamespaceMode;

use crate::backend::is_guest;
use crate::guest::GuestInfo;
use crate::names::{ConfigHash, PodName};
use crate::records::PodResources;
use crate::selinux::Level;
use crate::trace;
use crate::validate::user_namespace;

/// Parent of cgroup leaves in a guest (pod.proto).
pub(super) const GUEST_PARENT: &str = "/pod";

/// A pod from its birth on.
#[derive(Debug)]
pub(crate) struct PodInfo {
    pub(crate) id: SandboxId,
    pub(crate) name: PodName,
    /// Of the request that made it.
    pub(crate) hash: ConfigHash,
    /// As requested: "" and "container" mean the same.
    pub(crate) handler: String,
    pub(crate) config: cri::PodSandboxConfig,
    /// Nanoseconds since the Unix epoch.
    pub(crate) created_at: i64,
    /// Its network namespace file; none with the host's network.
    pub(crate) netns: Option<PathBuf>,
    /// What a pod in a guest has besides; none of a namespace pod, and of one that has left its guest behind.
    pub(crate) guest: Option<GuestInfo>,
    /// What its files and processes have in common where SELinux is in use and the pod names no level itself.
    pub(crate) selinux_level: Option<Level>,
}

impl PodInfo {
    /// Parent of the pod's cgroup leaves, as the kubelet named it; may be empty.
    pub(crate) fn cgroup_parent(&self) -> &str {
        self.config.linux.as_ref().map_or("", |l| l.cgroup_parent.as_str())
    }

    /// Its containers are inside a guest.
    pub(crate) fn is_guest(&self) -> bool {
        is_guest(&self.handler)
    }

    /// What its containers end with, in a word.
    pub(crate) fn heart(&self) -> &'static str {
        if self.is_guest() { "guest" } else { "agent" }
    }

    /// What the request that made it said of its size.
    pub(crate) fn asked_resources(&self) -> PodResources {
        let linux = self.config.linux.as_ref();
        PodResources {
            overhead: linux.and_then(|linux| linux.overhead.clone()),
            resources: linux.and_then(|linux| linux.resources.clone()),
        }
    }

    /// See the field.
    pub(crate) fn selinux_level(&self) -> Option<&str> {
        self.selinux_level.as_ref().map(|level| level.text.as_str())
    }

    /// Says in the current span which pod it is about.
    pub(crate) fn note(&self) {
        trace::note("hartpod.sandbox.id", self.id.as_str());
        trace::note("k8s.namespace.name", &self.name.namespace);
        trace::note("k8s.pod.name", &self.name.name);
        trace::note("k8s.pod.uid", &self.name.uid);
    }

    /// Ids of its user namespace, if it has one; a request with others than it can have was refused before.
    pub(crate) fn users(&self) -> Option<IdMaps> {
        user_namespace("", &self.namespaces()).ok().flatten()
    }

    pub(crate) fn namespaces(&self) -> cri::NamespaceOption {
        namespaces(&self.config)
    }
}

/// The pod's choice of namespaces; all of them the pod's own when it makes none.
pub(crate) fn namespaces(config: &cri::PodSandboxConfig) -> cri::NamespaceOption {
    let context = config.linux.as_ref().and_then(|l| l.security_context.as_ref());
    context.and_then(|c| c.namespace_options.clone()).unwrap_or_default()
}

/// The pod has the host's network.
pub(crate) fn uses_host_network(config: &cri::PodSandboxConfig) -> bool {
    namespaces(config).network == cri::NamespaceMode::Node as i32
}

/// CRI's mode as pod/v1 has it; a mode that neither knows was refused before.
pub(crate) fn mode(cri_mode: i32) -> NamespaceMode {
    match cri::NamespaceMode::try_from(cri_mode) {
        Ok(cri::NamespaceMode::Pod) | Err(_) => NamespaceMode::Pod,
        Ok(cri::NamespaceMode::Container) => NamespaceMode::Container,
        Ok(cri::NamespaceMode::Node) => NamespaceMode::Node,
        Ok(cri::NamespaceMode::Target) => NamespaceMode::Target,
    }
}

/// What the kubelet calls the pod; a request without metadata was refused before.
pub(crate) fn pod_name(config: &cri::PodSandboxConfig) -> PodName {
    let metadata = config.metadata.clone().unwrap_or_default();
    PodName {
        name: metadata.name,
        namespace: metadata.namespace,
        uid: metadata.uid,
        attempt: metadata.attempt,
    }
}
