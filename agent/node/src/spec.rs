//! From a container's CRI configuration and its image to an OCI runtime spec.
//!
//! Kubernetes' rules and containerd's defaults decide; what cannot be honoured is an error that names the field, never
//! dropped. Nothing here touches the network, a cgroup or a process.

use std::path::{Path, PathBuf};

use hartpod_proto::cri::v1 as cri;
use hartpod_proto::pod::v1::NamespaceMode;
use hartpod_proto::{ContainerId, SandboxId};
use oci_spec::image::ImageConfiguration;
use oci_spec::runtime::Spec;

pub use error::SpecError;
pub use settings::SpecSettings;

mod error;
mod settings;

/// Everything that decides a container's spec.
#[derive(Debug)]
pub struct SpecInput<'a> {
    pub sandbox: &'a cri::PodSandboxConfig,
    pub container: &'a cri::ContainerConfig,
    /// The image's configuration.
    pub image: &'a ImageConfiguration,
    /// What the image is called in annotations when the request does not say what the user wrote.
    pub image_name: &'a str,
    pub sandbox_id: &'a SandboxId,
    pub container_id: &'a ContainerId,
    /// The pod's network namespace file; none with the host's network.
    pub netns: Option<&'a Path>,
    /// Pid of the pod's agent, whose /proc/PID/ns files name the pod's other namespaces.
    pub agent_pid: Option<u32>,
    /// Pid of the holder of the pod's shared pid namespace.
    pub holder_pid: Option<u32>,
    /// Host folder that may hold `resolv.conf`, `hostname` and `hosts`.
    pub sandbox_dir: &'a Path,
    /// Path of the container's leaf below the hierarchies' roots, e.g. /kubepods/burstable/pod1/ID.
    pub cgroup_path: String,
    pub settings: &'a SpecSettings,
}

/// What the pod agent is told to make.
#[derive(Debug, Clone)]
pub struct ContainerPlan {
    pub spec: Spec,
    /// As in pod/v1: "" takes the spec's user, else USER[:GROUP] to be looked up in the image.
    pub user: String,
    /// Groups come from the request alone (SupplementalGroupsPolicy Strict).
    pub strict_groups: bool,
    pub pid: NamespaceMode,
    /// With [`NamespaceMode::Target`]: the container whose pid namespace is joined.
    pub pid_target: String,
    /// Below the pod's log directory; none discards the output.
    pub log_path: Option<PathBuf>,
    pub stdin: bool,
    pub stdin_once: bool,
    pub tty: bool,
    /// Signal that asks the process to stop.
    pub stop_signal: i32,
    /// Odd but handled.
    pub warnings: Vec<String>,
}

/// Builds the plan.
pub fn container_spec(input: &SpecInput<'_>) -> Result<ContainerPlan, SpecError> {
    let _ = input;
    Err(SpecError::Unsupported { field: "config", why: "this build makes no containers yet" })
}
