//! Requests of pod/v1, checked and in the types of what they are for. Nothing here touches the world.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hartpod_container::{GroupPolicy, IpcMode, Overlay, PodPid, PodSetup};
use hartpod_proto::id::InvalidId;
use hartpod_proto::pod::v1::root_fs::Kind;
use hartpod_proto::pod::v1::{
    CreateContainerRequest, NamespaceMode, RootFs, SetUpPodRequest, StartExecRequest,
};
use hartpod_proto::{ContainerId, SandboxId};
use oci_spec::runtime::Spec;

use crate::log_writer::{InvalidPlace, LogPlace};
use crate::stream::{InvalidToken, Token};

/// Longest exec id; it becomes part of a cgroup's name.
const EXEC_ID_MAX: usize = 64;

/// Highest signal of Linux on the architectures that we run on.
const SIGNAL_MAX: i32 = 64;

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
    #[error("rootfs is missing")]
    NoRootFs,
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
    #[error("signal {0} is not 1 to {SIGNAL_MAX}")]
    Signal(i32),
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

fn folder_name(field: &'static str, name: &str) -> Result<(), InvalidRequest> {
    let plain = !name.is_empty() && name != "." && name != ".." && !name.contains(['/', '\0']);
    if plain { Ok(()) } else { Err(InvalidRequest::FolderName { field, name: name.to_owned() }) }
}

/// A pod to set up.
#[derive(Debug)]
pub(crate) struct PodPlan {
    pub(crate) setup: PodSetup,
    pub(crate) log_directory: Option<PathBuf>,
}

impl TryFrom<SetUpPodRequest> for PodPlan {
    type Error = InvalidRequest;

    fn try_from(request: SetUpPodRequest) -> Result<Self, InvalidRequest> {
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
        let optional = |field, path: &str| {
            if path.is_empty() { Ok(None) } else { absolute(field, path).map(Some) }
        };
        Ok(Self {
            log_directory: optional("log_directory", &request.log_directory)?,
            setup: PodSetup {
                pod_id: request.pod_id.parse::<SandboxId>().map_err(InvalidRequest::PodId)?,
                hostname: request.hostname,
                netns: optional("netns_path", &request.netns_path)?,
                ipc,
                pid,
                cgroup_parent: request.cgroup_parent,
                layers_dir: absolute("layers_dir", &request.layers_dir)?,
                containers_dir: absolute("containers_dir", &request.containers_dir)?,
                shm_size: request.shm_size,
                sysctls: request.sysctls.into_iter().collect(),
            },
        })
    }
}

/// Which pid namespace a container gets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum PidPlan {
    Pod,
    Container,
    Node,
    Target(ContainerId),
}

/// A container to make.
#[derive(Debug)]
pub(crate) struct ContainerPlan {
    pub(crate) id: ContainerId,
    pub(crate) spec: Spec,
    pub(crate) rootfs: Overlay,
    pub(crate) user: String,
    pub(crate) groups: GroupPolicy,
    pub(crate) pid: PidPlan,
    pub(crate) tty: bool,
    pub(crate) stdin: bool,
    /// `None` discards the output.
    pub(crate) log: Option<LogPlace>,
}

impl ContainerPlan {
    /// Checks `request` for a pod whose logs are in `log_directory`.
    pub(crate) fn new(
        request: CreateContainerRequest,
        log_directory: Option<&Path>,
    ) -> Result<Self, InvalidRequest> {
        let id = request.container_id.parse().map_err(InvalidRequest::ContainerId)?;
        let spec: Spec = serde_json::from_slice(&request.spec_json)
            .map_err(|error| InvalidRequest::Spec(Arc::new(error)))?;
        let tty = request.stdio.is_some_and(|stdio| stdio.tty);
        let terminal = spec.process().as_ref().and_then(oci_spec::runtime::Process::terminal);
        if tty != terminal.unwrap_or_default() {
            return Err(InvalidRequest::Terminal { tty });
        }
        let Some(RootFs { kind: Some(Kind::Overlay(overlay)) }) = request.rootfs else {
            return Err(InvalidRequest::NoRootFs);
        };
        for layer in &overlay.layers {
            folder_name("rootfs.overlay.layers", layer)?;
        }
        folder_name("rootfs.overlay.scratch", &overlay.scratch)?;
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
            id,
            spec,
            rootfs: Overlay { layers: overlay.layers, scratch: overlay.scratch },
            user: request.user,
            groups: if request.strict_groups { GroupPolicy::Strict } else { GroupPolicy::Merge },
            pid,
            tty,
            stdin: request.stdin,
            log,
        })
    }
}

/// One more process to run.
#[derive(Debug)]
pub(crate) struct ExecPlan {
    pub(crate) id: String,
    pub(crate) args: Vec<String>,
    pub(crate) tty: bool,
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
        let token = |stream, text: &str| {
            if text.is_empty() {
                return Ok(None);
            }
            text.parse::<Token>().map(Some).map_err(|source| InvalidRequest::Token { stream, source })
        };
        let tokens = [
            token("stdin", &request.stdin_token)?,
            token("stdout", &request.stdout_token)?,
            token("stderr", &request.stderr_token)?,
        ];
        Ok(Self { id, args: request.args, tty: request.tty, tokens, timeout_ms: request.timeout_ms })
    }
}

/// A signal's number, if Linux has it.
pub(crate) fn signal(number: i32) -> Result<i32, InvalidRequest> {
    if (1..=SIGNAL_MAX).contains(&number) { Ok(number) } else { Err(InvalidRequest::Signal(number)) }
}

#[cfg(test)]
mod tests;
