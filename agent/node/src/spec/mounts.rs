//! What is mounted in a container: the kernel's file systems, the pod's files, and volumes.

use std::path::{Component, Path, PathBuf};

use hartpod_container::{IdMaps, IdRange, VolumeAccess, may_cover_proc};
use hartpod_proto::cri::v1 as cri;
use oci_spec::runtime::{LinuxIdMapping, LinuxIdMappingBuilder, Mount};

use super::namespaces::Namespaces;
use super::{SpecError, SpecInput, image_volume};
use crate::validate::{Kind, id_maps};

/// Mounts in order, and what the root's propagation must be for them.
#[derive(Debug, Default)]
pub(super) struct Mounts {
    pub(super) list: Vec<Mount>,
    pub(super) rootfs_propagation: Option<&'static str>,
    /// Of a guest: what has to be shared with it for them.
    pub(super) volumes: Vec<Volume>,
}

/// A bind mount of a guest's container, whose source is a path of the node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    pub source: PathBuf,
    pub destination: PathBuf,
    pub access: VolumeAccess,
}

/// Files of the pod that a container sees unless the request mounts something there.
const POD_FILES: [(&str, &str); 3] =
    [("hosts", "/etc/hosts"), ("hostname", "/etc/hostname"), ("resolv.conf", "/etc/resolv.conf")];

/// All mounts, parents before children. A mount of the request replaces a default at the same place.
pub(super) fn mounts(input: &SpecInput<'_>, namespaces: &Namespaces) -> Result<Mounts, SpecError> {
    let users = namespaces.users.as_ref();
    let security = super::security(input.container);
    let mut mounts = Mounts::default();
    let mut asked = Vec::new();
    for (index, mount) in input.container.mounts.iter().enumerate() {
        asked.push(match image_volume::image_volume(index, mount, input.image_volumes, users)? {
            Some(image) => image,
            None if input.kind == Kind::Guest => in_guest(index, mount, &mut mounts.volumes)?,
            None => {
                let mut volume = volume(index, mount, &mut mounts.rootfs_propagation)?;
                refuse_bidirectional(index, mount, users)?;
                if users.is_none() && volume.uid_mappings().is_some() {
                    let field = format!("config.mounts[{index}].uidMappings");
                    return Err(SpecError::unsupported(field, "the pod has no user namespace"));
                }
                if mount.selinux_relabel && input.settings.selinux.is_some() {
                    // As others that speak OCI call it.
                    volume.options_mut().get_or_insert_default().push("Z".to_owned());
                }
                volume
            }
        });
    }
    let taken: Vec<&Path> = asked.iter().map(|m: &Mount| m.destination().as_path()).collect();

    // A volume over /dev or /sys brings what is below it, so nothing of the kernel's goes on top.
    let hidden = |m: &Mount| taken.iter().any(|t| m.destination().starts_with(t));
    mounts.list = kernel_mounts(security.privileged, users).into_iter().filter(|m| !hidden(m)).collect();
    // The pod's own files stay on top of a volume over /etc.
    let replaced = |m: &Mount| taken.contains(&m.destination().as_path());
    mounts.list.extend(pod_mounts(input, namespaces).into_iter().filter(|m| !replaced(m)));
    mounts.list.append(&mut asked);
    // Stable: two mounts at one place keep the order of the request.
    mounts.list.sort_by_key(|m| m.destination().components().count());
    Ok(mounts)
}

/// As containerd's defaults (pkg/oci, defaultMounts; the CRI plugin adds cgroup), without /run.
fn kernel_mounts(privileged: bool, users: Option<&IdMaps>) -> Vec<Mount> {
    let access = if privileged { "rw" } else { "ro" };
    let mut terminals = vec!["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"];
    if users.is_none_or(|maps| maps.host_gid(5).is_some()) {
        terminals.push("gid=5");
    }
    vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount("/dev/pts", "devpts", "devpts", &terminals),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", access]),
        mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", access]),
    ]
}

/// What the containers of a pod share. The pod agent puts the pod's own /dev/shm where `shm` is asked for.
fn pod_mounts(input: &SpecInput<'_>, namespaces: &Namespaces) -> Vec<Mount> {
    let shm = Path::new("/dev/shm");
    let mut list = vec![if namespaces.node_ipc {
        bind(shm, shm, &["rbind", "rprivate", "rw"])
    } else {
        mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"])
    }];
    let access = if super::security(input.container).readonly_rootfs { "ro" } else { "rw" };
    for (file, destination) in POD_FILES {
        let source = input.sandbox_dir.join(file);
        // In a guest the agent has written them.
        if input.kind == Kind::Guest || source.exists() {
            let mut file = bind(Path::new(destination), &source, &["rbind", "rprivate", access]);
            show_with(&mut file, namespaces.users.as_ref());
            list.push(file);
        }
    }
    list
}

pub(super) fn mount(destination: &str, typ: &str, source: &str, options: &[&str]) -> Mount {
    let mut mount = Mount::default();
    mount.set_destination(destination.into());
    mount.set_typ(Some(typ.to_owned()));
    mount.set_source(Some(source.into()));
    mount.set_options(Some(options.iter().map(|o| (*o).to_owned()).collect()));
    mount
}

fn bind(destination: &Path, source: &Path, options: &[&str]) -> Mount {
    let mut bind = mount("", "bind", "", options);
    bind.set_destination(destination.to_owned());
    bind.set_source(Some(source.to_owned()));
    bind
}

/// One mount of the request. The source is looked at when the container is made, by a child that may hang on it.
fn volume(
    index: usize,
    asked: &cri::Mount,
    rootfs_propagation: &mut Option<&'static str>,
) -> Result<Mount, SpecError> {
    let field = |name: &str| format!("config.mounts[{index}].{name}");
    let maps = maps(&field("uidMappings"), asked)?;
    let destination = destination(&field("container_path"), asked)?;
    let source = &asked.host_path;
    if !source.starts_with('/') || source.contains('\0') {
        return Err(SpecError::invalid(field("host_path"), format!("{source:?} is not an absolute path")));
    }
    let propagation = propagation(&field("propagation"), asked.propagation, rootfs_propagation)?;
    let access = match (asked.readonly, asked.recursive_read_only) {
        (true, true) if propagation != "rprivate" => {
            return Err(SpecError::invalid(field("recursive_read_only"), "needs private propagation"));
        }
        (true, true) => "rro",
        (true, false) => "ro",
        (false, true) => {
            return Err(SpecError::invalid(field("recursive_read_only"), "needs readonly to be set"));
        }
        (false, false) => "rw",
    };
    let mut volume = bind(&destination, Path::new(source), &["rbind", propagation, access]);
    show_with(&mut volume, maps.as_ref());
    Ok(volume)
}

/// Maps of a mount of the request; `field` is the first of its two lists.
pub(super) fn maps(field: &str, asked: &cri::Mount) -> Result<Option<IdMaps>, SpecError> {
    if asked.uid_mappings.is_empty() && asked.gid_mappings.is_empty() {
        return Ok(None);
    }
    let maps = id_maps(&asked.uid_mappings, &asked.gid_mappings);
    maps.map(Some).map_err(|error| SpecError::invalid(field, error.to_string()))
}

/// Has a mount's files shown with other ids than they have.
fn show_with(mount: &mut Mount, maps: Option<&IdMaps>) {
    mount.set_uid_mappings(maps.map(|maps| to_oci(maps.uids())));
    mount.set_gid_mappings(maps.map(|maps| to_oci(maps.gids())));
}

/// Ranges as a spec has them.
pub(super) fn to_oci(ranges: &[IdRange]) -> Vec<LinuxIdMapping> {
    let mapping = |range: &IdRange| {
        let mapping = LinuxIdMappingBuilder::default().container_id(range.container).host_id(range.host);
        // None if the specification refused it, which it has no reason to.
        mapping.size(range.length).build().ok()
    };
    ranges.iter().filter_map(mapping).collect()
}

/// What the pod mounts would be the node's.
fn refuse_bidirectional(index: usize, asked: &cri::Mount, users: Option<&IdMaps>) -> Result<(), SpecError> {
    if users.is_none() || asked.propagation != cri::MountPropagation::PropagationBidirectional as i32 {
        return Ok(());
    }
    let why =
        "a pod with a user namespace has no rights over the node's mounts: not PROPAGATION_BIDIRECTIONAL";
    Err(SpecError::unsupported(format!("config.mounts[{index}].propagation"), why))
}

/// One mount of the request, for a guest. A source is looked at when it is shared with it.
fn in_guest(index: usize, asked: &cri::Mount, volumes: &mut Vec<Volume>) -> Result<Mount, SpecError> {
    let mut mount = volume(index, asked, &mut None)?;
    if mount.uid_mappings().is_some() {
        let field = format!("config.mounts[{index}].uidMappings");
        let why = "with runtime handler \"vm\" volumes have the ids that they have on the node";
        return Err(SpecError::unsupported(field, why));
    }
    if asked.propagation != cri::MountPropagation::PropagationPrivate as i32 {
        let field = format!("config.mounts[{index}].propagation");
        let why = "with runtime handler \"vm\" only PROPAGATION_PRIVATE: mounts do not pass between the node and a guest";
        return Err(SpecError::unsupported(field, why));
    }
    let (access, option) = match (asked.readonly, asked.recursive_read_only) {
        (false, _) => (VolumeAccess::ReadWrite, "rw"),
        (true, false) => (VolumeAccess::ReadOnly, "ro"),
        (true, true) => (VolumeAccess::ReadOnlyTree, "ro"),
    };
    mount.set_options(Some(["rbind", "rprivate", option].map(str::to_owned).to_vec()));
    let (source, destination) = (PathBuf::from(&asked.host_path), mount.destination().clone());
    volumes.push(Volume { source, destination, access });
    Ok(mount)
}

fn propagation(
    field: &str,
    value: i32,
    rootfs: &mut Option<&'static str>,
) -> Result<&'static str, SpecError> {
    Ok(match cri::MountPropagation::try_from(value) {
        Ok(cri::MountPropagation::PropagationPrivate) => "rprivate",
        Ok(cri::MountPropagation::PropagationHostToContainer) => {
            *rootfs = rootfs.or(Some("rslave"));
            "rslave"
        }
        Ok(cri::MountPropagation::PropagationBidirectional) => {
            *rootfs = Some("rshared");
            "rshared"
        }
        Err(_) => return Err(SpecError::invalid(field, format!("{value} is not known"))),
    })
}

/// Where it goes: absolute, `.` and `..` resolved as text (links in the image are the pod agent's to resolve).
pub(super) fn destination(field: &str, asked: &cri::Mount) -> Result<PathBuf, SpecError> {
    let path = Path::new(&asked.container_path);
    if !path.is_absolute() || asked.container_path.contains('\0') {
        return Err(SpecError::invalid(field, format!("{:?} is not an absolute path", asked.container_path)));
    }
    let mut clean = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::ParentDir => {
                clean.pop();
            }
            Component::Normal(name) => clean.push(name),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => {}
        }
    }
    if clean == Path::new("/") {
        return Err(SpecError::invalid(field, "the root of the container cannot be mounted over"));
    }
    let proc = Path::new("/proc");
    if clean == proc && Path::new(&asked.host_path) != proc {
        return Err(SpecError::invalid(field, "only the host's /proc can be mounted at /proc"));
    }
    if clean != proc && clean.starts_with(proc) && !may_cover_proc(&clean) {
        return Err(SpecError::invalid(field, format!("{} is inside /proc", clean.display())));
    }
    Ok(clean)
}

#[cfg(test)]
mod tests;
