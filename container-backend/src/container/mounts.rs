//! The mounts of a container: collected on the host, then attached one by one below the new root.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, StatxFlags, statx};

use super::cgroup_mount::CgroupTree;
use super::mount_plan::{MOUNT_ATTR_RDONLY, MountIds, MountKind, MountPlan, NewFs};
use super::relabel;
use super::root::{PointKind, Root, is_procfs, kind_of};
use crate::errno::Errno;
use crate::failure::Failure;
use crate::id_maps::IdMaps;
use crate::mount;
use crate::pod::private_root::{POD_PROC, SHM};
use crate::sys::mount_attr::{self, MountAttr, Reach};
use crate::user_namespace::UserNamespace;

/// Where the container's /proc comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ProcSource {
    /// This process is in the pid namespace: a new mount.
    Own,
    /// The pod's, which the holder has made.
    Pod,
    /// A copy of the target container's, collected before.
    Target,
}

/// What of the mounts had to be fetched from other mount namespaces.
#[derive(Debug, Default)]
pub(crate) struct Collected {
    /// One per mount of the plan; `None` for what is made in the container's own namespace.
    binds: Vec<Option<OwnedFd>>,
    proc: Option<OwnedFd>,
    /// Of a container in a user namespace: the root file system, and the nodes of its devices.
    pub(crate) apart: Option<Apart>,
}

/// What only a process with rights on the node can make.
#[derive(Debug)]
pub(crate) struct Apart {
    pub(crate) root: OwnedFd,
    pub(crate) devices: Vec<OwnedFd>,
    /// Mounts of the plan, see [`super::locked`].
    pub(crate) laid_out: Vec<usize>,
}

/// Copies the sources of all bind mounts. Call it in the host's mount namespace; it may block as long as the host's file
/// systems do.
pub(crate) fn collect_binds(
    plan: &[MountPlan],
    label: Option<&str>,
    users: Option<&UserNamespace>,
) -> Result<Collected, Failure> {
    let mut shown = ShownIds { pod: users, others: Vec::new() };
    let binds = plan
        .iter()
        .map(|mount| match &mount.kind {
            MountKind::Bind { source, recursive, relabel } => {
                if let Some(label) = label.filter(|_| *relabel) {
                    relabel::relabel(source, label)?;
                }
                let tree = collect_bind(mount, source, *recursive)?;
                if let Some(ids) = &mount.ids {
                    shown.apply(&tree, ids).map_err(|errno| Failure::Ids {
                        source_path: source.clone(),
                        destination: mount.destination.clone(),
                        errno,
                    })?;
                }
                Ok::<_, Failure>(Some(tree))
            }
            _ => Ok(None),
        })
        .collect::<Result<_, _>>()?;
    Ok(Collected { binds, ..Collected::default() })
}

/// User namespaces whose ids mounts show: the pod's, as a rule, or such as exist for that alone.
struct ShownIds<'a> {
    pod: Option<&'a UserNamespace>,
    others: Vec<UserNamespace>,
}

impl ShownIds<'_> {
    fn apply(&mut self, tree: &OwnedFd, ids: &MountIds) -> Result<(), Errno> {
        if self.of(&ids.maps).is_none() {
            let made = UserNamespace::make(ids.maps.clone()).map_err(|error| error.errno())?;
            self.others.push(made);
        }
        let users = self.of(&ids.maps).ok_or(Errno::INVAL)?;
        mount_attr::map_ids(tree.as_fd(), ids.reach, users.as_fd())
    }

    fn of(&self, maps: &IdMaps) -> Option<&UserNamespace> {
        self.pod.into_iter().chain(&self.others).find(|users| users.maps() == maps)
    }
}

fn collect_bind(plan: &MountPlan, source: &Path, recursive: bool) -> Result<OwnedFd, Failure> {
    let wanted = match plan.tree_attr.propagation {
        libc::MS_SHARED => Some("shared"),
        libc::MS_SLAVE => Some("shared or slave"),
        _ => None,
    };
    let failed = |errno| Failure::MountSource {
        source_path: source.to_owned(),
        destination: plan.destination.clone(),
        errno,
    };
    if let Some(wanted) = wanted {
        let found = propagation_of(source).map_err(failed)?;
        if found != Found::Shared && !(found == Found::Slave && wanted != "shared") {
            let (source_path, destination) = (source.to_owned(), plan.destination.clone());
            return Err(Failure::Propagation { source_path, destination, wanted: wanted.into() });
        }
    }
    mount::clone_of(source, recursive).map_err(failed)
}

#[derive(PartialEq, Eq)]
enum Found {
    Shared,
    Slave,
    Private,
}

/// What kind of mount a path is on. A copy of a mount that is not shared has no peer, so asking for propagation would
/// silently give none.
fn propagation_of(path: &Path) -> Result<Found, Errno> {
    let id = statx(CWD, path, AtFlags::empty(), StatxFlags::MNT_ID)?.stx_mnt_id.to_string();
    let table = std::fs::read_to_string("/proc/self/mountinfo")?;
    let line = table.lines().find(|line| line.split(' ').next() == Some(&id)).ok_or(Errno::NOENT)?;
    // Optional fields stand between the sixth and a lone dash.
    let tags: Vec<&str> = line.split(' ').skip(6).take_while(|field| *field != "-").collect();
    Ok(if tags.iter().any(|tag| tag.starts_with("shared:")) {
        Found::Shared
    } else if tags.iter().any(|tag| tag.starts_with("master:")) {
        Found::Slave
    } else {
        Found::Private
    })
}

impl Collected {
    /// What the mount of this number shows.
    pub(crate) fn put(&mut self, number: usize, tree: OwnedFd) {
        if self.binds.len() <= number {
            self.binds.resize_with(number + 1, || None);
        }
        self.binds[number] = Some(tree);
    }

    /// What the mount of this number shows, if it had to be fetched.
    pub(crate) fn take(&mut self, number: usize) -> Option<OwnedFd> {
        self.binds.get_mut(number)?.take()
    }

    /// Makes what the root of a user namespace could not: file systems whose contents are those of namespaces that this process is in, and
    /// that the kernel would make for it only where it sees all of another one.
    pub(crate) fn make_kernel_views(
        &mut self,
        plan: &[MountPlan],
        label: Option<&str>,
    ) -> Result<(), Failure> {
        for (number, mount) in plan.iter().enumerate() {
            let MountKind::New { fstype: fstype @ (NewFs::Sysfs | NewFs::Mqueue), source, options } =
                &mount.kind
            else {
                continue;
            };
            let made = new_file_system(*fstype, source, options, label);
            self.put(number, made.map_err(|errno| mount.failure(errno))?);
        }
        Ok(())
    }

    /// Copies the target container's /proc. Call it in that container's mount namespace.
    pub(crate) fn collect_proc(&mut self) -> Result<(), Failure> {
        let failed = |errno| Failure::Mount { fstype: "proc".into(), destination: "/proc".into(), errno };
        let root = Root::open("/").map_err(failed)?;
        let proc = root.resolve_without_symlinks(Path::new("/proc")).map_err(failed)?;
        if !is_procfs(proc.as_fd()).map_err(failed)? {
            return Err(failed(Errno::INVAL));
        }
        self.proc = Some(mount::clone_at(proc.as_fd(), "", false).map_err(failed)?);
        Ok(())
    }
}

/// What attaching needs to know besides the plan.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Context<'a> {
    pub(crate) root: &'a Root,
    pub(crate) proc: ProcSource,
    pub(crate) cgroups: CgroupTree<'a>,
    /// SELinux label of what the container has for itself.
    pub(crate) label: Option<&'a str>,
}

/// Makes and attaches the mounts in their order. A read-only /dev is still to be filled, it
/// becomes read-only by [`seal`].
pub(crate) fn attach_all(
    context: Context<'_>,
    plan: &[MountPlan],
    collected: &mut Collected,
) -> Result<(), Failure> {
    for (number, mount) in plan.iter().enumerate() {
        let bind = collected.take(number);
        let laid_out = collected.apart.as_ref().is_some_and(|apart| apart.laid_out.contains(&number));
        let attributes = if laid_out { Attributes::Locked } else { Attributes::Missing };
        attach_one(context, mount, (bind, attributes), &mut collected.proc)?;
    }
    Ok(())
}

/// Whether a mount has its attributes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Attributes {
    Missing,
    /// It has them, and the kernel lets nobody here set what comes to others, be it for a moment: see [`super::locked`].
    Locked,
}

fn attach_one(
    context: Context<'_>,
    plan: &MountPlan,
    (bind, attributes): (Option<OwnedFd>, Attributes),
    target_proc: &mut Option<OwnedFd>,
) -> Result<(), Failure> {
    let failed = |errno| plan.failure(errno);
    let tree = match (&plan.kind, bind) {
        (MountKind::Bind { .. } | MountKind::Image { .. }, Some(tree)) => tree,
        (MountKind::Bind { .. } | MountKind::Image { .. }, None) => return Err(failed(Errno::NOENT)),
        (MountKind::PodShm, _) => mount::clone_of(SHM, false).map_err(failed)?,
        (MountKind::Proc, _) => match context.proc {
            ProcSource::Own => mount::new("proc", "proc", &[]).map_err(failed)?,
            ProcSource::Pod => mount::clone_of(POD_PROC, false).map_err(failed)?,
            ProcSource::Target => target_proc.take().ok_or(Errno::NOENT).map_err(failed)?,
        },
        (MountKind::Cgroup, _) => return super::cgroup_mount::attach(context, plan).map_err(failed),
        (MountKind::New { .. }, Some(tree)) => tree,
        (MountKind::New { fstype, source, options }, None) => {
            new_file_system(*fstype, source, options, context.label).map_err(failed)?
        }
    };
    let point = mount_point(context.root, plan, tree.as_fd())?;
    match attributes {
        Attributes::Missing => set_attributes(plan, tree.as_fd(), Sealing::Later),
        Attributes::Locked => set_propagation(plan, tree.as_fd()),
    }
    .map_err(failed)?;
    mount::attach(&tree, &point).map_err(failed)
}

fn new_file_system(
    fstype: NewFs,
    source: &str,
    options: &[(String, Option<String>)],
    label: Option<&str>,
) -> Result<OwnedFd, Errno> {
    let mut options: Vec<_> = options.iter().map(|(key, value)| (key.as_str(), value.as_deref())).collect();
    if let (Some(label), NewFs::Devpts | NewFs::Mqueue | NewFs::Tmpfs) = (label, fstype) {
        options.push(("context", Some(label)));
    }
    mount::new(fstype.name(), source, &options)
}

/// When a read-only /dev becomes so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Sealing {
    Now,
    /// By [`seal`].
    Later,
}

/// Attributes go on before the mount is attached, so it is never there without them.
pub(super) fn set_attributes(plan: &MountPlan, tree: BorrowedFd<'_>, sealing: Sealing) -> Result<(), Errno> {
    let mut attr = plan.attr;
    if sealing == Sealing::Later && is_sealed_late(plan) {
        attr.set &= !MOUNT_ATTR_RDONLY;
    }
    let tree_attr = MountAttr { propagation: propagation(plan), ..plan.tree_attr };
    mount_attr::set(tree, Reach::Tree, &tree_attr)?;
    mount_attr::set(tree, Reach::One, &attr)
}

/// A copy made for a user namespace receives from what it is of, whatever that was set to.
fn set_propagation(plan: &MountPlan, tree: BorrowedFd<'_>) -> Result<(), Errno> {
    let attr = MountAttr { propagation: propagation(plan), ..MountAttr::default() };
    mount_attr::set(tree, Reach::Tree, &attr)
}

fn propagation(plan: &MountPlan) -> u64 {
    if plan.tree_attr.propagation == 0 { libc::MS_PRIVATE } else { plan.tree_attr.propagation }
}

fn is_sealed_late(plan: &MountPlan) -> bool {
    plan.is_read_only() && plan.destination == Path::new("/dev")
}

/// Makes read-only what had to be writable while devices were put in.
pub(crate) fn seal(root: &Root, plan: &[MountPlan]) -> Result<(), Failure> {
    for mount in plan.iter().filter(|mount| is_sealed_late(mount)) {
        let failed =
            |errno| Failure::Mount { fstype: "tmpfs".into(), destination: mount.destination.clone(), errno };
        let dev = root.resolve(&mount.destination).map_err(failed)?;
        let attr = MountAttr { set: MOUNT_ATTR_RDONLY, ..MountAttr::default() };
        mount_attr::set(dev.as_fd(), Reach::One, &attr).map_err(failed)?;
    }
    Ok(())
}

/// Finds or makes the mount point. /proc and /sys must be real folders of the image: through a symlink, what the container
/// believes to be its /proc would lie elsewhere, unmasked.
pub(crate) fn mount_point(root: &Root, plan: &MountPlan, tree: BorrowedFd<'_>) -> Result<OwnedFd, Failure> {
    let destination = &plan.destination;
    let failed = |errno| Failure::MountPoint { destination: destination.clone(), errno };
    let forbidden =
        |why: &str| Failure::ForbiddenMountPoint { destination: destination.clone(), why: why.into() };
    if !destination.is_absolute() || destination.parent().is_none() {
        return Err(forbidden("it must be an absolute path below /"));
    }
    let kind = kind_of(tree).map_err(failed)?;
    let point = root.resolve_or_make(destination, kind).map_err(failed)?;
    let is_kernel_view = matches!(plan.kind, MountKind::Proc | MountKind::New { fstype: NewFs::Sysfs, .. });
    if is_kernel_view {
        root.resolve_without_symlinks(destination)
            .map_err(|_| forbidden("it is reached through a symlink of the image"))?;
    } else if is_procfs(point.as_fd()).map_err(failed)? && !may_cover_proc(destination) {
        return Err(forbidden("it lies in /proc"));
    }
    if kind_of(point.as_fd()).map_err(failed)? != kind {
        return Err(failed(if kind == PointKind::Folder { Errno::NOTDIR } else { Errno::ISDIR }));
    }
    Ok(point)
}

/// Whether a volume may be there below /proc: files that fakes such as lxcfs replace; the same list as runc's (libcontainer, checkProcMount). Anything
/// else would lift masks, and let a volume stand in for what the runtime and the program trust (CVE-2019-16884).
#[must_use]
pub fn may_cover_proc(destination: &Path) -> bool {
    const ALLOWED: [&str; 11] = [
        "/proc/cpuinfo",
        "/proc/diskstats",
        "/proc/meminfo",
        "/proc/stat",
        "/proc/swaps",
        "/proc/uptime",
        "/proc/loadavg",
        "/proc/slabinfo",
        "/proc/net/dev",
        "/proc/sys/kernel/ns_last_pid",
        "/proc/sys/crypto/fips_enabled",
    ];
    ALLOWED.iter().any(|allowed| destination == Path::new(allowed))
}
