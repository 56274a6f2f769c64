//! This process as the agent of one pod.

mod holder;
mod owned_namespaces;
pub(crate) mod private_root;
mod sysctl;

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hartpod_proto::ContainerId;
use rustix::process::DumpableBehavior;
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use crate::cgroup::{CgroupError, DetectError, Leaf, Limits, PathError, Tree};
use crate::child::Child;
use crate::container::rootfs::OverlayApi;
use crate::failure::Failure;
use crate::host_mounts::HostMounts;
use crate::request::{IpcMode, PodPid, PodSetup};
use crate::sys::exec;
use crate::user_namespace::{UserNamespace, UserNamespaceError};
use holder::Holder;

/// The agent must outlive what it looks after; the same as containerd gives its shims.
const AGENT_OOM_SCORE: i32 = -998;
/// What ps shows; at most 15 bytes.
const NAME: &std::ffi::CStr = c"hartpod-pod";

/// The pod that this process is the agent of: it is in the pod's network, IPC and UTS namespaces, and in a private
/// mount namespace that holds nothing but what containers are made from.
#[derive(Debug)]
pub struct Pod {
    pub(crate) host: HostMounts,
    /// The agent's own mount namespace.
    pub(crate) mounts: OwnedFd,
    /// Namespaces of the host that this process has left, for hooks.
    pub(crate) left: Vec<OwnedFd>,
    pub(crate) holder: Option<Holder>,
    pub(crate) overlay_api: OverlayApi,
    /// The pod's own, which owns all of its namespaces; the agent is not in it.
    pub(crate) users: Option<Arc<UserNamespace>>,
    tree: Tree,
    cgroup_parent: String,
    leaf: Leaf,
}

/// Why this process could not become the agent of a pod.
#[derive(Debug, thiserror::Error)]
pub enum SetUpError {
    /// The caller has threads, which would stay behind in the old namespaces.
    #[error("the agent has {count} threads, it must have one")]
    Threads {
        /// How many.
        count: usize,
    },
    /// The node's cgroups.
    #[error(transparent)]
    Cgroups(#[from] DetectError),
    /// The name of the pod's cgroup.
    #[error(transparent)]
    CgroupName(#[from] PathError),
    /// The agent's own cgroup leaf.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// The pod's network namespace file.
    #[error("network namespace {}", .path.display())]
    NetworkNamespace {
        /// On the host.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The pod's user namespace.
    #[error("user namespace of the pod")]
    UserNamespace(#[from] UserNamespaceError),
    /// The file system of a folder has no mounts with ids of their own (Linux 5.12 and later, by file system).
    #[error("show {} with the ids of the pod's user namespace", .path.display())]
    Ids {
        /// On the host.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The process that makes the pod's IPC and UTS namespaces.
    #[error("the pod's namespaces")]
    Namespaces {
        /// What it said.
        #[source]
        failure: Failure,
    },
    /// A folder that the containers are made from.
    #[error("folder {}", .path.display())]
    Folder {
        /// On the host.
        path: PathBuf,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// A kernel parameter that is not the pod's own to set.
    #[error("sysctl `{key}` does not belong to the pod's own namespaces")]
    ForeignSysctl {
        /// Its name.
        key: String,
    },
    /// A kernel parameter was refused.
    #[error("set sysctl `{key}` to `{value}`")]
    Sysctl {
        /// Its name.
        key: String,
        /// As given.
        value: String,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
    /// The holder of the shared pid namespace.
    #[error("the holder of the pod's pid namespace")]
    Holder {
        /// What it said.
        #[source]
        failure: Failure,
    },
    /// Any other step.
    #[error("{what}")]
    Step {
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        #[source]
        source: io::Error,
    },
}

pub(crate) fn step<E: Into<io::Error>>(what: &'static str) -> impl FnOnce(E) -> SetUpError {
    move |source| SetUpError::Step { what, source: source.into() }
}

impl Pod {
    /// Makes this process the agent of a pod; also returns what was odd but handled. After an error the process is
    /// good for nothing but exiting; its cgroup leaf may exist.
    ///
    /// # Errors
    /// See [`SetUpError`].
    pub fn set_up(setup: PodSetup) -> Result<(Self, Vec<String>), SetUpError> {
        let mut warnings = Vec::new();
        check_single_threaded()?;
        protect_agent(&mut warnings)?;
        let tree = Tree::detect(Path::new(private_root::CGROUPS))?;
        let leaf = tree.leaf(&setup.cgroup_parent, setup.pod_id.as_str())?;
        join_leaf(&leaf, &mut warnings)?;
        let host = HostMounts::current().map_err(step("open the host's mount namespace"))?;
        let left = namespaces_to_leave(&setup).map_err(step("open the host's namespaces"))?;
        let users = enter_namespaces(&setup)?;
        private_root::enter(&setup, users.as_deref())?;
        sysctl::set_all(&setup)?;
        let holder = match setup.pid {
            PodPid::Shared => Some(holder::start(users.as_deref())?),
            PodPid::PerContainer => None,
        };
        let mounts = open_namespace("self", "mnt").map_err(step("open the agent's mount namespace"))?;
        let overlay_api = OverlayApi::of_release(&rustix::system::uname().release().to_string_lossy());
        let cgroup_parent = setup.cgroup_parent;
        Ok((Self { host, mounts, left, holder, overlay_api, users, tree, cgroup_parent, leaf }, warnings))
    }

    /// Init of the shared pid namespace.
    #[must_use]
    pub fn holder(&self) -> Option<&Child> {
        self.holder.as_ref().map(|holder| &holder.child)
    }

    /// The host's mounts, for roles that work on the host's files (log writers).
    #[must_use]
    pub fn host(&self) -> &HostMounts {
        &self.host
    }

    /// The agent's own cgroup leaf, which the holder and roles live in too.
    #[must_use]
    pub fn leaf(&self) -> &Leaf {
        &self.leaf
    }

    /// The cgroup leaf of a container, whether it exists or not.
    ///
    /// # Errors
    /// The pod's cgroup parent is no good; [`Pod::set_up`] has refused it then.
    pub fn container_leaf(&self, id: &ContainerId) -> Result<Leaf, PathError> {
        self.tree.leaf(&self.cgroup_parent, id.as_str())
    }
}

/// Opens the namespace file of a process.
pub(crate) fn open_namespace(pid: &str, kind: &str) -> io::Result<OwnedFd> {
    Ok(fs::File::open(format!("/proc/{pid}/ns/{kind}"))?.into())
}

fn check_single_threaded() -> Result<(), SetUpError> {
    let count = fs::read_dir("/proc/self/task").map_err(step("count threads"))?.count();
    if count == 1 { Ok(()) } else { Err(SetUpError::Threads { count }) }
}

fn protect_agent(warnings: &mut Vec<String>) -> Result<(), SetUpError> {
    rustix::thread::set_name(NAME).map_err(step("take a name"))?;
    rustix::process::set_child_subreaper(Some(rustix::process::getpid()))
        .map_err(step("become a subreaper"))?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
        .map_err(step("become undumpable"))?;
    crate::container::limits::set_oom_score_adj(AGENT_OOM_SCORE, warnings).map_err(|failure| {
        SetUpError::Step { what: "set the agent's oom_score_adj", source: io::Error::other(failure) }
    })
}

fn join_leaf(leaf: &Leaf, warnings: &mut Vec<String>) -> Result<(), SetUpError> {
    if is_born_in(leaf) {
        return Ok(leaf.join_v1_self()?);
    }
    warnings.extend(leaf.create(&Limits::default())?.iter().map(ToString::to_string));
    leaf.add_pid(rustix::process::getpid())?;
    Ok(())
}

/// Whether whoever started the agent put it into its leaf.
fn is_born_in(leaf: &Leaf) -> bool {
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    own.lines().any(|line| line.strip_prefix("0::") == Some(leaf.cgroup_path()))
}

/// A guest has no host to run hooks on.
fn namespaces_to_leave(setup: &PodSetup) -> io::Result<Vec<OwnedFd>> {
    let kinds = [
        ("net", setup.netns.is_some()),
        ("uts", !setup.hostname.is_empty()),
        ("ipc", setup.ipc == IpcMode::Pod),
    ];
    let left = kinds.into_iter().filter(|(_, leaves)| *leaves && !setup.is_guest());
    left.map(|(kind, _)| open_namespace("self", kind)).collect()
}

/// The pod's network, UTS and IPC namespaces; every child is born in them. And the user namespace that owns them, which children enter when they
/// are ready to be without rights on the node.
fn enter_namespaces(setup: &PodSetup) -> Result<Option<Arc<UserNamespace>>, SetUpError> {
    let users = match (&setup.netns, &setup.users) {
        (Some(path), maps) => {
            let failed = |source: io::Error| SetUpError::NetworkNamespace { path: path.clone(), source };
            let network = fs::File::open(path).map_err(failed)?;
            move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))
                .map_err(|errno| failed(errno.into()))?;
            maps.clone().map(|maps| UserNamespace::of_network(network.as_fd(), maps)).transpose()?
        }
        (None, maps) => maps.clone().map(UserNamespace::make).transpose()?,
    };
    let mut flags = UnshareFlags::empty();
    flags.set(UnshareFlags::NEWUTS, !setup.hostname.is_empty());
    flags.set(UnshareFlags::NEWIPC, setup.ipc == IpcMode::Pod);
    match &users {
        None if flags.is_empty() => {}
        Some(users) => owned_namespaces::enter(users, flags, setup)?,
        None => exec::unshare(flags).map_err(step("make namespaces"))?,
    }
    if !setup.hostname.is_empty() {
        rustix::system::sethostname(setup.hostname.as_bytes()).map_err(step("set the host name"))?;
    }
    Ok(users.map(Arc::new))
}
