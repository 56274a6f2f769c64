//! Device nodes and the usual links of /dev.

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use oci_spec::runtime::{LinuxDevice, LinuxDeviceType};
use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, Uid, chmodat, chownat, makedev, mknodat, symlinkat, unlinkat,
};

use super::root::{PointKind, Root};
use crate::errno::Errno;
use crate::failure::Failure;
use crate::mount;
use crate::pod::private_root::ROOTFS;

/// One node to make.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct DevicePlan {
    path: PathBuf,
    kind: FileType,
    major: u32,
    minor: u32,
    mode: u32,
    owner: (u32, u32),
}

/// Every container has these (OCI runtime spec, config-linux: default devices), for everybody.
const DEFAULT_DEVICES: [(&str, u32, u32); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];
const DEFAULT_MODE: u32 = 0o666;
/// As in the OCI runtime spec (config-linux: /dev symlinks); `core` as runc has it, where the kernel offers /proc/kcore.
const LINKS: [(&str, &str); 6] = [
    ("/dev/fd", "/proc/self/fd"),
    ("/dev/stdin", "/proc/self/fd/0"),
    ("/dev/stdout", "/proc/self/fd/1"),
    ("/dev/stderr", "/proc/self/fd/2"),
    ("/dev/core", "/proc/kcore"),
    ("/dev/ptmx", "pts/ptmx"),
];

/// The devices of a spec after the default ones, which it may repeat.
pub(crate) fn plan(devices: Option<&Vec<LinuxDevice>>) -> Vec<DevicePlan> {
    let defaults = DEFAULT_DEVICES.iter().map(|(path, major, minor)| DevicePlan {
        path: path.into(),
        kind: FileType::CharacterDevice,
        major: *major,
        minor: *minor,
        mode: DEFAULT_MODE,
        owner: (0, 0),
    });
    let mut plan: Vec<DevicePlan> = defaults.collect();
    for device in devices.into_iter().flatten() {
        plan.retain(|other| other.path != *device.path());
        plan.push(from_oci(device));
    }
    plan
}

fn from_oci(device: &LinuxDevice) -> DevicePlan {
    let kind = match device.typ() {
        LinuxDeviceType::B => FileType::BlockDevice,
        LinuxDeviceType::P => FileType::Fifo,
        LinuxDeviceType::C | LinuxDeviceType::U | LinuxDeviceType::A => FileType::CharacterDevice,
    };
    let number = |n: i64| u32::try_from(n).unwrap_or(0);
    DevicePlan {
        path: device.path().clone(),
        kind,
        major: number(device.major()),
        minor: number(device.minor()),
        mode: device.file_mode().unwrap_or(DEFAULT_MODE) & 0o7777,
        owner: (device.uid().unwrap_or(0), device.gid().unwrap_or(0)),
    }
}

/// Makes the nodes, each in place of what the image has there.
pub(crate) fn make(root: &Root, plan: &[DevicePlan]) -> Result<(), Failure> {
    let mut last: Option<(&Path, OwnedFd)> = None;
    for device in plan {
        let failed = |errno| Failure::Device { path: device.path.clone(), errno };
        let (Some(folder), Some(name)) = (device.path.parent(), device.path.file_name()) else {
            return Err(failed(Errno::INVAL));
        };
        if last.as_ref().is_none_or(|(path, _)| *path != folder) {
            last = Some((folder, root.resolve_or_make(folder, PointKind::Folder).map_err(failed)?));
        }
        if let Some((_, folder)) = &last {
            make_one(folder, name, device).map_err(failed)?;
        }
    }
    Ok(())
}

/// Makes the nodes where nobody inside can, for a container in a user namespace, which gets copies of them: as on the node, so it has no more
/// rights to them than their owners and modes on the node give. They cover [`ROOTFS`], on which the root file system is mounted next.
pub(crate) fn make_apart(plan: &[DevicePlan]) -> Result<Vec<OwnedFd>, Failure> {
    let failed = |errno| Failure::Device { path: "/dev".into(), errno };
    let shelf = mount::new("tmpfs", "devices", &[("mode", Some("700"))]).map_err(failed)?;
    let point = rustix::fs::open(ROOTFS, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| failed(e.into()))?;
    mount::attach(&shelf, &point).map_err(failed)?;
    let copy = |(number, device): (usize, &DevicePlan)| {
        let name = number.to_string();
        make_one(&shelf, name.as_ref(), device)?;
        mount::clone_at(shelf.as_fd(), &name, false)
    };
    let copied = plan
        .iter()
        .enumerate()
        .map(|device| copy(device).map_err(|errno| Failure::Device { path: device.1.path.clone(), errno }));
    copied.collect()
}

/// Puts what [`make_apart`] has made in its places.
pub(crate) fn attach(root: &Root, plan: &[DevicePlan], nodes: &[OwnedFd]) -> Result<(), Failure> {
    for (device, node) in plan.iter().zip(nodes) {
        let point = root.resolve_or_make(&device.path, PointKind::File);
        point
            .and_then(|point| mount::attach(node, point))
            .map_err(|errno| Failure::Device { path: device.path.clone(), errno })?;
    }
    Ok(())
}

fn make_one(folder: &OwnedFd, name: &std::ffi::OsStr, device: &DevicePlan) -> Result<(), Errno> {
    let mode = Mode::from_raw_mode(device.mode);
    let number = makedev(device.major, device.minor);
    match mknodat(folder, name, device.kind, mode, number) {
        Err(rustix::io::Errno::EXIST) => {
            unlinkat(folder, name, AtFlags::empty())?;
            mknodat(folder, name, device.kind, mode, number)?;
        }
        other => other?,
    }
    if device.owner != (0, 0) {
        let (uid, gid) = (Uid::from_raw(device.owner.0), Gid::from_raw(device.owner.1));
        chownat(folder, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    }
    // The umask is 0 here, so only special bits are missing; a change of owner takes them.
    if device.mode & 0o7000 != 0 {
        chmodat(folder, name, mode, AtFlags::empty())?;
    }
    Ok(())
}

/// Makes the links of /dev that are missing.
pub(crate) fn link(root: &Root) -> Result<(), Failure> {
    let failed = |path: &str| {
        let path = PathBuf::from(path);
        move |errno| Failure::Device { path, errno }
    };
    let dev = root.resolve_or_make(Path::new("/dev"), PointKind::Folder).map_err(failed("/dev"))?;
    for (path, target) in LINKS {
        let name = path.rsplit('/').next().unwrap_or(path);
        match symlinkat(target, &dev, name) {
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(e) => return Err(failed(path)(e.into())),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::LinuxDeviceBuilder;

    use super::*;

    #[test]
    fn a_device_of_the_spec_replaces_a_default_one() {
        let own = LinuxDeviceBuilder::default().path("/dev/tty").typ(LinuxDeviceType::C).major(9).minor(1);
        let plan = plan(Some(&vec![own.build().unwrap()]));
        assert_eq!(plan.len(), DEFAULT_DEVICES.len());
        assert_eq!(plan.last().map(|d| (d.major, d.mode)), Some((9, 0o666)));
    }
}
