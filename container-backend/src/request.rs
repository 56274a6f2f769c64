//! What the pod agent asks for: a pod, a container, one more process.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use hartpod_proto::{ContainerId, SandboxId};
use oci_spec::runtime::Spec;

use crate::container::disk::DiskMounts;
use crate::container_process::ContainerProcess;
use crate::id_maps::IdMaps;

/// How this process becomes the agent of a pod. Paths are the host's.
#[derive(Debug, Clone)]
pub struct PodSetup {
    /// Names the agent's own cgroup leaf.
    pub pod_id: SandboxId,
    /// Host name of the pod's own UTS namespace; empty keeps the host's namespace.
    pub hostname: String,
    /// A network namespace file to enter; `None` keeps the host's network.
    pub netns: Option<PathBuf>,
    /// Whose IPC namespace (and /dev/shm) the containers see.
    pub ipc: IpcMode,
    /// Whether the containers share one pid namespace.
    pub pid: PodPid,
    /// Parent of the pod's cgroup leaves; leaves are named by id.
    pub cgroup_parent: String,
    /// Holds the layer folders; containers can only read them. Empty in a guest, where each container brings its disk.
    pub layers_dir: PathBuf,
    /// Holds a folder per container for what it writes. Empty in a guest.
    pub containers_dir: PathBuf,
    /// Size of the pod's /dev/shm in bytes; 0 means [`DEFAULT_SHM_SIZE`].
    pub shm_size: u64,
    /// Kernel parameters of the pod's own namespaces; in a guest any.
    pub sysctls: BTreeMap<String, String>,
    /// SELinux label of the pod's /dev/shm; empty for none.
    pub mount_label: String,
    /// Ids of the pod's user namespace, which owns its network namespace; `None`: the node's. Not in a guest.
    pub users: Option<IdMaps>,
}

impl PodSetup {
    /// The pod has a machine of its own: no folders of a host, and the only network namespace is the pod's.
    pub(crate) fn is_guest(&self) -> bool {
        self.layers_dir.as_os_str().is_empty()
    }
}

/// Same as containerd's (pkg/cri: `defaultShmSize`).
pub const DEFAULT_SHM_SIZE: u64 = 64 * 1024 * 1024;

/// Where the pod's IPC namespace comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IpcMode {
    /// The pod has its own.
    Pod,
    /// The host's.
    Node,
}

/// Whether the pod has a pid namespace of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PodPid {
    /// One for all containers, its init is the holder.
    Shared,
    /// No: each container says for itself.
    PerContainer,
}

/// One container to make.
#[derive(Debug)]
pub struct ContainerRequest<'a> {
    /// Names its cgroup leaf.
    pub id: ContainerId,
    /// Its net, ipc and uts namespaces are the pod's whatever it says; `root.path`, `hostname`, `linux.sysctl`,
    /// `hooks` (the caller runs them), `linux.cgroupsPath` and `linux.rootfsPropagation` (each mount has its own) are not used.
    pub spec: Spec,
    /// What its root file system is made of.
    pub rootfs: RootFs,
    /// Images whose files mounts of the spec show.
    pub images: Vec<VolumeImage>,
    /// Empty: `process.user` of the spec. Else `USER[:GROUP]` by name or number, looked up in the image.
    pub user: String,
    /// How its additional groups are put together.
    pub groups: GroupPolicy,
    /// Its pid namespace.
    pub pid: PidNamespace<'a>,
    /// Folder of the host with its spec, for a container that is to stop where its hooks can see it, see
    /// [`crate::Creating::poll_hook_point`]. The folder `rootfs` is in it, where they find its root.
    pub bundle: Option<PathBuf>,
    /// Its standard streams; must be [`Stdio::Tty`] when the spec says `terminal`.
    pub stdio: Stdio,
}

/// What a root file system is made of.
#[derive(Debug)]
pub enum RootFs {
    /// Folders of the host.
    Overlay(Overlay),
    /// What is on a disk of the guest.
    Disk(DiskMounts),
}

/// An overlay of layer folders.
#[derive(Debug, Clone)]
pub struct Overlay {
    /// Folder names below `layers_dir`, the bottom layer first.
    pub layers: Vec<String>,
    /// Folder name below `containers_dir`; `upper` and `work` are made in it.
    pub scratch: String,
}

/// An image whose files mounts of the spec show: those of type `image` with its name as their source, read-only. The option `subpath=FOLDER`
/// names a folder of it, symlinks followed within the image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeImage {
    /// What mounts call it.
    pub name: String,
    /// The bottom layer first; none for an image without any file.
    pub layers: VolumeLayers,
}

/// Where an image's layers are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VolumeLayers {
    /// Folder names below `layers_dir`.
    Folders(Vec<String>),
    /// Partitions of the container's disk, in a guest.
    Partitions(Vec<u32>),
}

/// CRI's SupplementalGroupsPolicy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GroupPolicy {
    /// The groups of the image's /etc/group that list the user, and those of the spec.
    Merge,
    /// Only those of the spec.
    Strict,
}

/// Where a container's pid namespace comes from.
#[derive(Debug, Clone, Copy)]
pub enum PidNamespace<'a> {
    /// The pod's shared one; needs [`PodPid::Shared`].
    Pod,
    /// Its own.
    Container,
    /// The host's.
    Node,
    /// That of another container of the pod.
    Target(&'a ContainerProcess),
}

/// What the process gets as descriptors 0, 1 and 2.
#[derive(Debug)]
pub enum Stdio {
    /// These.
    Fds {
        /// Readable.
        stdin: OwnedFd,
        /// Writable.
        stdout: OwnedFd,
        /// Writable.
        stderr: OwnedFd,
    },
    /// A new terminal of the container's own devpts, as the controlling one; the other side is handed back.
    Tty(TerminalSize),
}

/// How large a terminal is to begin with, in characters; 0 by 0 is the kernel's way to say that nobody knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct TerminalSize {
    /// Characters in a row.
    pub columns: u16,
    /// Rows.
    pub rows: u16,
}

/// One more process in a running container. Everything it does not say is the container's own: environment, working
/// directory, user, capabilities, limits, seccomp.
#[derive(Debug)]
pub struct ExecRequest {
    /// Names its cgroup sub-leaf; unique in the container.
    pub id: String,
    /// argv.
    pub args: Vec<String>,
    /// Its standard streams.
    pub stdio: Stdio,
}

/// What a process runs as.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ResolvedUser {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Additional group ids, the primary first when it is one of them, no duplicates.
    pub additional_gids: Vec<u32>,
}
