//! Kernel parameters of a pod: only those that belong to one of its own namespaces, so that no pod sets the node's. A guest's are all its own.

use hartpod_proto::cri::v1::{self as cri, NamespaceMode as Mode};

use super::{Checked, Kind, invalid};

/// Parameters of an ipc namespace (ipc_namespaces(7)).
const IPC: [&str; 8] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
];

/// As much of a name as an error repeats; the longest that the kernel has are half as long.
const SHOWN: usize = 128;

/// Checks one parameter against the namespaces that the pod has of its own. Both ways of writing it are known:
/// net.ipv4.ip_forward and net/ipv4/ip_forward (where an interface's name may have a dot).
pub(super) fn check(key: &str, value: &str, options: &cri::NamespaceOption, kind: Kind) -> Checked {
    let field = || format!("config.linux.sysctls[{:?}]", key.chars().take(SHOWN).collect::<String>());
    let slashed = key.contains('/') && !key[..key.find('/').unwrap_or(0)].contains('.');
    let parts: Vec<&str> = key.split(if slashed { '/' } else { '.' }).collect();
    let plain = |p: &&str| {
        !p.is_empty()
            && !matches!(*p, "." | "..")
            && p.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '@' | ':'))
    };
    let slash_in_dotted = !slashed && key.contains('/');
    if parts.len() < 2 || !(parts.iter().all(plain) || slash_in_dotted && dotted_with_slashes(&parts)) {
        return Err(invalid(field(), "is not the name of a kernel parameter"));
    }
    if value.contains(['\n', '\0']) {
        return Err(invalid(field(), "the value is not one line"));
    }
    if kind == Kind::Guest {
        // Its kernel is its own.
        return Ok(());
    }
    let dotted = parts.join(".");
    let (own, what) = if parts[0] == "net" {
        (options.network == Mode::Pod as i32, "network")
    } else if IPC.contains(&dotted.as_str()) || dotted.starts_with("fs.mqueue.") {
        (options.ipc == Mode::Pod as i32, "ipc")
    } else {
        return Err(invalid(field(), "does not belong to a namespace of the pod: it would change the node"));
    };
    if !own {
        return Err(invalid(
            field(),
            format!("the pod uses the node's {what} namespace: it would change the node"),
        ));
    }
    Ok(())
}

/// net.ipv4.conf.eth0/1.rp_filter: a slash stands for a dot in an interface's name (sysctl(8)).
fn dotted_with_slashes(parts: &[&str]) -> bool {
    parts.iter().all(|p| {
        !p.is_empty()
            && p.split('/').all(|q| {
                !q.is_empty()
                    && q.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '@' | ':'))
            })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_of_the_pods_own_namespaces_pass() {
        for key in [
            "net.ipv4.ip_unprivileged_port_start",
            "net/ipv4/ip_local_port_range",
            "net/ipv4/conf/eth0.1/rp_filter",
            "net.ipv4.conf.eth0/1.rp_filter",
            "kernel.shm_rmid_forced",
            "kernel.sem",
            "fs.mqueue.msg_max",
        ] {
            check(key, "1 2", &cri::NamespaceOption::default(), Kind::Namespaces).unwrap();
        }
    }

    #[test]
    fn the_nodes_parameters_are_refused() {
        for key in [
            "kernel.panic",
            "vm.swappiness",
            "kernel.core_pattern",
            "fs.file-max",
            "kernel.shmmax2",
            "user.x",
        ] {
            let error =
                check(key, "1", &cri::NamespaceOption::default(), Kind::Namespaces).unwrap_err().to_string();
            assert!(error.ends_with("it would change the node"), "{error}");
        }
        let node =
            cri::NamespaceOption { network: Mode::Node.into(), ipc: Mode::Node.into(), ..Default::default() };
        for key in ["net.ipv4.ip_forward", "kernel.shmmax"] {
            let error = check(key, "1", &node, Kind::Namespaces).unwrap_err().to_string();
            assert!(error.contains("the pod uses the node's"), "{error}");
        }
    }

    #[test]
    fn names_that_leave_proc_sys_are_refused() {
        for key in [
            "",
            "net",
            "net..ipv4",
            "net/../kernel/core_pattern",
            "net.ipv4/../../kernel/core_pattern",
            "net.ipv4.a/../b",
            "/net/ipv4/x",
            "net.ipv4.x\n",
            "net/ipv4//x",
            "net/./ipv4/x",
        ] {
            let error =
                check(key, "1", &cri::NamespaceOption::default(), Kind::Namespaces).unwrap_err().to_string();
            assert!(error.ends_with("is not the name of a kernel parameter"), "{key}: {error}");
        }
        assert!(check("net.a", "1\n2", &cri::NamespaceOption::default(), Kind::Namespaces).is_err());
        let error = check(&"x".repeat(5000), "1", &cri::NamespaceOption::default(), Kind::Namespaces)
            .unwrap_err()
            .to_string();
        assert!(error.len() < 300, "{error}");
    }
}
