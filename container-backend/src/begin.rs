//! The agent starts a container or an exec: requests become plans, plans become children.

use std::ffi::CString;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use oci_spec::runtime::{LinuxNamespaceType, Spec};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::cgroup::{Leaf, Limits};
use crate::channel::{Channel, Successor};
use crate::container::create::{self, CgroupNamespace, CreatePlan, PidJoin, RootAccess, StreamPlan};
use crate::container::exec::{self, ExecPlan};
use crate::container::image_volume::ImageLayers;
use crate::container::mount_plan::MountPlan;
use crate::container::settings::{ProcessSettings, text};
use crate::container::user::UserRequest;
use crate::container::{console, devices, rootfs};
use crate::container_process::ContainerProcess;
use crate::failure::CommandError;
use crate::failure::Failure;
use crate::id_maps::IdMaps;
use crate::launch::{Creating, Draft, DraftPid, Execing, LaunchError, agent};
use crate::pod::Pod;
use crate::report::Listener;
use crate::request::{
    ContainerRequest, ExecRequest, PidNamespace, ResolvedUser, RootFs, Stdio, VolumeImage, VolumeLayers,
};
use crate::sys::clone::{self, Birth};
use crate::sys::mailbox::Mailbox;
use crate::user_namespace::UserNamespace;

impl Pod {
    /// Starts making a container: its cgroup leaf is there when this returns, all else is done by a child that the
    /// result stands for. On an error, and after a failure of the later stages, the leaf may exist: destroy it.
    ///
    /// # Errors
    /// The request makes no sense, or the leaf or the child could not be made.
    pub fn begin_create(&self, request: ContainerRequest<'_>) -> Result<Creating, LaunchError> {
        let settings = ProcessSettings::from_oci(&request.spec)?;
        let pid = JoinedPid::new(self, &request.pid)?;
        let lowered = Lowered::new(&request)?;
        check_users(self.users.as_deref(), &request.spec)?;
        if self.users.is_some() && request.bundle.is_some() {
            // They expect the host's mounts around the container's root, which is of no use without rights on the node.
            let why = "createRuntime, createContainer and prestart hooks are not supported in pods with a user namespace";
            return Err(LaunchError::Spec { why: why.into() });
        }
        let leaf = self.container_leaf(&request.id)?;
        let warnings = make_leaf(&leaf, &request.spec)?;
        let (streams, console) = streams(request.stdio)?;
        let plan = CreatePlan {
            host: &self.host,
            agent_mounts: self.mounts.as_fd(),
            leaf: leaf.clone(),
            keyring: keyring(request.id.as_str())?,
            rootfs: request.rootfs,
            overlay_api: self.overlay_api,
            users: self.users.as_deref(),
            mounts: lowered.mounts,
            images: lowered.images,
            devices: devices::plan(request.spec.linux().as_ref().and_then(|linux| linux.devices().as_ref())),
            masked_paths: lowered.masked_paths,
            read_only_paths: lowered.read_only_paths,
            root: lowered.root,
            mount_label: lowered.mount_label,
            cgroup_namespace: lowered.cgroup_namespace,
            pid: pid.join(),
            user: lowered.user,
            argv: lowered.argv,
            settings: settings.clone(),
            bundle: request.bundle,
        };
        let (gate_reader, gate) = pipe_with(PipeFlags::CLOEXEC).map_err(agent("make a gate"))?;
        let (listener, report) = report()?;
        let cgroup = leaf.open_unified()?;
        let birth = Birth { new_pid: matches!(pid, JoinedPid::Own(None)), cgroup: Some(cgroup.as_fd()) };
        let child = clone::fork(&birth, || create::main(&plan, streams, report, gate_reader))
            .map_err(agent("clone the container's process"))?;
        let draft = Draft {
            id: request.id,
            leaf: leaf.clone(),
            settings,
            argv0: lowered.argv0,
            own_cgroup_namespace: lowered.cgroup_namespace == CgroupNamespace::Private,
            pid: pid.draft(),
            users: self.users.clone(),
            gate,
            warnings,
        };
        drop(plan);
        Ok(Creating::new(Channel::new(listener, child, console, pid.into_successor()), draft))
    }

    /// Starts one more process in a running container, in a cgroup sub-leaf of its own
    /// (`container.leaf().exec_leaf(id)`), which is there when this returns: destroy it when the exec is over.
    ///
    /// # Errors
    /// The request makes no sense, or the sub-leaf or the child could not be made.
    pub fn begin_exec(
        &self,
        container: &ContainerProcess,
        request: ExecRequest,
    ) -> Result<Execing, LaunchError> {
        let argv = argv(&request.args)?;
        let leaf = container.leaf.exec_leaf(&request.id)?;
        leaf.create()?;
        let (streams, console) = streams(request.stdio)?;
        let mailbox = container.pid_namespace.is_some().then(Mailbox::new);
        let mailbox = mailbox.transpose().map_err(agent("make a mailbox"))?;
        let plan = ExecPlan {
            container,
            keyring: keyring(container.id.as_str())?,
            argv,
            hook: None,
            streams,
            mailbox: mailbox.as_ref().map(Mailbox::address),
        };
        let (listener, report) = report()?;
        let cgroup = leaf.open_unified()?;
        let birth = Birth { new_pid: false, cgroup: Some(cgroup.as_fd()) };
        let child =
            clone::fork(&birth, || exec::main(plan, report)).map_err(agent("clone the exec's process"))?;
        let argv0 = request.args.into_iter().next().unwrap_or_default();
        let successor = mailbox.map_or(Successor::Nobody, Successor::Program);
        Ok(Execing::new(Channel::new(listener, child, console, successor), argv0))
    }
}

/// The pid namespace of a new container, and what it takes to get there.
enum JoinedPid<'a> {
    /// Its own; with a user namespace, by a process that is told of in the mailbox.
    Own(Option<Mailbox>),
    Node,
    Pod(Arc<OwnedFd>, Mailbox),
    Target(Arc<OwnedFd>, &'a ContainerProcess, Mailbox),
}

impl<'a> JoinedPid<'a> {
    fn new(pod: &Pod, wanted: &PidNamespace<'a>) -> Result<Self, LaunchError> {
        let mailbox = || Mailbox::new().map_err(agent("make a mailbox"));
        Ok(match wanted {
            PidNamespace::Container => Self::Own(pod.users.as_ref().map(|_| mailbox()).transpose()?),
            PidNamespace::Node => Self::Node,
            PidNamespace::Pod => {
                let none = || LaunchError::Spec { why: "the pod has no pid namespace to share".into() };
                let holder = pod.holder.as_ref().ok_or_else(none)?;
                Self::Pod(Arc::clone(&holder.pid_namespace), mailbox()?)
            }
            PidNamespace::Target(container) => match &container.pid_namespace {
                Some(namespace) => Self::Target(Arc::clone(namespace), container, mailbox()?),
                None => Self::Node,
            },
        })
    }

    fn join(&self) -> PidJoin<'_> {
        match self {
            Self::Own(mailbox) => PidJoin::Own { mailbox: mailbox.as_ref().map(Mailbox::address) },
            Self::Node => PidJoin::Node,
            Self::Pod(namespace, mailbox) => {
                PidJoin::Pod { namespace: namespace.as_fd(), mailbox: mailbox.address() }
            }
            Self::Target(namespace, container, mailbox) => PidJoin::Target {
                namespace: namespace.as_fd(),
                mounts: container.mounts.as_fd(),
                mailbox: mailbox.address(),
            },
        }
    }

    fn draft(&self) -> DraftPid {
        match self {
            Self::Own(_) => DraftPid::Own,
            Self::Node => DraftPid::Node,
            Self::Pod(namespace, _) | Self::Target(namespace, ..) => DraftPid::Joined(Arc::clone(namespace)),
        }
    }

    fn into_successor(self) -> Successor {
        match self {
            Self::Own(None) | Self::Node => Successor::Nobody,
            Self::Own(Some(mailbox)) => Successor::Init(mailbox),
            Self::Pod(_, mailbox) | Self::Target(_, _, mailbox) => Successor::Program(mailbox),
        }
    }
}

/// The spec's user namespace is the pod's, which is there already.
fn check_users(pod: Option<&UserNamespace>, spec: &Spec) -> Result<(), LaunchError> {
    let linux = spec.linux().as_ref();
    let (uids, gids) =
        (linux.and_then(|l| l.uid_mappings().as_ref()), linux.and_then(|l| l.gid_mappings().as_ref()));
    let asked = IdMaps::from_oci(uids, gids).map_err(|error| LaunchError::Spec {
        why: format!("linux.uidMappings and linux.gidMappings: {error}"),
    })?;
    if asked.as_ref() == pod.map(UserNamespace::maps) {
        return Ok(());
    }
    let why = "linux.uidMappings and linux.gidMappings are not those of the pod's user namespace";
    Err(LaunchError::Spec { why: why.into() })
}

/// What the child needs of the spec beside the process settings.
struct Lowered {
    mounts: Vec<MountPlan>,
    images: Vec<ImageLayers>,
    masked_paths: Vec<String>,
    read_only_paths: Vec<String>,
    root: RootAccess,
    mount_label: Option<String>,
    cgroup_namespace: CgroupNamespace,
    user: UserRequest,
    argv: Vec<CString>,
    argv0: String,
}

impl Lowered {
    fn new(request: &ContainerRequest<'_>) -> Result<Self, LaunchError> {
        let spec = &request.spec;
        check_root(&request.rootfs)?;
        let process = spec.process().as_ref();
        let terminal = process.and_then(|p| p.terminal()).unwrap_or(false);
        if terminal != matches!(request.stdio, Stdio::Tty(_)) {
            return Err(LaunchError::Spec {
                why: "process.terminal and the standard streams disagree".into(),
            });
        }
        let args = process.and_then(|p| p.args().clone()).unwrap_or_default();
        let linux = spec.linux().as_ref();
        let namespaces = linux.and_then(|l| l.namespaces().as_deref()).unwrap_or_default();
        let own_cgroups =
            namespaces.iter().any(|n| n.typ() == LinuxNamespaceType::Cgroup && n.path().is_none());
        let read_only = spec.root().as_ref().and_then(|root| root.readonly()).unwrap_or(false);
        let mounts =
            spec.mounts().iter().flatten().map(MountPlan::from_oci).collect::<Result<_, Failure>>()?;
        let user = process.map(|p| p.user());
        let fallback = ResolvedUser {
            uid: user.map_or(0, |u| u.uid()),
            gid: user.map_or(0, |u| u.gid()),
            additional_gids: user.and_then(|u| u.additional_gids().clone()).unwrap_or_default(),
        };
        let images = request.images.iter().map(image_layers).collect::<Result<_, _>>()?;
        Ok(Self {
            mounts,
            images,
            masked_paths: linux.and_then(|l| l.masked_paths().clone()).unwrap_or_default(),
            read_only_paths: linux.and_then(|l| l.readonly_paths().clone()).unwrap_or_default(),
            root: if read_only { RootAccess::ReadOnly } else { RootAccess::ReadWrite },
            mount_label: linux.and_then(|l| l.mount_label().clone()).filter(|label| !label.is_empty()),
            cgroup_namespace: if own_cgroups { CgroupNamespace::Private } else { CgroupNamespace::Host },
            user: UserRequest { text: request.user.clone(), fallback, groups: request.groups },
            argv: argv(&args)?,
            argv0: args.into_iter().next().unwrap_or_default(),
        })
    }
}

/// Names become parts of paths and of mount options.
fn is_plain(name: &str) -> bool {
    let good = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    !name.is_empty() && !name.starts_with('.') && name.len() <= 128 && name.bytes().all(good)
}

fn too_many_layers(count: usize) -> LaunchError {
    let why = format!("{count} layers are more than the {} that overlayfs takes", rootfs::MAX_LAYERS);
    LaunchError::Spec { why }
}

fn check_root(root: &RootFs) -> Result<(), LaunchError> {
    let layers = match root {
        RootFs::Overlay(overlay) => {
            if let Some(name) = overlay.layers.iter().chain([&overlay.scratch]).find(|name| !is_plain(name)) {
                let why = format!("`{name}` is not the name of a layer or scratch folder");
                return Err(LaunchError::Spec { why });
            }
            overlay.layers.len()
        }
        RootFs::Disk(disk) => disk.layers(),
    };
    match layers {
        0 => Err(LaunchError::Spec { why: "the image has no layers".into() }),
        1..=rootfs::MAX_LAYERS => Ok(()),
        count => Err(too_many_layers(count)),
    }
}

fn image_layers(image: &VolumeImage) -> Result<ImageLayers, LaunchError> {
    if let VolumeLayers::Folders(names) = &image.layers {
        if let Some(name) = names.iter().find(|name| !is_plain(name)) {
            return Err(LaunchError::Spec { why: format!("`{name}` is not the name of a layer") });
        }
    }
    let layers = ImageLayers::of(image);
    match layers.folders.len() {
        0..=rootfs::MAX_LAYERS => Ok(layers),
        count => Err(too_many_layers(count)),
    }
}

fn argv(args: &[String]) -> Result<Vec<CString>, LaunchError> {
    if args.is_empty() {
        return Err(Failure::from(CommandError::Empty).into());
    }
    args.iter().map(|arg| text("process.args", arg)).collect()
}

fn make_leaf(leaf: &Leaf, spec: &Spec) -> Result<Vec<String>, LaunchError> {
    let resources = spec.linux().as_ref().and_then(|linux| linux.resources().as_ref());
    let limits = Limits::from_oci(resources.unwrap_or(&Default::default()))?;
    Ok(leaf.create(&limits)?.iter().map(ToString::to_string).collect())
}

fn keyring(id: &str) -> Result<CString, LaunchError> {
    text("id", &format!("hartpod-{id}"))
}

/// The child's streams, and the agent's end of the socket that a terminal comes over.
fn streams(stdio: Stdio) -> Result<(StreamPlan, Option<OwnedFd>), LaunchError> {
    match stdio {
        Stdio::Fds { stdin, stdout, stderr } => Ok((StreamPlan::Three([stdin, stdout, stderr]), None)),
        Stdio::Tty(size) => {
            let (ours, theirs) = console::socket().map_err(agent("make a socket for the terminal"))?;
            Ok((StreamPlan::NewTerminal { socket: theirs, size }, Some(ours)))
        }
    }
}

/// The report pipe: the agent's end never blocks, the child's does.
pub(crate) fn report() -> Result<(Listener, OwnedFd), LaunchError> {
    let (reader, writer) = pipe_with(PipeFlags::CLOEXEC).map_err(agent("make a report pipe"))?;
    rustix::io::ioctl_fionbio(&reader, true).map_err(agent("make a report pipe"))?;
    Ok((Listener::new(reader), writer))
}
