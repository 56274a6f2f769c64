//! Kernel parameters of the pod's own namespaces; in a guest, of its kernel.

use std::fs;
use std::io;
use std::path::PathBuf;

use super::SetUpError;
use crate::failure::Failure;
use crate::request::{IpcMode, PodSetup};

/// Namespaced by IPC namespace (ipc/ipc_sysctl.c), as far as Kubernetes knows them.
const IPC_KEYS: [&str; 8] = [
    "kernel/shmmax",
    "kernel/shmall",
    "kernel/shmmni",
    "kernel/shm_rmid_forced",
    "kernel/msgmax",
    "kernel/msgmni",
    "kernel/msgmnb",
    "kernel/sem",
];

/// Sets the pod's parameters. This process is in the pod's namespaces, so its /proc/sys shows theirs.
///
/// Those of namespaces that a user namespace owns are for its root: they are left to [`set_owned`].
pub(super) fn set_all(setup: &PodSetup) -> Result<(), SetUpError> {
    for (key, value) in &setup.sysctls {
        let path = path_of(key);
        if !is_own(&path, setup) {
            return Err(SetUpError::ForeignSysctl { key: key.clone() });
        }
        if setup.users.is_none() || !is_owned(&path) {
            write(&path, value).map_err(|source| refused(setup, key, source))?;
        }
    }
    Ok(())
}

/// Sets those of the pod's IPC and network namespaces, as the root of the user namespace that owns them: others may not set the first, and
/// ids in the second (`net.ipv4.ping_group_range`) are the writer's. The error names the one that the kernel refused.
pub(super) fn set_owned(setup: &PodSetup) -> Result<(), Failure> {
    for (key, value) in &setup.sysctls {
        let path = path_of(key);
        if is_owned(&path) && is_own(&path, setup) {
            write(&path, value).map_err(|e| Failure::Sysctl { key: key.clone(), errno: e.into() })?;
        }
    }
    Ok(())
}

fn write(path: &str, value: &str) -> io::Result<()> {
    fs::write(PathBuf::from("/proc/sys").join(path), value)
}

/// The kernel refused one.
pub(super) fn refused(setup: &PodSetup, key: &str, source: io::Error) -> SetUpError {
    let value = setup.sysctls.get(key).map(|value| shown(value)).unwrap_or_default();
    SetUpError::Sysctl { key: key.to_owned(), value, source }
}

/// A value as an error repeats it: it is the request's, and may be of any length.
fn shown(value: &str) -> String {
    const MOST: usize = 64;
    match value.char_indices().nth(MOST) {
        Some((at, _)) => format!("{}.. ({} bytes)", &value[..at], value.len()),
        None => value.to_owned(),
    }
}

/// As sysctl(8) reads names: the first separator decides what separates; the other one stands for itself, so that both
/// `net.ipv4.conf.eth0/1.rp_filter` and `net/ipv4/conf/eth0.1/rp_filter` name an interface with a dot.
fn path_of(key: &str) -> String {
    match key.find(['.', '/']) {
        Some(at) if key.as_bytes()[at] == b'.' => key
            .chars()
            .map(|c| match c {
                '.' => '/',
                '/' => '.',
                other => other,
            })
            .collect(),
        _ => key.to_owned(),
    }
}

fn is_of_ipc(path: &str) -> bool {
    IPC_KEYS.contains(&path) || path.starts_with("fs/mqueue/")
}

/// Whether it is of a kind of namespace that a pod's user namespace owns. The domain name is of another, but the node's root alone may set it.
fn is_owned(path: &str) -> bool {
    is_of_ipc(path) || path.starts_with("net/")
}

/// In a guest everything is the pod's: the kernel is.
fn is_own(path: &str, setup: &PodSetup) -> bool {
    let clean = !path.split('/').any(|part| part.is_empty() || part == "." || part == "..");
    let own_network = setup.netns.is_some() && path.starts_with("net/");
    let own_ipc = setup.ipc == IpcMode::Pod && is_of_ipc(path);
    let own_uts = !setup.hostname.is_empty() && path == "kernel/domainname";
    clean && (setup.is_guest() || own_network || own_ipc || own_uts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::request::PodPid;

    fn setup(netns: Option<&str>) -> PodSetup {
        PodSetup {
            pod_id: hartpod_proto::SandboxId::from_bytes([1; 32]),
            hostname: String::new(),
            netns: netns.map(PathBuf::from),
            ipc: IpcMode::Pod,
            pid: PodPid::PerContainer,
            cgroup_parent: String::new(),
            layers_dir: "/layers".into(),
            containers_dir: "/containers".into(),
            shm_size: 0,
            sysctls: std::collections::BTreeMap::new(),
            mount_label: String::new(),
            users: None,
        }
    }

    #[test]
    fn an_error_does_not_repeat_a_value_of_any_length() {
        assert_eq!(shown("1 2 3"), "1 2 3");
        assert_eq!(shown(&"\u{e9}".repeat(2500)), format!("{}.. (5000 bytes)", "\u{e9}".repeat(64)));
    }

    #[test]
    fn names_are_read_as_by_sysctl() {
        assert_eq!(path_of("net.ipv4.conf.eth0/1.rp_filter"), "net/ipv4/conf/eth0.1/rp_filter");
        assert_eq!(path_of("net/ipv4/conf/eth0.1/rp_filter"), "net/ipv4/conf/eth0.1/rp_filter");
        assert_eq!(path_of("kernel.shmmax"), "kernel/shmmax");
    }

    #[test]
    fn only_the_pods_own_parameters_may_be_set() {
        let own = |key: &str, netns| is_own(&path_of(key), &setup(netns));
        assert!(own("net.ipv4.ip_forward", Some("/n")));
        assert!(own("kernel.shm_rmid_forced", None));
        assert!(own("fs.mqueue.msg_max", None));
        for foreign in ["net.ipv4.ip_forward", "kernel.panic", "vm.overcommit_memory", "kernel.domainname"] {
            assert!(!own(foreign, None), "{foreign}");
        }
        for escape in ["net/../kernel/panic", "net//x", "net/./ipv4", "fs/mqueue/../file-max"] {
            assert!(!own(escape, Some("/n")), "{escape}");
        }
    }

    #[test]
    fn the_kernel_of_a_guest_is_its_pods() {
        let guest = PodSetup { layers_dir: PathBuf::new(), ..setup(None) };
        for path in ["net/ipv4/ip_forward", "vm/overcommit_memory", "kernel/panic"] {
            assert!(is_own(path, &guest), "{path}");
            assert!(!is_own(path, &setup(None)), "{path}");
        }
        assert!(!is_own("net/../../../etc/passwd", &guest));
    }
}
