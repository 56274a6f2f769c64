//! Which device nodes a container sees and may use.

use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use hartpod_proto::cri::v1 as cri;
use oci_spec::runtime::{LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType};

use super::SpecError;

/// Nodes to make, and what the device cgroup allows, in order: the last rule that fits counts.
#[derive(Debug, Default)]
pub(super) struct Devices {
    pub(super) nodes: Vec<LinuxDevice>,
    pub(super) rules: Vec<LinuxDeviceCgroup>,
}

/// What every container may use, by number: null, zero, full, random, urandom, tty, console, ptmx and the ptys. Same as
/// runc's AllowedDevices.
const ALLOWED: [(i64, Option<i64>); 9] = [
    (1, Some(3)),
    (1, Some(5)),
    (1, Some(7)),
    (1, Some(8)),
    (1, Some(9)),
    (5, Some(0)),
    (5, Some(1)),
    (5, Some(2)),
    (136, None),
];

/// Folders of /dev that a privileged container gets its own of, or that hold no devices. Same as containerd's.
const NOT_HOST: [&str; 7] = ["pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev"];

/// How deep a folder of devices is followed (/dev/dri/by-path, /dev/bus/usb/001); deeper ones are not devices' places.
const DEPTH_MAX: usize = 8;

/// Looks at the device nodes asked for; a privileged container has all that are in `host_dev`, if that is given. May wait for the file system they are on.
pub(super) fn devices_blocking(
    container: &cri::ContainerConfig,
    host_dev: Option<&Path>,
) -> Result<Devices, SpecError> {
    let mut devices = Devices::default();
    if let Some(host_dev) = host_dev.filter(|_| super::security(container).privileged) {
        devices.rules.push(rule(true, None, "rwm"));
        find(host_dev, Path::new("/dev"), Some(&NOT_HOST), DEPTH_MAX, &mut devices.nodes)?;
        return Ok(devices);
    }
    devices.rules = default_rules();
    for (index, asked) in container.devices.iter().enumerate() {
        let field = |name: &str| format!("config.devices[{index}].{name}");
        let permissions = permissions(&field("permissions"), &asked.permissions)?;
        for (name, path) in [("host_path", &asked.host_path), ("container_path", &asked.container_path)] {
            let allowed_empty = name == "container_path";
            if !(path.starts_with('/') || allowed_empty && path.is_empty()) || path.contains('\0') {
                return Err(SpecError::invalid(field(name), format!("{path:?} is not an absolute path")));
            }
        }
        let place = if asked.container_path.is_empty() { &asked.host_path } else { &asked.container_path };
        if Path::new(place).components().any(|c| c == std::path::Component::ParentDir) {
            return Err(SpecError::invalid(field("container_path"), format!("{place} contains ..")));
        }
        let before = devices.nodes.len();
        find(Path::new(&asked.host_path), Path::new(place), None, DEPTH_MAX, &mut devices.nodes)?;
        for node in &devices.nodes[before..] {
            devices.rules.push(rule(
                true,
                Some((node.typ(), Some(node.major()), Some(node.minor()))),
                permissions,
            ));
        }
    }
    Ok(devices)
}

/// A guest has none of the node's devices, and a privileged container may use all of the guest's own.
pub(super) fn in_guest(container: &cri::ContainerConfig) -> Result<Devices, SpecError> {
    if !container.devices.is_empty() {
        let why = "devices of the node cannot be had with runtime handler \"vm\"";
        return Err(SpecError::unsupported("config.devices", why));
    }
    let privileged = super::security(container).privileged;
    let rules = if privileged { vec![rule(true, None, "rwm")] } else { default_rules() };
    Ok(Devices { nodes: Vec::new(), rules })
}

fn permissions<'a>(field: &str, asked: &'a str) -> Result<&'a str, SpecError> {
    let once = |c| asked.matches(c).count() <= 1;
    if !asked.is_empty() && asked.chars().all(|c| "rwm".contains(c)) && "rwm".chars().all(once) {
        Ok(asked)
    } else {
        Err(SpecError::invalid(field, format!("{asked:?} is not made of r, w and m")))
    }
}

fn default_rules() -> Vec<LinuxDeviceCgroup> {
    let char = LinuxDeviceType::C;
    let mut rules = vec![rule(false, None, "rwm")];
    // Making any node is harmless: using it is what the other rules are about.
    rules.push(rule(true, Some((char, None, None)), "m"));
    rules.push(rule(true, Some((LinuxDeviceType::B, None, None)), "m"));
    rules.extend(ALLOWED.map(|(major, minor)| rule(true, Some((char, Some(major), minor)), "rwm")));
    rules
}

type Which = (LinuxDeviceType, Option<i64>, Option<i64>);

fn rule(allow: bool, which: Option<Which>, access: &str) -> LinuxDeviceCgroup {
    let mut rule = LinuxDeviceCgroup::default();
    rule.set_allow(allow);
    if let Some((typ, major, minor)) = which {
        rule.set_typ(Some(typ));
        rule.set_major(major);
        rule.set_minor(minor);
    }
    rule.set_access(Some(access.to_owned()));
    rule
}

/// Adds the device at `host`, or every device below it. With `skip`, `host` is /dev itself: what is not a device is left
/// out there, an error otherwise.
fn find(
    host: &Path,
    place: &Path,
    skip: Option<&[&str]>,
    depth: usize,
    nodes: &mut Vec<LinuxDevice>,
) -> Result<(), SpecError> {
    let at = |source| SpecError::Device { path: host.to_owned(), source };
    let meta = std::fs::metadata(host).map_err(at)?;
    if !meta.is_dir() {
        return match node(place, &meta) {
            Some(node) => {
                nodes.push(node);
                Ok(())
            }
            None => Err(at(io::Error::new(io::ErrorKind::InvalidInput, "it is not a device"))),
        };
    }
    let mut entries: Vec<PathBuf> =
        std::fs::read_dir(host).and_then(|all| all.map(|e| e.map(|e| e.path())).collect()).map_err(at)?;
    entries.sort();
    for path in entries {
        let Some(name) = path.file_name() else { continue };
        // A link is another name for something that is found anyway; a node that went away was unplugged.
        let Ok(meta) = std::fs::symlink_metadata(&path) else { continue };
        if meta.is_dir() && depth > 0 && !skip.is_some_and(|s| s.iter().any(|s| name == *s)) {
            find(&path, &place.join(name), skip.map(|_| &[][..]), depth - 1, nodes)?;
        } else if name != "console" {
            nodes.extend(node(&place.join(name), &meta));
        }
    }
    Ok(())
}

fn node(place: &Path, meta: &std::fs::Metadata) -> Option<LinuxDevice> {
    let typ = if meta.file_type().is_char_device() {
        LinuxDeviceType::C
    } else if meta.file_type().is_block_device() {
        LinuxDeviceType::B
    } else {
        return None;
    };
    let mut device = LinuxDevice::default();
    device.set_path(place.to_owned());
    device.set_typ(typ);
    device.set_major(rustix::fs::major(meta.rdev()).into());
    device.set_minor(rustix::fs::minor(meta.rdev()).into());
    device.set_file_mode(Some(meta.mode() & 0o7777));
    device.set_uid(Some(meta.uid()));
    device.set_gid(Some(meta.gid()));
    Some(device)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asks(host_path: &str, container_path: &str, permissions: &str) -> cri::ContainerConfig {
        let device = cri::Device {
            host_path: host_path.into(),
            container_path: container_path.into(),
            permissions: permissions.into(),
        };
        cri::ContainerConfig { devices: vec![device], ..Default::default() }
    }

    fn refusal(config: &cri::ContainerConfig) -> String {
        devices_blocking(config, Some(Path::new("/dev"))).unwrap_err().to_string()
    }

    #[test]
    fn a_device_gets_a_node_and_a_rule() {
        let found =
            devices_blocking(&asks("/dev/null", "/dev/nothing", "rw"), Some(Path::new("/dev"))).unwrap();
        let [node] = &found.nodes[..] else { panic!("{:?}", found.nodes) };
        assert_eq!(node.path(), Path::new("/dev/nothing"));
        assert_eq!((node.typ(), node.major(), node.minor()), (LinuxDeviceType::C, 1, 3));
        assert_eq!(node.file_mode(), Some(0o666));
        let last = found.rules.last().unwrap();
        assert_eq!(last.access().as_deref(), Some("rw"));
        assert_eq!((last.allow(), last.major(), last.minor()), (true, Some(1), Some(3)));
    }

    #[test]
    fn all_is_denied_first_and_the_usual_ones_allowed() {
        let found = devices_blocking(&cri::ContainerConfig::default(), Some(Path::new("/dev"))).unwrap();
        assert!(found.nodes.is_empty());
        let first = &found.rules[0];
        assert_eq!((first.allow(), first.typ(), first.major()), (false, None, None));
        assert!(found.rules.iter().any(|r| r.allow() && r.major() == Some(1) && r.minor() == Some(3)));
        assert!(!found.rules.iter().any(|r| r.allow() && r.major() == Some(8)));
    }

    #[test]
    fn a_folder_means_every_device_in_it() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("file"), "").unwrap();
        std::fs::create_dir(dir.path().join("sub")).unwrap();
        std::os::unix::fs::symlink("/dev/null", dir.path().join("link")).unwrap();
        let config = asks(dir.path().to_str().unwrap(), "/dev/x", "r");
        let found = devices_blocking(&config, Some(Path::new("/dev"))).unwrap();
        assert!(found.nodes.is_empty(), "neither files nor links are devices: {:?}", found.nodes);
    }

    #[test]
    fn a_privileged_container_has_the_hosts_devices_and_may_use_all() {
        let security = cri::LinuxContainerSecurityContext { privileged: true, ..Default::default() };
        let linux = cri::LinuxContainerConfig { security_context: Some(security), ..Default::default() };
        let config = cri::ContainerConfig { linux: Some(linux), ..Default::default() };
        let found = devices_blocking(&config, Some(Path::new("/dev"))).unwrap();
        let has = |path: &str| found.nodes.iter().any(|n| n.path() == Path::new(path));
        assert!(has("/dev/null") && has("/dev/full"));
        assert!(!found.nodes.iter().any(|n| n.path().starts_with("/dev/pts")));
        let [all] = &found.rules[..] else { panic!("{:?}", found.rules) };
        assert!(all.allow() && all.typ().is_none());
        // Unless the operator keeps them.
        let kept = devices_blocking(&config, None).unwrap();
        assert!(kept.nodes.is_empty() && !kept.rules[0].allow());
    }

    #[test]
    fn refusals_say_why() {
        for (config, expected) in [
            (
                asks("/dev/null", "/dev/x", ""),
                "config.devices[0].permissions: \"\" is not made of r, w and m",
            ),
            (asks("/dev/null", "/dev/x", "rx"), "config.devices[0].permissions: \"rx\" is not"),
            (asks("/dev/null", "/dev/x", "rr"), "config.devices[0].permissions: \"rr\" is not"),
            (asks("null", "/dev/x", "r"), "config.devices[0].host_path: \"null\" is not an absolute path"),
            (asks("/dev/null", "x", "r"), "config.devices[0].container_path: \"x\" is not an absolute path"),
            (asks("/dev/null", "/dev/../x", "r"), "config.devices[0].container_path: /dev/../x contains .."),
            (asks("/dev/no-such", "", "r"), "look at device /dev/no-such"),
            (asks("/etc/passwd", "", "r"), "look at device /etc/passwd"),
        ] {
            let found = refusal(&config);
            assert!(found.starts_with(expected), "{found}");
        }
    }
}
