//! A container's process, from its birth to the gate.
//!
//! It starts as a fork of the agent, in the container's v2 leaf, in the agent's namespaces (but for a pid namespace of its
//! own, if that is what the container has), and is visible to nobody inside. Each step below is one paragraph of the
//! container's making; the first that fails ends it, and the report says which.

use std::convert::Infallible;
use std::ffi::CString;
use std::fs::File;
use std::io::Read as _;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use super::capability::CapabilitySets;
use super::cgroup_mount::CgroupTree;
use super::devices::DevicePlan;
use super::finish::{self, Last, Way};
use super::image_volume::{self, ImageLayers};
use super::mount_plan::{MOUNT_ATTR_RDONLY, MountKind, MountPlan};
use super::mounts::{self, Apart, Collected, Context, ProcSource};
use super::own_proc::{self, OwnProc};
use super::root::{PointKind, Root};
use super::rootfs::{self, OverlayApi, Overlays};
use super::settings::{ExecLabel, ProcessSettings};
use super::streams::{Streams, give_to_root};
use super::user::{self, UserRequest};
use super::{console, devices, hidden_paths, hook_point, identity, limits, locked};
use crate::cgroup::Leaf;
use crate::errno::Errno;
use crate::failure::Failure;
use crate::host_mounts::HostMounts;
use crate::mount;
use crate::pod::private_root::ROOTFS;
use crate::report::{Ready, Reporter};
use crate::request::{ResolvedUser, RootFs, TerminalSize};
use crate::sys::mount_attr::{self, MountAttr, Reach};
use crate::sys::{clone, exec, keyring, process};
use crate::user_namespace::UserNamespace;

/// All that the child needs to know, lowered by the agent.
pub(crate) struct CreatePlan<'a> {
    pub(crate) host: &'a HostMounts,
    /// The agent's mount namespace.
    pub(crate) agent_mounts: BorrowedFd<'a>,
    pub(crate) leaf: Leaf,
    pub(crate) keyring: CString,
    pub(crate) rootfs: RootFs,
    pub(crate) overlay_api: OverlayApi,
    /// The pod's user namespace, if it has one.
    pub(crate) users: Option<&'a UserNamespace>,
    pub(crate) mounts: Vec<MountPlan>,
    pub(crate) images: Vec<ImageLayers>,
    pub(crate) devices: Vec<DevicePlan>,
    pub(crate) masked_paths: Vec<String>,
    pub(crate) read_only_paths: Vec<String>,
    pub(crate) root: RootAccess,
    /// SELinux label of the container's files.
    pub(crate) mount_label: Option<String>,
    pub(crate) cgroup_namespace: CgroupNamespace,
    pub(crate) pid: PidJoin<'a>,
    pub(crate) user: UserRequest,
    pub(crate) argv: Vec<CString>,
    pub(crate) settings: ProcessSettings,
    /// See [`crate::ContainerRequest::bundle`].
    pub(crate) bundle: Option<PathBuf>,
}

/// Whether the container may write to its root file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RootAccess {
    ReadOnly,
    ReadWrite,
}

/// Which cgroups the container sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CgroupNamespace {
    /// Its own leaf is the root.
    Private,
    /// The host's.
    Host,
}

/// Which pid namespace the program runs in.
pub(crate) enum PidJoin<'a> {
    /// This process is init of it; in a user namespace one that it clones, and tells of in the mailbox.
    Own { mailbox: Option<usize> },
    /// The host's.
    Node,
    /// The pod's.
    Pod { namespace: BorrowedFd<'a>, mailbox: usize },
    /// Another container's.
    Target { namespace: BorrowedFd<'a>, mounts: BorrowedFd<'a>, mailbox: usize },
}

/// Where the standard streams come from.
pub(crate) enum StreamPlan {
    Three([OwnedFd; 3]),
    /// A terminal of the container's own, whose other side goes over this socket.
    NewTerminal {
        socket: OwnedFd,
        size: TerminalSize,
    },
}

impl StreamPlan {
    pub(super) fn fds(&self) -> &[OwnedFd] {
        match self {
            Self::Three(fds) => fds,
            Self::NewTerminal { socket, .. } => std::slice::from_ref(socket),
        }
    }
}

/// The child's whole life, as far as it is not the program's. Returns its exit code if it fails.
pub(crate) fn main(plan: &CreatePlan<'_>, streams: StreamPlan, report: OwnedFd, gate: OwnedFd) -> i32 {
    let mut reporter = Reporter::new(report);
    match run(plan, streams, &mut reporter, gate) {
        Ok(never) => match never {},
        Err(failure) => {
            // An error means that the agent is gone.
            let _ = reporter.failed(&failure);
            1
        }
    }
}

/// With all rights on the node: what comes from there, and what only these rights can make. In a user namespace the rest is done without any.
fn run(
    plan: &CreatePlan<'_>,
    streams: StreamPlan,
    reporter: &mut Reporter,
    gate: OwnedFd,
) -> Result<Infallible, Failure> {
    let mut warnings = Vec::new();
    keep_only(plan, &streams, reporter, &gate)?;
    // What is made from here on has exactly the modes that are asked for; the program gets its own umask at the end.
    rustix::process::umask(Mode::empty());
    join_v1(&plan.leaf)?;
    limits::set_oom_score_adj(plan.settings.oom_score_adj, &mut warnings)?;
    let gate = File::from(gate);
    let (mut collected, host) = collect(plan)?;
    let own = own_namespaces(plan);
    unshare(if plan.users.is_some() { UnshareFlags::NEWNS } else { own })?;
    mount_root(plan, &mut collected)?;
    let Some(users) = plan.users else {
        return inside(plan, Begun { streams, collected, host, gate, warnings }, reporter);
    };
    // A hard limit is raised with rights on the node alone.
    limits::set_rlimits(&plan.settings.rlimits, &mut warnings)?;
    enter_users(Some(users), &streams)?;
    let begun = Begun { streams, collected, host, gate, warnings };
    let PidJoin::Own { mailbox: Some(mailbox) } = plan.pid else {
        return in_user_namespace(plan, begun, reporter);
    };
    clone::fork_init_sibling(mailbox, || match in_user_namespace(plan, begun, reporter) {
        Ok(never) => match never {},
        Err(failure) => {
            // An error means that the agent is gone.
            let _ = reporter.failed(&failure);
            1
        }
    })
    .map_err(step("clone into a new pid namespace"))?;
    process::exit_now(0)
}

/// What the second half of the making begins with.
struct Begun {
    streams: StreamPlan,
    collected: Collected,
    /// What hooks are to see of the host.
    host: Option<OwnedFd>,
    gate: File,
    warnings: Vec<String>,
}

/// In mounts of the user namespace's own: the copy that it makes of the agent's shows the same, and can be neither changed nor taken apart.
fn in_user_namespace(
    plan: &CreatePlan<'_>,
    mut begun: Begun,
    reporter: &mut Reporter,
) -> Result<Infallible, Failure> {
    unshare(own_namespaces(plan))?;
    if let Some(apart) = begun.collected.apart.take() {
        let failed = |errno| Failure::RootFs { what: "attach the root file system".into(), errno };
        locked::collect(&plan.mounts, &apart.laid_out, &mut begun.collected)?;
        let point = rustix::fs::open(ROOTFS, OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
        let point = point.map_err(|e| failed(e.into()))?;
        mount::attach(&apart.root, point).map_err(failed)?;
        begun.collected.apart = Some(apart);
    }
    inside(plan, begun, reporter)
}

/// From the filling of the root file system on.
fn inside(plan: &CreatePlan<'_>, begun: Begun, reporter: &mut Reporter) -> Result<Infallible, Failure> {
    let Begun { streams, mut collected, host, gate, mut warnings } = begun;
    start_session(&plan.keyring, plan.settings.label.as_ref())?;
    let own_proc = OwnProc::open(plan.settings.label.as_ref())?;
    let (user, home, streams) = fill_root(plan, streams, &mut collected, &own_proc)?;
    drop(collected);
    match (&plan.bundle, host) {
        (Some(bundle), Some(host)) => hook_point::pass(&host, bundle, reporter, &gate)?,
        _ => rustix::process::chdir(ROOTFS).map_err(step("enter the root file system"))?,
    }
    pivot(plan.root)?;
    if plan.users.is_none() {
        limits::set_rlimits(&plan.settings.rlimits, &mut warnings)?;
    }
    let capabilities = possible_capabilities(plan.settings.capabilities, &mut warnings)?;
    let way = join_pid_namespace(&plan.pid, &own_proc)?;
    let label_file = own_proc.into_label_file();
    way.keep_only(&streams, label_file.as_ref(), &[reporter.pipe().as_fd(), gate.as_fd()])?;
    let cwd = finish::Cwd::enter(&plan.settings.cwd)?;
    let ready = Ready { user, home, warnings };
    reporter.ready(&ready).map_err(step("report"))?;
    wait_at(&gate)?;
    drop(gate);
    let last = Last {
        settings: &plan.settings,
        capabilities,
        user: &ready.user,
        home: &ready.home,
        argv: &plan.argv,
        hook: None,
        streams: &streams,
        cwd,
        way,
    };
    finish::run(&last, label_file, reporter)
}

/// Leaves the rights on the node behind; what of the agent's the container is to own is given to its root before.
pub(super) fn enter_users(users: Option<&UserNamespace>, streams: &StreamPlan) -> Result<(), Failure> {
    let Some(users) = users else { return Ok(()) };
    let root = users.root().map_err(step("find the root of the user namespace"))?;
    if let StreamPlan::Three(fds) = streams {
        let given = fds.iter().try_for_each(|fd| give_to_root(fd.as_fd(), root));
        given.map_err(step("hand over the standard streams"))?;
    }
    users.enter().map_err(step("enter the user namespace"))
}

fn step<E: Into<Errno>>(step: &'static str) -> impl FnOnce(E) -> Failure {
    move |e| Failure::Step { step: step.into(), errno: e.into() }
}

/// Closes what the agent has open and this child has no use for.
fn keep_only(
    plan: &CreatePlan<'_>,
    streams: &StreamPlan,
    reporter: &Reporter,
    gate: &OwnedFd,
) -> Result<(), Failure> {
    let mut keep: Vec<BorrowedFd<'_>> = (0..3).map(process::standard_stream).collect();
    keep.extend([reporter.pipe().as_fd(), gate.as_fd(), plan.host.as_fd(), plan.agent_mounts]);
    keep.extend(streams.fds().iter().map(AsFd::as_fd));
    keep.extend(plan.users.map(AsFd::as_fd));
    if let RootFs::Disk(disk) = &plan.rootfs {
        keep.extend(disk.fds());
    }
    match &plan.pid {
        PidJoin::Own { .. } | PidJoin::Node => {}
        PidJoin::Pod { namespace, .. } => keep.push(*namespace),
        PidJoin::Target { namespace, mounts, .. } => keep.extend([*namespace, *mounts]),
    }
    process::close_all_except(&keep).map_err(step("close descriptors"))
}

/// The v2 leaf it was born in; those of v1 have to be joined.
pub(super) fn join_v1(leaf: &Leaf) -> Result<(), Failure> {
    use std::error::Error as _;

    leaf.join_v1_self().map_err(|e| {
        let source = e.source().and_then(|s| s.downcast_ref::<std::io::Error>());
        let errno = source.and_then(std::io::Error::raw_os_error).unwrap_or(libc::EIO);
        Failure::Step { step: e.to_string(), errno: Errno::from_raw(errno) }
    })
}

pub(super) fn start_session(keyring: &CString, label: Option<&ExecLabel>) -> Result<(), Failure> {
    rustix::process::setsid().map_err(step("start a session"))?;
    own_proc::with_key_label(label, || keyring::join_session(keyring))
        .map_err(step("start a session keyring"))
}

/// Fetches what lies in other mount namespaces, and comes back. The second value is what hooks are to see of the host.
fn collect(plan: &CreatePlan<'_>) -> Result<(Collected, Option<OwnedFd>), Failure> {
    let mut collected = Collected::default();
    let mut host = None;
    let binds = plan.mounts.iter().any(|mount| matches!(mount.kind, MountKind::Bind { .. }));
    if binds || plan.bundle.is_some() {
        plan.host.enter().map_err(step("enter the host's mount namespace"))?;
        collected = mounts::collect_binds(&plan.mounts, plan.mount_label.as_deref(), plan.users)?;
        host = plan.bundle.as_ref().map(|_| hook_point::collect_host()).transpose()?;
    }
    if let PidJoin::Target { mounts, .. } = &plan.pid {
        move_into_link_name_space(*mounts, Some(LinkNameSpaceType::Mount))
            .map_err(step("enter the target's mount namespace"))?;
        collected.collect_proc()?;
    }
    move_into_link_name_space(plan.agent_mounts, Some(LinkNameSpaceType::Mount))
        .map_err(step("return to the agent's mount namespace"))?;
    Ok((collected, host))
}

fn mount_root(plan: &CreatePlan<'_>, collected: &mut Collected) -> Result<(), Failure> {
    let parts = match &plan.rootfs {
        RootFs::Overlay(overlay) => rootfs::Parts::of_folders(overlay)?,
        RootFs::Disk(disk) => disk.attach()?,
    };
    let label = plan.mount_label.as_deref();
    let overlays = Overlays { api: plan.overlay_api, label };
    let Some(users) = plan.users else {
        image_volume::make_all(&plan.mounts, &plan.images, overlays, false, collected)?;
        return rootfs::mount_overlay(&parts, (0, 0), overlays);
    };
    let devices = if brings_devices(plan) { Vec::new() } else { devices::make_apart(&plan.devices)? };
    image_volume::make_all(&plan.mounts, &plan.images, overlays, true, collected)?;
    let owner = users.root().map_err(step("find the root of the user namespace"))?;
    rootfs::mount_overlay(&parts, owner, overlays)?;
    collected.make_kernel_views(&plan.mounts, label)?;
    let root = mount::clone_of(ROOTFS, false)
        .map_err(|errno| Failure::RootFs { what: "copy the root file system".into(), errno })?;
    let laid_out = locked::lay_out(&plan.mounts, &plan.masked_paths, collected)?;
    collected.apart = Some(Apart { root, devices, laid_out });
    Ok(())
}

fn own_namespaces(plan: &CreatePlan<'_>) -> UnshareFlags {
    let mut flags = UnshareFlags::NEWNS;
    flags.set(UnshareFlags::NEWCGROUP, plan.cgroup_namespace == CgroupNamespace::Private);
    flags
}

fn unshare(flags: UnshareFlags) -> Result<(), Failure> {
    exec::unshare(flags).map_err(step("make namespaces"))
}

/// A /dev of the host's comes complete.
fn brings_devices(plan: &CreatePlan<'_>) -> bool {
    let dev = plan.mounts.iter().rev().find(|mount| mount.destination == Path::new("/dev"));
    dev.is_some_and(|mount| matches!(mount.kind, MountKind::Bind { .. }))
}

/// Everything below the new root, from its users to its masks.
fn fill_root(
    plan: &CreatePlan<'_>,
    streams: StreamPlan,
    collected: &mut Collected,
    own_proc: &OwnProc,
) -> Result<(ResolvedUser, String, Streams), Failure> {
    let root = Root::open(ROOTFS).map_err(step("open the root file system"))?;
    // By the image's own files: a volume over /etc/passwd does not change who the container runs as.
    let (user, home) = user::resolve(&root, &plan.user)?;
    if let Some(users) = plan.users {
        user::check_mapped(&user, users.maps())?;
    }
    let proc = match plan.pid {
        PidJoin::Own { .. } | PidJoin::Node => ProcSource::Own,
        PidJoin::Pod { .. } => ProcSource::Pod,
        PidJoin::Target { .. } => ProcSource::Target,
    };
    let v1_cgroups = plan.leaf.v1_folders();
    let cgroups = match plan.cgroup_namespace {
        _ if !v1_cgroups.is_empty() => CgroupTree::V1(&v1_cgroups),
        CgroupNamespace::Private => CgroupTree::Private,
        CgroupNamespace::Host => CgroupTree::Host(plan.leaf.unified_tree()),
    };
    let label = plan.mount_label.as_deref();
    mounts::attach_all(Context { root: &root, proc, cgroups, label }, &plan.mounts, collected)?;
    if !brings_devices(plan) {
        match &collected.apart {
            Some(apart) => devices::attach(&root, &plan.devices, &apart.devices)?,
            None => devices::make(&root, &plan.devices)?,
        }
        devices::link(&root)?;
    }
    let streams = open_streams(streams, &root, own_proc)?;
    mounts::seal(&root, &plan.mounts)?;
    hidden_paths::make_read_only(&root, &plan.read_only_paths)?;
    hidden_paths::mask(&root, &plan.masked_paths)?;
    let cwd = &plan.settings.cwd;
    root.resolve_or_make(cwd, PointKind::Folder).map_err(|errno| Failure::Path {
        what: "working directory".into(),
        path: cwd.clone(),
        errno,
    })?;
    Ok((user, home, streams))
}

fn open_streams(plan: StreamPlan, root: &Root, own_proc: &OwnProc) -> Result<Streams, Failure> {
    match plan {
        StreamPlan::Three(fds) => Ok(Streams::Three(fds)),
        StreamPlan::NewTerminal { socket, size } => {
            let (ours, theirs) =
                console::open(root, own_proc.fds(), size).map_err(step("open a terminal"))?;
            console::send(socket.as_fd(), ours.as_fd()).map_err(step("send the terminal"))?;
            console::bind_console(root, theirs.as_fd())
                .map_err(step("mount the terminal on /dev/console"))?;
            Ok(Streams::Terminal(theirs))
        }
    }
}

/// The new root, which is the working folder, becomes the only one; what this namespace has of the agent's mounts goes.
fn pivot(access: RootAccess) -> Result<(), Failure> {
    use rustix::mount::{UnmountFlags, unmount};
    use rustix::process::{chdir, pivot_root};

    // The old root ends up on top of the new one, see pivot_root(2): pivot_root(".", ".").
    pivot_root(".", ".").map_err(step("pivot_root"))?;
    unmount(".", UnmountFlags::DETACH).map_err(step("unmount the agent's mounts"))?;
    chdir("/").map_err(step("enter the root file system"))?;
    if access == RootAccess::ReadOnly {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::open("/", flags, Mode::empty()).map_err(step("open the root file system"))?;
        let attr = MountAttr { set: MOUNT_ATTR_RDONLY, ..MountAttr::default() };
        mount_attr::set(root.as_fd(), Reach::One, &attr)
            .map_err(step("make the root file system read-only"))?;
    }
    Ok(())
}

pub(super) fn possible_capabilities(
    wanted: CapabilitySets,
    warnings: &mut Vec<String>,
) -> Result<CapabilitySets, Failure> {
    let permitted = identity::own_permitted().map_err(step("read own capabilities"))?;
    let (possible, missing) = wanted.limited_to(permitted);
    if !missing.is_empty() {
        warnings.push(format!("this node cannot give {}", missing.join(", ")));
    }
    Ok(possible)
}

/// Children are born in the namespace from now on, this process stays where it is.
fn join_pid_namespace(pid: &PidJoin<'_>, own_proc: &OwnProc) -> Result<Way, Failure> {
    let (namespace, mailbox) = match pid {
        PidJoin::Own { .. } | PidJoin::Node => return Ok(Way::Here),
        PidJoin::Pod { namespace, mailbox } | PidJoin::Target { namespace, mailbox, .. } => {
            (*namespace, *mailbox)
        }
    };
    move_into_link_name_space(namespace, Some(LinkNameSpaceType::ProcessID))
        .map_err(step("enter the pid namespace"))?;
    Ok(Way::InP2 { maps: own_proc.open_maps().map_err(step("open the memory map"))?, mailbox })
}

/// Waits for the agent's word. If the agent dies first, so does this process.
pub(super) fn wait_at(mut gate: &File) -> Result<(), Failure> {
    let mut word = [0];
    gate.read_exact(&mut word).map_err(step("wait for the start"))
}
