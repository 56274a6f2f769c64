//! Requests of pod/v1, checked and in the types of what they are for. Nothing here touches the world.

mod guest;
mod images;
mod streams;

pub(crate) use streams::{AttachPlan, ResizePlan, port};

use std::fmt;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hartpod_container::cgroup::{LimitError, Limits};
use hartpod_container::hooks::{self, Moment, hooks_of};
use hartpod_container::{
    DiskRoot, GroupPolicy, IdMapError, IdMaps, IdRange, IpcMode, Overlay, PodPid, PodSetup, Slot,
    TerminalSize, VolumeImage,
};
use hartpod_logs::{InvalidPlace, LogPlace};
use hartpod_netlink::Interface;
use hartpod_proto::id::InvalidId;
use hartpod_proto::pod::v1::root_fs::Kind;
use hartpod_proto::pod::v1::{
    self as v1, CreateContainerRequest, NamespaceMode, SetUpPodRequest, StartExecRequest,
};
use hartpod_proto::{ContainerId, SandboxId};
use oci_spec::runtime::{Capability, LinuxResources, Spec};

use crate::container::HookPlan;
use crate::guest::PodFile;
use crate::stream::{InvalidToken, Token};

/// Longest exec id; it becomes part of a cgroup's name.
const EXEC_ID_MAX: usize = 64;

/// Highest signal of Linux on the architectures that we run on.
const SIGNAL_MAX: i32 = 64;

/// Layers of a disk: a GPT has 128 partitions, and one is for the container to write to.
const LAYERS_MAX: u32 = 127;

/// What makes a request one that no pod could fulfil.
#[derive(Debug, Clone, thiserror::Error)]
pub(crate) enum InvalidRequest {
    #[error("container_id")]
    ContainerId(#[source] InvalidId),
    #[error("container_id is that of the pod, whose own cgroup has that name")]
    ContainerIsPod,
    #[error("pod_id")]
    PodId(#[source] InvalidId),
    #[error("pid_target")]
    PidTarget(#[source] InvalidId),
    #[error("{field}: `{}` is not an absolute path", path.display())]
    RelativePath { field: &'static str, path: PathBuf },
    #[error("{field}: `{name}` is not the name of a folder")]
    FolderName { field: &'static str, name: String },
    #[error("{field}: {value} is not a namespace mode that it can have")]
    NamespaceMode { field: &'static str, value: i32 },
    #[error("spec_json is not an OCI runtime spec")]
    Spec(#[source] Arc<serde_json::Error>),
    #[error("spec_json: hooks: {0}")]
    Hook(String),
    #[error("resources_json is not `linux.resources` of an OCI runtime spec")]
    Resources(#[source] Arc<serde_json::Error>),
    #[error("resources_json")]
    Limits(#[source] Arc<LimitError>),
    #[error("rootfs is missing")]
    NoRootFs,
    #[error("{field} is for pods {only}")]
    Elsewhere { field: &'static str, only: Place },
    #[error("rootfs.disk.slot: guests have no slot {0} for disks")]
    Slot(u32),
    #[error("volumes_slot: guests have no slot {0} for volumes")]
    VolumesSlot(u32),
    #[error("rootfs.disk.layers: {0} are more than the {LAYERS_MAX} that a disk has room for")]
    Layers(u32),
    #[error("images: {name:?} has partition {partition}, and the disk has layers in 1 to {last}")]
    Partition { name: String, partition: u32, last: u32 },
    #[error("stdout_token and stderr_token are for containers without log_path")]
    LogAndTokens,
    #[error("stdio.tty is {tty}, the spec's process.terminal says otherwise")]
    Terminal { tty: bool },
    #[error("log_path is given, but the pod has no log_directory")]
    NoLogDirectory,
    #[error("log_path")]
    LogPath(#[from] InvalidPlace),
    #[error("exec_id: `{0}` is not 1 to {EXEC_ID_MAX} letters, digits, `-` or `_`")]
    ExecId(String),
    #[error("args is empty")]
    NoArgs,
    #[error("stderr_token with tty: a terminal has one output")]
    StderrWithTty,
    #[error("{stream}_token")]
    Token { stream: &'static str, source: InvalidToken },
    #[error("attach to what: there is no token")]
    NoTokens,
    #[error("port {0} is not 1 to 65535")]
    Port(u32),
    #[error("a terminal of {columns} by {rows} characters: at most 65535 each")]
    TerminalSize { columns: u64, rows: u64 },
    #[error("signal {0} is not 1 to {SIGNAL_MAX}")]
    Signal(i32),
    #[error("network.interface: `{0}` is not the name of an interface that a pod can have")]
    InterfaceName(String),
    #[error("{field} is not the address of a network card")]
    Mac { field: &'static str },
    #[error("network.mtu: {0} is not 68 to 65535")]
    Mtu(u32),
    #[error("{field}: an address of {length} bytes")]
    Ip { field: &'static str, length: usize },
    #[error("{field}: {ip} has no prefix of {length} bits")]
    Prefix { field: &'static str, ip: IpAddr, length: u32 },
    #[error("network.routes: {0} is no scope")]
    Scope(u32),
    #[error("files: `{0}` is not a plain name")]
    FileName(String),
    #[error("files: {name} has {size} bytes, more than 1 MiB")]
    FileSize { name: String, size: usize },
    #[error("files: {name} has mode {mode:#o}, which has more than permission bits")]
    FileMode { name: String, mode: u32 },
    #[error(transparent)]
    IdMap(#[from] IdMapError),
    #[error("ipc is NODE, but the pod has a user namespace, which does not own the node's")]
    NodeIpc,
    #[error("{field}: {count} are more than {most}")]
    TooMany { field: &'static str, count: usize, most: usize },
}

/// A number that tells requests apart, to recognise one that is repeated.
pub(crate) fn fingerprint(request: &impl prost::Message) -> u64 {
    let mut hasher = DefaultHasher::new();
    request.encode_to_vec().hash(&mut hasher);
    hasher.finish()
}

fn absolute(field: &'static str, path: &str) -> Result<PathBuf, InvalidRequest> {
    let path = PathBuf::from(path);
    if path.is_absolute() { Ok(path) } else { Err(InvalidRequest::RelativePath { field, path }) }
}

/// Whether it names something in a folder, and nothing elsewhere.
fn is_component(name: &str) -> bool {
    !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\0'])
}

fn folder_name(field: &'static str, name: &str) -> Result<(), InvalidRequest> {
    if is_component(name) { Ok(()) } else { Err(InvalidRequest::FolderName { field, name: name.to_owned() }) }
}

/// Where the agent runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Host,
    Guest,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Host => "on a node",
            Self::Guest => "in a guest",
        })
    }
}

/// Parent of a guest's cgroup leaves unless the request names another.
const GUEST_CGROUP: &str = "/pod";

/// A pod to set up.
#[derive(Debug)]
pub(crate) struct PodPlan {
    pub(crate) setup: PodSetup,
    pub(crate) log_directory: Option<PathBuf>,
    /// Nanoseconds since the epoch to set the clock to.
    pub(crate) clock: Option<u64>,
    /// What the guest's network card is to be.
    pub(crate) network: Option<Interface>,
    pub(crate) files: Vec<PodFile>,
}

impl PodPlan {
    /// Checks `request` for a pod at `place`.
    pub(crate) fn new(mut request: SetUpPodRequest, place: Place) -> Result<Self, InvalidRequest> {
        if place == Place::Guest {
            for (field, value) in [
                ("netns_path", &request.netns_path),
                ("layers_dir", &request.layers_dir),
                ("containers_dir", &request.containers_dir),
                ("log_directory", &request.log_directory),
            ] {
                only_at(Place::Host, field, value.is_empty())?;
            }
            only_at(Place::Host, "uids", request.uids.is_empty() && request.gids.is_empty())?;
            if request.cgroup_parent.is_empty() {
                request.cgroup_parent = GUEST_CGROUP.to_owned();
            }
        } else {
            only_at(Place::Guest, "clock_ns", request.clock_ns == 0)?;
            only_at(Place::Guest, "network", request.network.is_none())?;
            only_at(Place::Guest, "files", request.files.is_empty())?;
        }
        let mode = |field, value| match NamespaceMode::try_from(value) {
            Ok(mode) => Ok(mode),
            Err(_) => Err(InvalidRequest::NamespaceMode { field, value }),
        };
        let ipc = match mode("ipc", request.ipc)? {
            NamespaceMode::Pod => IpcMode::Pod,
            NamespaceMode::Node => IpcMode::Node,
            NamespaceMode::Container | NamespaceMode::Target => {
                return Err(InvalidRequest::NamespaceMode { field: "ipc", value: request.ipc });
            }
        };
        let pid = match mode("pid", request.pid)? {
            NamespaceMode::Pod => PodPid::Shared,
            NamespaceMode::Container | NamespaceMode::Node | NamespaceMode::Target => PodPid::PerContainer,
        };
        let users = id_maps(&request.uids, &request.gids)?;
        if users.is_some() && ipc == IpcMode::Node {
            return Err(InvalidRequest::NodeIpc);
        }
        let optional = |field, path: &str| {
            if path.is_empty() { Ok(None) } else { absolute(field, path).map(Some) }
        };
        let folder = |field, path: &str| match place {
            Place::Host => absolute(field, path),
            Place::Guest => Ok(PathBuf::new()),
        };
        Ok(Self {
            log_directory: optional("log_directory", &request.log_directory)?,
            clock: Some(request.clock_ns).filter(|ns| *ns > 0),
            network: request.network.map(guest::interface).transpose()?,
            files: guest::files(request.files)?,
            setup: PodSetup {
                pod_id: request.pod_id.parse::<SandboxId>().map_err(InvalidRequest::PodId)?,
                hostname: request.hostname,
                netns: optional("netns_path", &request.netns_path)?,
                ipc,
                pid,
                cgroup_parent: request.cgroup_parent,
                layers_dir: folder("layers_dir", &request.layers_dir)?,
                containers_dir: folder("containers_dir", &request.containers_dir)?,
                shm_size: request.shm_size,
                sysctls: request.sysctls.into_iter().collect(),
                mount_label: request.mount_label,
                users,
            },
        })
    }
}

fn id_maps(uids: &[v1::IdRange], gids: &[v1::IdRange]) -> Result<Option<IdMaps>, InvalidRequest> {
    if uids.is_empty() && gids.is_empty() {
        return Ok(None);
    }
    let ranges = |list: &[v1::IdRange]| -> Vec<IdRange> {
        let range =
            |r: &v1::IdRange| IdRange { container: r.container_id, host: r.host_id, length: r.length };
        list.iter().map(range).collect()
    };
    Ok(Some(IdMaps::new(ranges(uids), ranges(gids))?))
}

/// Which pid namespace a container gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PidPlan {
    Pod,
    Container,
    Node,
    Target(ContainerId),
}

/// What a root file system is made of.
#[derive(Debug)]
pub(crate) enum RootPlan {
    /// Folders of the host.
    Overlay(Overlay),
    /// A disk of the guest.
    Disk(DiskRoot),
}

/// A container to make.
#[derive(Debug)]
pub(crate) struct ContainerPlan {
    pub(crate) id: ContainerId,
    pub(crate) spec: Spec,
    pub(crate) rootfs: RootPlan,
    pub(crate) images: Vec<VolumeImage>,
    pub(crate) user: String,
    pub(crate) groups: GroupPolicy,
    pub(crate) pid: PidPlan,
    pub(crate) tty: bool,
    pub(crate) terminal_size: TerminalSize,
    pub(crate) stdin: bool,
    pub(crate) stdin_once: bool,
    pub(crate) log: Option<LogPlace>,
    /// stdout and stderr, where there is no log; `None` discards the output.
    pub(crate) tokens: [Option<Token>; 2],
    /// Where the guest's volumes are, if the container has some.
    pub(crate) volumes: Option<Slot>,
    /// Shared with the container, whose start has some of them.
    pub(crate) hooks: Option<Arc<HookPlan>>,
}

impl ContainerPlan {
    /// Checks `request` for a pod at `place` whose logs are in `log_directory`.
    pub(crate) fn new(
        request: CreateContainerRequest,
        log_directory: Option<&Path>,
        place: Place,
    ) -> Result<Self, InvalidRequest> {
        let id: ContainerId = request.container_id.parse().map_err(InvalidRequest::ContainerId)?;
        let spec: Spec = serde_json::from_slice(&request.spec_json)
            .map_err(|error| InvalidRequest::Spec(Arc::new(error)))?;
        let stdio = request.stdio.unwrap_or_default();
        let tty = stdio.tty;
        let process = spec.process().as_ref();
        let terminal = process.and_then(oci_spec::runtime::Process::terminal);
        if tty != terminal.unwrap_or_default() {
            return Err(InvalidRequest::Terminal { tty });
        }
        let terminal_size = match process.and_then(oci_spec::runtime::Process::console_size) {
            Some(size) => streams::terminal_size(size.width(), size.height())?,
            None => TerminalSize::default(),
        };
        let rootfs = request.rootfs.and_then(|rootfs| rootfs.kind).ok_or(InvalidRequest::NoRootFs)?;
        let rootfs = root_plan(rootfs, place)?;
        let images = images::volume_images(request.images, &rootfs)?;
        let pid = match NamespaceMode::try_from(request.pid) {
            Ok(NamespaceMode::Pod) => PidPlan::Pod,
            Ok(NamespaceMode::Container) => PidPlan::Container,
            Ok(NamespaceMode::Node) => PidPlan::Node,
            Ok(NamespaceMode::Target) => {
                PidPlan::Target(request.pid_target.parse().map_err(InvalidRequest::PidTarget)?)
            }
            Err(_) => return Err(InvalidRequest::NamespaceMode { field: "pid", value: request.pid }),
        };
        let log = match (request.log_path.as_str(), log_directory) {
            ("", _) => None,
            (_, None) => return Err(InvalidRequest::NoLogDirectory),
            (path, Some(directory)) => Some(LogPlace::new(directory, Path::new(path))?),
        };
        Ok(Self {
            hooks: hook_plan(&id, &spec, &request.bundle, place)?,
            id,
            spec,
            rootfs,
            images,
            user: request.user,
            groups: if request.strict_groups { GroupPolicy::Strict } else { GroupPolicy::Merge },
            pid,
            tty,
            terminal_size,
            stdin: request.stdin,
            stdin_once: request.stdin_once,
            volumes: volumes(request.volumes_slot, place)?,
            tokens: output_tokens(&stdio, log.is_some())?,
            log,
        })
    }

    /// Whether its processes may set up the pod's network.
    pub(crate) fn administers_network(&self) -> bool {
        let capabilities = self.spec.process().as_ref().and_then(|process| process.capabilities().as_ref());
        let bounding = capabilities.and_then(|capabilities| capabilities.bounding().as_ref());
        bounding.is_some_and(|bounding| bounding.contains(&Capability::NetAdmin))
    }

    /// The slot of its disk, in a guest.
    pub(crate) fn slot(&self) -> Option<Slot> {
        match &self.rootfs {
            RootPlan::Overlay(_) => None,
            RootPlan::Disk(disk) => Some(disk.slot),
        }
    }
}

fn hook_plan(
    id: &ContainerId,
    spec: &Spec,
    bundle: &str,
    place: Place,
) -> Result<Option<Arc<HookPlan>>, InvalidRequest> {
    let Some(hooks) = hooks_of(spec) else { return Ok(None) };
    only_at(Place::Host, "spec_json: hooks", place == Place::Host)?;
    let odd =
        Moment::ALL.iter().flat_map(|moment| moment.of(hooks)).find_map(|hook| hooks::check(hook).err());
    if let Some(why) = odd {
        return Err(InvalidRequest::Hook(why));
    }
    let bundle = absolute("bundle", bundle)?;
    Ok(Some(Arc::new(HookPlan::new(id.clone(), spec, hooks.clone(), bundle))))
}

fn volumes(slot: u32, place: Place) -> Result<Option<Slot>, InvalidRequest> {
    only_at(Place::Guest, "volumes_slot", slot == 0 || place == Place::Guest)?;
    match slot {
        0 => Ok(None),
        slot => Slot::new(slot).map(Some).ok_or(InvalidRequest::VolumesSlot(slot)),
    }
}

fn only_at(only: Place, field: &'static str, is_unused: bool) -> Result<(), InvalidRequest> {
    if is_unused { Ok(()) } else { Err(InvalidRequest::Elsewhere { field, only }) }
}

fn root_plan(kind: Kind, place: Place) -> Result<RootPlan, InvalidRequest> {
    match kind {
        Kind::Overlay(overlay) => {
            only_at(Place::Host, "rootfs.overlay", place == Place::Host)?;
            for layer in &overlay.layers {
                folder_name("rootfs.overlay.layers", layer)?;
            }
            folder_name("rootfs.overlay.scratch", &overlay.scratch)?;
            Ok(RootPlan::Overlay(Overlay { layers: overlay.layers, scratch: overlay.scratch }))
        }
        Kind::Disk(disk) => {
            only_at(Place::Guest, "rootfs.disk", place == Place::Guest)?;
            let slot = Slot::new(disk.slot).ok_or(InvalidRequest::Slot(disk.slot))?;
            let layers = disk.layers.saturating_add(disk.volume_layers);
            if layers > LAYERS_MAX {
                return Err(InvalidRequest::Layers(layers));
            }
            let (layers, volume_layers) = (disk.layers, disk.volume_layers);
            Ok(RootPlan::Disk(DiskRoot { slot, layers, volume_layers }))
        }
    }
}

fn token(stream: &'static str, text: &str) -> Result<Option<Token>, InvalidRequest> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse::<Token>().map(Some).map_err(|source| InvalidRequest::Token { stream, source })
}

fn output_tokens(stdio: &v1::Stdio, has_log: bool) -> Result<[Option<Token>; 2], InvalidRequest> {
    if stdio.tty && !stdio.stderr_token.is_empty() {
        return Err(InvalidRequest::StderrWithTty);
    }
    let tokens = [token("stdout", &stdio.stdout_token)?, token("stderr", &stdio.stderr_token)?];
    if has_log && tokens.iter().any(Option::is_some) {
        return Err(InvalidRequest::LogAndTokens);
    }
    Ok(tokens)
}

/// One more process to run.
#[derive(Debug)]
pub(crate) struct ExecPlan {
    pub(crate) id: String,
    pub(crate) args: Vec<String>,
    pub(crate) tty: bool,
    pub(crate) size: TerminalSize,
    /// stdin, stdout and stderr; `None` is /dev/null.
    pub(crate) tokens: [Option<Token>; 3],
    pub(crate) timeout_ms: u64,
}

impl TryFrom<StartExecRequest> for ExecPlan {
    type Error = InvalidRequest;

    fn try_from(request: StartExecRequest) -> Result<Self, InvalidRequest> {
        let id = request.exec_id;
        let plain = id.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
        if id.is_empty() || id.len() > EXEC_ID_MAX || !plain {
            return Err(InvalidRequest::ExecId(id.chars().take(EXEC_ID_MAX + 1).collect()));
        }
        if request.args.is_empty() {
            return Err(InvalidRequest::NoArgs);
        }
        if request.tty && !request.stderr_token.is_empty() {
            return Err(InvalidRequest::StderrWithTty);
        }
        let tokens = [
            token("stdin", &request.stdin_token)?,
            token("stdout", &request.stdout_token)?,
            token("stderr", &request.stderr_token)?,
        ];
        Ok(Self {
            id,
            args: request.args,
            tty: request.tty,
            size: streams::terminal_size(request.columns.into(), request.rows.into())?,
            tokens,
            timeout_ms: request.timeout_ms,
        })
    }
}

/// Limits that an update names.
pub(crate) fn limits(json: &[u8]) -> Result<Limits, InvalidRequest> {
    let resources: LinuxResources =
        serde_json::from_slice(json).map_err(|error| InvalidRequest::Resources(Arc::new(error)))?;
    Limits::from_oci(&resources).map_err(|error| InvalidRequest::Limits(Arc::new(error)))
}

/// A signal's number, if Linux has it.
pub(crate) fn signal(number: i32) -> Result<i32, InvalidRequest> {
    if (1..=SIGNAL_MAX).contains(&number) { Ok(number) } else { Err(InvalidRequest::Signal(number)) }
}

#[cfg(test)]
mod tests;
