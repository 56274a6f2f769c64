//! From a container's CRI configuration and its image to an OCI runtime spec.
//!
//! Kubernetes' rules and containerd's defaults decide; what cannot be honoured is an error that names the field, never
//! dropped. Nothing here touches the network, a cgroup, a process or a volume.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use hartpod_container::seccomp;
use hartpod_proto::cri::v1 as cri;
use hartpod_proto::pod::v1::NamespaceMode;
use hartpod_proto::{ContainerId, SandboxId};
use oci_spec::image::{Config as ImageConfig, ImageConfiguration};
use oci_spec::runtime::{
    Linux, LinuxResources, PosixRlimit, PosixRlimitBuilder, PosixRlimitType, Process, Root, Spec,
};

use crate::container::ImageVolume;
use crate::validate::Kind;

mod apparmor;
mod capabilities;
mod cdi;
mod devices;
mod error;
mod image_volume;
mod mounts;
mod namespaces;
mod process;
mod resources;
mod security;
mod selinux;
mod settings;
mod stop_signal;
mod update;

pub use error::SpecError;
pub use mounts::Volume;
pub use resources::resources;
pub(crate) use selinux::{pod_labels_blocking, pod_options as pod_selinux_options};
pub use settings::SpecSettings;
pub use stop_signal::to_cri as signal_to_cri;
pub use update::{ResourceChange, change as resource_change};

/// The version of the OCI runtime specification that the specs follow.
const OCI_VERSION: &str = "1.2.0";

/// Everything that decides a container's spec.
#[derive(Debug)]
pub struct SpecInput<'a> {
    pub sandbox: &'a cri::PodSandboxConfig,
    pub container: &'a cri::ContainerConfig,
    /// The image's configuration.
    pub image: &'a ImageConfiguration,
    /// What the image is called in annotations when the request does not say what the user wrote.
    pub image_name: &'a str,
    /// Which images the request's mounts of images show.
    pub(crate) image_volumes: &'a [ImageVolume],
    /// The pod's SELinux level, where it has been given one.
    pub selinux_level: Option<&'a str>,
    pub sandbox_id: &'a SandboxId,
    pub container_id: &'a ContainerId,
    /// The pod's network namespace file; none with the host's network.
    pub netns: Option<&'a Path>,
    /// Pid of the pod's agent, whose /proc/PID/ns files name the pod's other namespaces.
    pub agent_pid: Option<u32>,
    /// Pid of the holder of the pod's shared pid namespace.
    pub holder_pid: Option<u32>,
    /// Pid of the container whose pid namespace is joined.
    pub target_pid: Option<u32>,
    /// Folder that may hold `resolv.conf`, `hostname` and `hosts`.
    pub sandbox_dir: &'a Path,
    /// What the pod is made of: in a guest there are neither the node's files nor its devices.
    pub kind: Kind,
    /// Path of the container's leaf below the hierarchies' roots, e.g. /kubepods/burstable/pod1/ID.
    pub cgroup_path: String,
    pub settings: &'a SpecSettings,
}

/// What the pod agent is told to make.
#[derive(Debug, Clone)]
pub struct ContainerPlan {
    pub spec: Spec,
    /// As in pod/v1: USER[:GROUP] to be looked up in the image.
    pub user: String,
    /// Groups come from the request alone (SupplementalGroupsPolicy Strict).
    pub strict_groups: bool,
    pub pid: NamespaceMode,
    /// With [`NamespaceMode::Target`]: the container whose pid namespace is joined. Whether it is in the same pod and runs
    /// is the caller's to check.
    pub pid_target: String,
    /// Below the pod's log directory; none discards the output.
    pub log_path: Option<PathBuf>,
    pub stdin: bool,
    pub stdin_once: bool,
    pub tty: bool,
    /// Signal that asks the process to stop.
    pub stop_signal: i32,
    /// Of a guest: what of the node is to be shared with it for the spec's mounts.
    pub volumes: Vec<Volume>,
    /// Odd but handled.
    pub warnings: Vec<String>,
}

/// Builds the plan. The request is one that [`crate::validate::container`] let pass. Reads a seccomp profile and looks at
/// device nodes when the request names some, so it may wait for a disk.
pub fn container_spec_blocking(input: &SpecInput<'_>) -> Result<ContainerPlan, SpecError> {
    let security = security(input.container);
    let mut warnings = Vec::new();
    privileged_only_in_a_privileged_pod(input, security)?;
    let image = image_config(input.image);
    let identity = process::identity(security, image)?;
    let namespaces = namespaces::namespaces(input.sandbox, security, &mut warnings)?;
    let stop_signal = stop_signal::stop_signal(input.container, image, &mut warnings)?;
    let labels = selinux::labels_blocking(input, &mut warnings)?;
    let mut process = process(input, image, identity.spec.clone(), &mut warnings)?;
    process.set_selinux_label(labels.as_ref().and_then(|labels| labels.process.clone()));
    let (mut spec, volumes) = spec(input, &namespaces, process, &mut warnings)?;
    if let (Some(labels), Some(linux)) = (labels, spec.linux_mut()) {
        linux.set_mount_label(Some(labels.files));
    }
    cdi::apply_blocking(input.container, input.kind, &input.settings.cdi_folders, &mut spec)?;
    volumes_of_image(image, security, &spec, &mut warnings);
    Ok(ContainerPlan {
        spec,
        user: identity.user,
        strict_groups: identity.strict_groups,
        pid: namespaces.pid,
        pid_target: namespaces.pid_target,
        log_path: log_path(input, &mut warnings),
        stdin: input.container.stdin,
        stdin_once: input.container.stdin_once,
        tty: input.container.tty,
        stop_signal,
        volumes,
        warnings,
    })
}

/// Host name of the pod's own UTS namespace, or none for the host's namespace: a pod on the host's network is the host.
/// A pod on its own network that names none gets a namespace with the host's name, so that it cannot rename the host.
pub fn pod_hostname(sandbox: &cri::PodSandboxConfig) -> Option<String> {
    if namespaces::node_network(sandbox) {
        None
    } else if sandbox.hostname.is_empty() {
        Some(node_hostname())
    } else {
        Some(sandbox.hostname.clone())
    }
}

/// What the pod shares with the node.
pub fn pod_namespaces(linux: &cri::LinuxPodSandboxConfig) -> cri::NamespaceOption {
    linux.security_context.as_ref().and_then(|s| s.namespace_options.clone()).unwrap_or_default()
}

fn node_hostname() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// The container's security context, or one that asks for nothing.
fn security(container: &cri::ContainerConfig) -> &cri::LinuxContainerSecurityContext {
    static NOTHING: LazyLock<cri::LinuxContainerSecurityContext> = LazyLock::new(Default::default);
    container.linux.as_ref().and_then(|l| l.security_context.as_ref()).unwrap_or(&NOTHING)
}

fn image_config(image: &ImageConfiguration) -> &ImageConfig {
    static NOTHING: LazyLock<ImageConfig> = LazyLock::new(Default::default);
    image.config().as_ref().unwrap_or(&NOTHING)
}

fn privileged_only_in_a_privileged_pod(
    input: &SpecInput<'_>,
    security: &cri::LinuxContainerSecurityContext,
) -> Result<(), SpecError> {
    let pod = input.sandbox.linux.as_ref().and_then(|l| l.security_context.as_ref());
    if security.privileged && !pod.is_some_and(|p| p.privileged) {
        return Err(SpecError::invalid(
            "config.linux.security_context.privileged",
            "is set, but the pod was not made privileged",
        ));
    }
    Ok(())
}

/// Folders that the image calls volumes are part of the writable layer here, which only matters when there is none.
fn volumes_of_image(
    image: &ImageConfig,
    security: &cri::LinuxContainerSecurityContext,
    spec: &Spec,
    warnings: &mut Vec<String>,
) {
    let mounted = |volume: &String| {
        spec.mounts().iter().flatten().any(|m| m.destination() == Path::new(volume.trim_end_matches('/')))
    };
    let unwritable: Vec<&str> =
        image.volumes().iter().flatten().filter(|v| !mounted(v)).map(String::as_str).collect();
    if security.readonly_rootfs && !unwritable.is_empty() {
        warnings.push(format!(
            "the image's volumes {} are read-only, as the root is: mount something there",
            unwritable.join(", ")
        ));
    }
}

fn log_path(input: &SpecInput<'_>, warnings: &mut Vec<String>) -> Option<PathBuf> {
    let path = &input.container.log_path;
    if path.is_empty() {
        return None;
    }
    if input.sandbox.log_directory.is_empty() {
        warnings.push(format!("the pod has no log directory: the output for {path} is discarded"));
        return None;
    }
    Some(path.into())
}

fn process(
    input: &SpecInput<'_>,
    image: &ImageConfig,
    user: oci_spec::runtime::User,
    warnings: &mut Vec<String>,
) -> Result<Process, SpecError> {
    let security = security(input.container);
    let hostname = pod_hostname(input.sandbox).unwrap_or_else(node_hostname);
    let capabilities = capabilities::capabilities(security, &input.settings.capabilities, warnings)?;
    let mut process = Process::default();
    process
        .set_terminal(Some(input.container.tty))
        .set_user(user)
        .set_args(Some(process::args(input.container, image)?))
        .set_env(Some(process::env(input.container, image, &hostname)?))
        .set_cwd(process::cwd(input.container, image)?)
        .set_capabilities(Some(capabilities))
        // CRI has no field for limits: a container has those that the daemon was started with.
        .set_rlimits(open_files(input.settings).map(|limit| vec![limit]))
        .set_no_new_privileges(Some(security.no_new_privs))
        .set_apparmor_profile(apparmor::profile_blocking(security, input.settings, input.kind, warnings)?)
        .set_oom_score_adj(Some(match asked_resources(input.container) {
            Some(asked) => resources::oom_score_adj(asked)?,
            None => 0,
        }));
    Ok(process)
}

/// None if the specification refused it, which it has no reason to.
fn open_files(settings: &SpecSettings) -> Option<PosixRlimit> {
    let (soft, hard) = settings.open_files;
    PosixRlimitBuilder::default().typ(PosixRlimitType::RlimitNofile).soft(soft).hard(hard).build().ok()
}

fn asked_resources(container: &cri::ContainerConfig) -> Option<&cri::LinuxContainerResources> {
    container.linux.as_ref()?.resources.as_ref()
}

fn spec(
    input: &SpecInput<'_>,
    namespaces: &namespaces::Namespaces,
    process: Process,
    warnings: &mut Vec<String>,
) -> Result<(Spec, Vec<Volume>), SpecError> {
    let security = security(input.container);
    let devices = match input.kind {
        Kind::Namespaces => {
            let dev = input.settings.privileged_devices.then_some(input.settings.dev.as_path());
            devices::devices_blocking(input.container, dev)?
        }
        Kind::Guest => devices::in_guest(input.container)?,
    };
    let mounts = mounts::mounts(input, namespaces)?;
    let hostname = pod_hostname(input.sandbox);
    let filter = security::seccomp_blocking(security, input.settings, || {
        let held = process.capabilities().as_ref().and_then(|c| c.bounding().clone());
        seccomp::default_profile(&held.unwrap_or_default())
    })?;
    let mut limits = match asked_resources(input.container) {
        Some(asked) => resources(asked, input.settings, warnings)?,
        None => LinuxResources::default(),
    };
    limits.set_devices(Some(devices.rules));

    let mut linux = Linux::default();
    linux
        .set_namespaces(Some(namespaces::list(input, namespaces, hostname.is_some())))
        .set_cgroups_path(Some(input.cgroup_path.clone().into()))
        .set_resources(Some(limits))
        .set_devices(Some(devices.nodes).filter(|d| !d.is_empty()))
        .set_seccomp(filter)
        .set_rootfs_propagation(mounts.rootfs_propagation.map(str::to_owned))
        .set_uid_mappings(namespaces.users.as_ref().map(|maps| mounts::to_oci(maps.uids())))
        .set_gid_mappings(namespaces.users.as_ref().map(|maps| mounts::to_oci(maps.gids())))
        .set_masked_paths(security::proc_paths("masked_paths", security, &security.masked_paths)?)
        .set_readonly_paths(security::proc_paths("readonly_paths", security, &security.readonly_paths)?);

    let mut root = Root::default();
    root.set_path("rootfs".into()).set_readonly(Some(security.readonly_rootfs));
    let mut spec = Spec::default();
    spec.set_version(OCI_VERSION.to_owned())
        .set_root(Some(root))
        .set_mounts(Some(mounts.list))
        .set_process(Some(process))
        .set_hostname(hostname)
        .set_annotations(Some(annotations(input)))
        .set_linux(Some(linux));
    Ok((spec, mounts.volumes))
}

/// Who the container is, under the names that tools (and Kata) know from containerd (internal/cri/annotations).
fn annotations(input: &SpecInput<'_>) -> HashMap<String, String> {
    let pod = input.sandbox.metadata.clone().unwrap_or_default();
    let name = input.container.metadata.as_ref().map(|m| m.name.clone()).unwrap_or_default();
    let image = match &input.container.image {
        Some(image) if !image.user_specified_image.is_empty() => image.user_specified_image.clone(),
        _ => input.image_name.to_owned(),
    };
    [
        ("container-type", "container".to_owned()),
        ("sandbox-id", input.sandbox_id.to_string()),
        ("sandbox-namespace", pod.namespace),
        ("sandbox-uid", pod.uid),
        ("sandbox-name", pod.name),
        ("container-name", name),
        ("image-name", image),
    ]
    .map(|(key, value)| (format!("io.kubernetes.cri.{key}"), value))
    .into()
}

#[cfg(test)]
mod tests;
