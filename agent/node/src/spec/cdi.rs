//! Devices that CDI files describe (KEP-4009): a container's environment, nodes, mounts and groups as they say.

use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Component, Path};

use hartpod_container::hooks::{self, Moment};
use hartpod_proto::cri::v1 as cri;
use oci_spec::runtime::{Hook, LinuxDevice, LinuxDeviceCgroup, LinuxDeviceType, Mount, Spec};

use super::SpecError;
use crate::cdi::{self, DeviceName, DeviceNode, Edits, Registry};
use crate::validate::Kind;

const FIELD: &str = "config.CDI_devices";

/// Annotations of a container that begin so name devices, too.
const ANNOTATION: &str = "cdi.k8s.io/";

/// Applies what the files in `folders` say of the devices that are asked for.
pub(super) fn apply_blocking(
    container: &cri::ContainerConfig,
    kind: Kind,
    folders: &[std::path::PathBuf],
    spec: &mut Spec,
) -> Result<(), SpecError> {
    let names = names(container)?;
    if names.is_empty() {
        return Ok(());
    }
    if kind == Kind::Guest {
        let why = "devices of the node cannot be had with runtime handler \"vm\"";
        return Err(SpecError::unsupported(FIELD, why));
    }
    let registry = Registry::read_blocking(folders);
    for edits in registry.edits(&names)? {
        refuse_unsupported(edits)?;
        apply(edits, spec)?;
    }
    // Parents before children, as all mounts; two at one place keep their order.
    if let Some(mounts) = spec.mounts_mut() {
        mounts.sort_by_key(|mount| mount.destination().components().count());
    }
    Ok(())
}

/// Those of the field first, each once, as in containerd.
fn names(container: &cri::ContainerConfig) -> Result<Vec<DeviceName>, SpecError> {
    let mut names: Vec<DeviceName> = Vec::new();
    let mut add = |field: &str, text: &str| {
        let name = text.parse::<DeviceName>();
        let name =
            name.map_err(|()| SpecError::invalid(field, format!("{text:?} is not VENDOR/CLASS=DEVICE")))?;
        if !names.contains(&name) {
            names.push(name);
        }
        Ok::<_, SpecError>(())
    };
    for device in &container.cdi_devices {
        add(FIELD, &device.name)?;
    }
    for (key, value) in container.annotations.iter().filter(|(key, _)| key.starts_with(ANNOTATION)) {
        for name in value.split(',') {
            add(&format!("config.annotations[{key:?}]"), name)?;
        }
    }
    Ok(names)
}

fn refuse_unsupported(edits: &Edits) -> Result<(), SpecError> {
    for (asked, what) in
        [(edits.intel_rdt.is_some(), "intelRdt"), (!edits.net_devices.is_empty(), "netDevices")]
    {
        if asked {
            return Err(SpecError::unsupported(FIELD, format!("{what} of CDI devices are not supported")));
        }
    }
    Ok(())
}

fn apply(edits: &Edits, spec: &mut Spec) -> Result<(), SpecError> {
    if let Some(process) = spec.process_mut() {
        let env = process.env_mut().get_or_insert_default();
        for variable in &edits.env {
            let Some((name, _)) = variable.split_once('=').filter(|(name, _)| !name.is_empty()) else {
                return Err(SpecError::invalid(FIELD, format!("env {variable:?} is not NAME=VALUE")));
            };
            env.retain(|known| known.split_once('=').is_none_or(|(known, _)| known != name));
            env.push(variable.clone());
        }
        let mut user = process.user().clone();
        let mut gids = user.additional_gids().clone().unwrap_or_default();
        gids.extend(edits.additional_gids.iter().filter(|gid| **gid != 0));
        user.set_additional_gids(Some(gids).filter(|gids| !gids.is_empty()));
        process.set_user(user);
    }
    for node in &edits.device_nodes {
        add_device(node, spec)?;
    }
    for hook in &edits.hooks {
        add_hook(hook, spec)?;
    }
    for mount in &edits.mounts {
        let made = mount_of(mount)?;
        let mounts = spec.mounts_mut().get_or_insert_default();
        mounts.retain(|other| other.destination() != made.destination());
        mounts.push(made);
    }
    Ok(())
}

fn add_hook(asked: &cdi::Hook, spec: &mut Spec) -> Result<(), SpecError> {
    let name = &asked.hook_name;
    let moment = Moment::ALL.into_iter().find(|moment| moment.name() == name);
    let moment =
        moment.ok_or_else(|| SpecError::invalid(FIELD, format!("{name:?} is not the name of a hook")))?;
    let given = |list: &Vec<String>| Some(list.clone()).filter(|list| !list.is_empty());
    let mut hook = Hook::default();
    hook.set_path(asked.path.clone())
        .set_args(given(&asked.args))
        .set_env(given(&asked.env))
        .set_timeout(asked.timeout);
    hooks::check(&hook).map_err(|why| SpecError::invalid(FIELD, format!("{name} hook: {why}")))?;
    if let Some(odd) = asked.env.iter().find(|v| v.split_once('=').is_none_or(|(key, _)| key.is_empty())) {
        return Err(SpecError::invalid(FIELD, format!("{name} hook: env {odd:?} is not NAME=VALUE")));
    }
    moment.add(spec.hooks_mut().get_or_insert_default(), hook);
    Ok(())
}

fn plain(what: &str, path: &Path) -> Result<(), SpecError> {
    let odd = |c: Component<'_>| c == Component::ParentDir;
    if path.is_absolute() && !path.components().any(odd) && !path.as_os_str().as_encoded_bytes().contains(&0)
    {
        return Ok(());
    }
    Err(SpecError::invalid(FIELD, format!("{what} {} is not an absolute path without ..", path.display())))
}

fn mount_of(asked: &cdi::Mount) -> Result<Mount, SpecError> {
    plain("mount on", &asked.container_path)?;
    let mut options = asked.options.clone();
    let typ = asked.typ.clone().unwrap_or_else(|| "bind".to_owned());
    if typ == "bind" {
        plain("mount of", &asked.host_path)?;
        if !options.iter().any(|option| option == "bind" || option == "rbind") {
            options.push("rbind".to_owned());
        }
    }
    let mut mount = Mount::default();
    mount
        .set_destination(asked.container_path.clone())
        .set_source(Some(asked.host_path.clone()))
        .set_typ(Some(typ))
        .set_options(Some(options));
    Ok(mount)
}

/// A node, and the right to use it. What the file does not say of it is looked up on the node.
fn add_device(asked: &DeviceNode, spec: &mut Spec) -> Result<(), SpecError> {
    plain("device", &asked.path)?;
    let host = asked.host_path.as_ref().unwrap_or(&asked.path);
    let mut typ = asked.typ.as_deref().map(device_type).transpose()?;
    let (mut major, mut minor) = (asked.major, asked.minor);
    let is_fifo = typ == Some(LinuxDeviceType::P);
    if typ.is_none() || (!is_fifo && (major.is_none() || minor.is_none())) {
        let at = |source| SpecError::Device { path: host.clone(), source };
        let meta = std::fs::metadata(host).map_err(at)?;
        let found = if meta.file_type().is_char_device() {
            LinuxDeviceType::C
        } else if meta.file_type().is_block_device() {
            LinuxDeviceType::B
        } else {
            return Err(at(std::io::Error::new(std::io::ErrorKind::InvalidInput, "it is not a device")));
        };
        typ = typ.or(Some(found));
        major = major.or(Some(rustix::fs::major(meta.rdev()).into()));
        minor = minor.or(Some(rustix::fs::minor(meta.rdev()).into()));
    }
    let typ = typ.unwrap_or(LinuxDeviceType::C);
    let owner =
        spec.process().as_ref().map_or((0, 0), |process| (process.user().uid(), process.user().gid()));
    let mut device = LinuxDevice::default();
    device
        .set_path(asked.path.clone())
        .set_typ(typ)
        .set_major(major.unwrap_or(0))
        .set_minor(minor.unwrap_or(0))
        .set_file_mode(Some(asked.file_mode.unwrap_or(0o666)))
        .set_uid(Some(asked.uid.unwrap_or(owner.0)))
        .set_gid(Some(asked.gid.unwrap_or(owner.1)));
    let linux = spec.linux_mut().get_or_insert_default();
    let devices = linux.devices_mut().get_or_insert_default();
    devices.retain(|other| other.path() != device.path());
    devices.push(device);
    if !is_fifo {
        let mut rule = LinuxDeviceCgroup::default();
        let access = asked.permissions.clone().unwrap_or_else(|| "rwm".to_owned());
        if access.is_empty() || !access.chars().all(|c| "rwm".contains(c)) {
            return Err(SpecError::invalid(
                FIELD,
                format!("permissions {access:?} are not made of r, w and m"),
            ));
        }
        rule.set_allow(true).set_typ(Some(typ)).set_major(major).set_minor(minor).set_access(Some(access));
        let resources = linux.resources_mut().get_or_insert_default();
        resources.devices_mut().get_or_insert_default().push(rule);
    }
    Ok(())
}

fn device_type(text: &str) -> Result<LinuxDeviceType, SpecError> {
    Ok(match text {
        "b" => LinuxDeviceType::B,
        "c" | "u" => LinuxDeviceType::C,
        "p" => LinuxDeviceType::P,
        other => return Err(SpecError::invalid(FIELD, format!("{other:?} is no type of device"))),
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::Fixture;
    use super::*;

    fn write(dir: &Path, edits: &str) {
        let text = format!(
            r#"{{"cdiVersion": "1.1.0", "kind": "vendor.com/gpu", "devices": [{{"name": "0", "containerEdits": {{{edits}}}}}]}}"#
        );
        std::fs::write(dir.join("gpu.json"), text).unwrap();
    }

    fn asks(dir: &Path) -> Fixture {
        let mut fixture = Fixture::new();
        fixture.settings.cdi_folders = vec![dir.to_owned()];
        fixture.container.cdi_devices = vec![cri::CdiDevice { name: "vendor.com/gpu=0".into() }];
        fixture
    }

    fn spec(fixture: &Fixture) -> Result<Spec, String> {
        let plan = super::super::container_spec_blocking(&fixture.input());
        plan.map(|plan| plan.spec).map_err(|e| e.to_string())
    }

    #[test]
    fn a_device_brings_what_its_file_says() {
        let dir = tempfile::tempdir().unwrap();
        write(
            dir.path(),
            r#""env": ["HOSTNAME=gpu", "GPU=0"], "additionalGids": [44, 0],
            "deviceNodes": [{"path": "/dev/gpu0", "hostPath": "/dev/null", "permissions": "rw"}],
            "mounts": [{"hostPath": "/lib/gpu", "containerPath": "/usr/lib/gpu", "options": ["ro", "nosuid"]}]"#,
        );
        let spec = spec(&asks(dir.path())).unwrap();
        let process = spec.process().as_ref().unwrap();
        let env = process.env().as_ref().unwrap();
        assert!(env.contains(&"GPU=0".to_owned()) && env.contains(&"HOSTNAME=gpu".to_owned()), "{env:?}");
        assert!(!env.contains(&"HOSTNAME=web-0".to_owned()), "{env:?}");
        assert_eq!(process.user().additional_gids().as_deref(), Some(&[44][..]));
        let linux = spec.linux().as_ref().unwrap();
        let node = linux.devices().as_ref().unwrap().last().unwrap();
        assert_eq!((node.path().as_path(), node.major(), node.minor()), (Path::new("/dev/gpu0"), 1, 3));
        let rule = linux.resources().as_ref().unwrap().devices().as_ref().unwrap().last().unwrap();
        assert_eq!((rule.allow(), rule.major(), rule.access().as_deref()), (true, Some(1), Some("rw")));
        let mount =
            spec.mounts().iter().flatten().find(|m| m.destination() == Path::new("/usr/lib/gpu")).unwrap();
        assert_eq!(mount.options().as_ref().unwrap(), &["ro", "nosuid", "rbind"]);
    }

    #[test]
    fn hooks_of_a_file_and_of_its_devices_keep_their_order() {
        let dir = tempfile::tempdir().unwrap();
        let text = r#"{"cdiVersion": "0.6.0", "kind": "vendor.com/gpu",
            "containerEdits": {"hooks": [{"hookName": "createContainer", "path": "/all", "args": ["all", "-v"], "timeout": 5}]},
            "devices": [{"name": "0", "containerEdits": {"hooks": [
                {"hookName": "createContainer", "path": "/one", "env": ["A=b"]}, {"hookName": "poststop", "path": "/end"}]}}]}"#;
        std::fs::write(dir.path().join("gpu.json"), text).unwrap();
        let spec = spec(&asks(dir.path())).unwrap();
        let hooks = serde_json::to_value(spec.hooks()).unwrap();
        let expected = serde_json::json!({
            "createContainer": [{"path": "/all", "args": ["all", "-v"], "timeout": 5}, {"path": "/one", "env": ["A=b"]}],
            "poststop": [{"path": "/end"}],
        });
        assert_eq!(hooks, expected);
    }

    #[test]
    fn annotations_name_devices_too_and_each_counts_once() {
        let mut container = cri::ContainerConfig {
            cdi_devices: vec![cri::CdiDevice { name: "v.com/gpu=0".into() }],
            ..Default::default()
        };
        container.annotations = [
            ("cdi.k8s.io/plugin".to_owned(), "v.com/gpu=1,v.com/gpu=0".to_owned()),
            ("other/key".to_owned(), "no device".to_owned()),
        ]
        .into();
        let found: Vec<String> = names(&container).unwrap().iter().map(ToString::to_string).collect();
        assert_eq!(found, ["v.com/gpu=0", "v.com/gpu=1"]);
        container.annotations = [("cdi.k8s.io/plugin".to_owned(), "gpu".to_owned())].into();
        let refused = names(&container).unwrap_err().to_string();
        assert_eq!(refused, "config.annotations[\"cdi.k8s.io/plugin\"]: \"gpu\" is not VENDOR/CLASS=DEVICE");
    }

    #[test]
    fn what_cannot_be_had_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let fixture = asks(dir.path());
        assert_eq!(spec(&fixture).unwrap_err(), "no CDI device vendor.com/gpu=0");
        for (edits, expected) in [
            (
                r#""hooks": [{"hookName": "preStart", "path": "/x"}]"#,
                "\"preStart\" is not the name of a hook",
            ),
            (r#""hooks": [{"hookName": "prestart", "path": "x"}]"#, "prestart hook: path x is not absolute"),
            (
                r#""hooks": [{"hookName": "poststop", "path": "/x", "timeout": 0}]"#,
                "poststop hook: timeout 0 is not greater than 0",
            ),
            (
                r#""hooks": [{"hookName": "poststop", "path": "/x", "env": ["A"]}]"#,
                "poststop hook: env \"A\" is not NAME=VALUE",
            ),
            (r#""intelRdt": {}"#, "intelRdt of CDI devices are not supported"),
            (r#""netDevices": [{}]"#, "netDevices of CDI devices are not supported"),
            (r#""env": ["=x"]"#, "env \"=x\" is not NAME=VALUE"),
            (r#""deviceNodes": [{"path": "/dev/../x"}]"#, "is not an absolute path without .."),
            (r#""deviceNodes": [{"path": "/dev/none-such"}]"#, "look at device /dev/none-such"),
            (r#""deviceNodes": [{"path": "/dev/null", "permissions": "x"}]"#, "are not made of r, w and m"),
            (r#""mounts": [{"hostPath": "x", "containerPath": "/x"}]"#, "is not an absolute path without .."),
        ] {
            write(dir.path(), edits);
            let refused = spec(&fixture).unwrap_err();
            assert!(refused.ends_with(expected), "{refused}");
        }
        let mut guest = asks(dir.path());
        guest.settings.cdi_folders.clear();
        let mut input = guest.input();
        input.kind = Kind::Guest;
        let refused = super::super::container_spec_blocking(&input).unwrap_err().to_string();
        assert!(refused.ends_with("cannot be had with runtime handler \"vm\""), "{refused}");
    }
}
