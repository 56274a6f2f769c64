//! The files in `deploy/` say what the program means.

use std::path::Path;

use hartpod::config::Config;

fn read(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Directives of systemd.exec(5) that give a service a mount namespace of its own.
const MOUNT_NAMESPACE: [&str; 33] = [
    "BindPaths",
    "BindReadOnlyPaths",
    "DynamicUser",
    "ExecPaths",
    "ExtensionDirectories",
    "ExtensionImages",
    "InaccessiblePaths",
    "JoinsNamespaceOf",
    "MountAPIVFS",
    "MountFlags",
    "MountImages",
    "NoExecPaths",
    "PrivateDevices",
    "PrivateIPC",
    "PrivateMounts",
    "PrivateNetwork",
    "PrivatePIDs",
    "PrivateTmp",
    "PrivateUsers",
    "ProcSubset",
    "ProtectControlGroups",
    "ProtectHome",
    "ProtectHostname",
    "ProtectKernelLogs",
    "ProtectKernelModules",
    "ProtectKernelTunables",
    "ProtectProc",
    "ProtectSystem",
    "ReadOnlyPaths",
    "ReadWritePaths",
    "RootDirectory",
    "RootImage",
    "TemporaryFileSystem",
];

fn directives(unit: &str) -> Vec<(&str, &str)> {
    unit.lines().filter(|l| !l.starts_with('#')).filter_map(|l| l.split_once('=')).collect()
}

#[test]
fn the_unit_has_no_directive_that_implies_a_mount_namespace() {
    let unit = read("hartpod.service");
    for (key, _) in directives(&unit) {
        assert!(!MOUNT_NAMESPACE.contains(&key), "{key}");
    }
}

#[test]
fn the_unit_lets_pods_outlive_the_daemon() {
    let unit = read("hartpod.service");
    let directives = directives(&unit);
    for wanted in [("Type", "notify"), ("KillMode", "process"), ("Delegate", "yes")] {
        assert!(directives.contains(&wanted), "{wanted:?}");
    }
    // It would remove the sockets of running pods when the daemon stops.
    assert!(!directives.iter().any(|(key, _)| *key == "RuntimeDirectory"));
}

#[test]
fn crictl_is_sent_to_the_default_socket() {
    let endpoint = format!("unix://{}", Config::default().socket.display());
    let file = read("crictl.yaml");
    for key in ["runtime-endpoint", "image-endpoint"] {
        assert!(file.lines().any(|l| l == format!("{key}: {endpoint}")), "{key}");
    }
}

#[test]
fn the_sample_network_maps_ports() {
    let network: serde_json::Value = serde_json::from_str(&read("10-hartpod.conflist")).unwrap();
    let types: Vec<_> = network["plugins"].as_array().unwrap().iter().map(|p| &p["type"]).collect();
    assert_eq!(types, ["bridge", "portmap"]);
    assert_eq!(network["plugins"][1]["capabilities"]["portMappings"], true);
}

#[test]
fn the_runtime_class_declares_what_a_guest_costs() {
    let vm = Config::default().vm;
    let overhead = format!("    memory: {}Mi\n", vm.guest_base_mib + vm.overhead_mib);
    assert!(read("runtimeclass.yaml").contains(&overhead), "{overhead}");
}
