use hartpod_proto::pod::v1::NamespaceMode;

use super::super::tests::Fixture;
use super::*;

fn asks(container_path: &str, host_path: &str) -> cri::Mount {
    cri::Mount { container_path: container_path.into(), host_path: host_path.into(), ..Default::default() }
}

fn all(fixture: &Fixture, node_ipc: bool) -> Mounts {
    mounts(&fixture.input(), &Namespaces { node_ipc, ..own() }).unwrap()
}

fn own() -> Namespaces {
    Namespaces { users: None, pid: NamespaceMode::Container, pid_target: String::new(), node_ipc: false }
}

fn at<'a>(mounts: &'a Mounts, destination: &str) -> &'a Mount {
    mounts.list.iter().find(|m| m.destination() == Path::new(destination)).unwrap()
}

fn options(mount: &Mount) -> Vec<&str> {
    mount.options().iter().flatten().map(String::as_str).collect()
}

fn refusal(mount: cri::Mount) -> String {
    let mut fixture = Fixture::new();
    fixture.container.mounts.push(mount);
    mounts(&fixture.input(), &own()).unwrap_err().to_string()
}

#[test]
fn without_a_request_there_are_the_kernels_file_systems_read_only_where_it_matters() {
    let mounts = all(&Fixture::new(), false);
    let destinations: Vec<_> = mounts.list.iter().map(|m| m.destination().to_str().unwrap()).collect();
    assert_eq!(
        destinations,
        ["/proc", "/dev", "/sys", "/dev/pts", "/dev/mqueue", "/dev/shm", "/sys/fs/cgroup"]
    );
    assert!(options(at(&mounts, "/sys")).contains(&"ro"));
    assert!(options(at(&mounts, "/sys/fs/cgroup")).contains(&"ro"));
    assert_eq!(mounts.rootfs_propagation, None);
}

#[test]
fn a_privileged_container_may_write_sys_and_cgroups() {
    let mut fixture = Fixture::new();
    fixture.security().privileged = true;
    let mounts = all(&fixture, false);
    assert!(options(at(&mounts, "/sys")).contains(&"rw"));
    assert!(options(at(&mounts, "/sys/fs/cgroup")).contains(&"rw"));
}

#[test]
fn shm_is_the_pods_or_with_the_nodes_ipc_the_nodes() {
    let fixture = Fixture::new();
    assert_eq!(at(&all(&fixture, false), "/dev/shm").typ().as_deref(), Some("tmpfs"));
    let host = all(&fixture, true);
    assert_eq!(at(&host, "/dev/shm").source().as_deref(), Some(Path::new("/dev/shm")));
    assert_eq!(at(&host, "/dev/shm").typ().as_deref(), Some("bind"));
}

#[test]
fn the_pods_files_are_there_unless_the_request_brings_its_own() {
    let mut fixture = Fixture::new();
    for file in ["hostname", "hosts", "resolv.conf"] {
        std::fs::write(fixture.dir.path().join(file), "").unwrap();
    }
    fixture.container.mounts.push(asks("/etc/hosts", "/var/lib/kubelet/hosts"));
    fixture.security().readonly_rootfs = true;
    let mounts = all(&fixture, false);
    let source = |destination: &str| at(&mounts, destination).source().clone().unwrap();
    assert_eq!(source("/etc/hosts"), Path::new("/var/lib/kubelet/hosts"));
    assert_eq!(source("/etc/hostname"), fixture.dir.path().join("hostname"));
    assert_eq!(options(at(&mounts, "/etc/resolv.conf")), ["rbind", "rprivate", "ro"]);
    assert_eq!(mounts.list.iter().filter(|m| m.destination() == Path::new("/etc/hosts")).count(), 1);
}

#[test]
fn a_volume_takes_the_kernels_mounts_below_it_away_but_not_the_pods() {
    let mut fixture = Fixture::new();
    std::fs::write(fixture.dir.path().join("hosts"), "").unwrap();
    fixture.container.mounts =
        vec![asks("/dev", "/dev"), asks("/dev/log", "/run/log"), asks("/sys", "/sys"), asks("/etc", "/x")];
    let mounts = all(&fixture, false);
    let destinations: Vec<_> = mounts.list.iter().map(|m| m.destination().to_str().unwrap()).collect();
    assert_eq!(destinations, ["/proc", "/dev", "/sys", "/etc", "/dev/shm", "/etc/hosts", "/dev/log"]);
    assert!(
        mounts
            .list
            .iter()
            .filter(|m| !m.destination().starts_with("/dev/shm"))
            .skip(1)
            .all(|m| { m.typ().as_deref() == Some("bind") })
    );
}

#[test]
fn parents_come_before_children_and_equals_keep_their_order() {
    let mut fixture = Fixture::new();
    fixture.container.mounts =
        vec![asks("/data/a/b", "/1"), asks("/data/", "/2"), asks("/data/a", "/3"), asks("/data", "/4")];
    let mounts = all(&fixture, false);
    let data: Vec<_> = mounts
        .list
        .iter()
        .filter(|m| m.destination().starts_with("/data"))
        .map(|m| m.source().as_ref().unwrap().to_str().unwrap())
        .collect();
    assert_eq!(data, ["/2", "/4", "/3", "/1"]);
}

#[test]
fn access_and_propagation_by_table() {
    use cri::MountPropagation::*;
    for (propagation, readonly, recursive, expected, root) in [
        (PropagationPrivate, false, false, ["rbind", "rprivate", "rw"], None),
        (PropagationPrivate, true, false, ["rbind", "rprivate", "ro"], None),
        (PropagationPrivate, true, true, ["rbind", "rprivate", "rro"], None),
        (PropagationHostToContainer, true, false, ["rbind", "rslave", "ro"], Some("rslave")),
        (PropagationBidirectional, false, false, ["rbind", "rshared", "rw"], Some("rshared")),
    ] {
        let mut fixture = Fixture::new();
        fixture.container.mounts.push(cri::Mount {
            readonly,
            recursive_read_only: recursive,
            propagation: propagation.into(),
            ..asks("/data", "/host")
        });
        let mounts = all(&fixture, false);
        assert_eq!(options(at(&mounts, "/data")), expected);
        assert_eq!(mounts.rootfs_propagation, root);
    }
}

#[test]
fn bidirectional_wins_over_host_to_container_in_any_order() {
    use cri::MountPropagation::*;
    for order in [
        [PropagationBidirectional, PropagationHostToContainer],
        [PropagationHostToContainer, PropagationBidirectional],
    ] {
        let mut fixture = Fixture::new();
        for (i, p) in order.into_iter().enumerate() {
            fixture
                .container
                .mounts
                .push(cri::Mount { propagation: p.into(), ..asks(&format!("/m{i}"), "/host") });
        }
        assert_eq!(all(&fixture, false).rootfs_propagation, Some("rshared"));
    }
}

#[test]
fn refusals_name_the_field() {
    let readonly = |recursive, propagation| cri::Mount {
        recursive_read_only: recursive,
        readonly: propagation != 0,
        propagation,
        ..asks("/data", "/host")
    };
    let image = cri::Mount { image: Some(cri::ImageSpec::default()), ..asks("/data", "") };
    let mapped = cri::Mount { uid_mappings: vec![cri::IdMapping::default()], ..asks("/data", "/host") };
    let ids = vec![cri::IdMapping { host_id: 7, container_id: 0, length: 8 }];
    let alone = cri::Mount { uid_mappings: ids.clone(), gid_mappings: ids, ..asks("/data", "/host") };
    for (mount, expected) in [
        (asks("data", "/host"), "config.mounts[0].container_path: \"data\" is not an absolute path"),
        (
            asks("/", "/host"),
            "config.mounts[0].container_path: the root of the container cannot be mounted over",
        ),
        (asks("/a/../", "/host"), "config.mounts[0].container_path: the root of the container"),
        (asks("/data", ""), "config.mounts[0].host_path: \"\" is not an absolute path"),
        (asks("/data", "host"), "config.mounts[0].host_path: \"host\" is not an absolute path"),
        (
            asks("/proc/sys/kernel", "/host"),
            "config.mounts[0].container_path: /proc/sys/kernel is inside /proc",
        ),
        (asks("/x/../proc/self", "/host"), "config.mounts[0].container_path: /proc/self is inside /proc"),
        (asks("/proc", "/host"), "config.mounts[0].container_path: only the host's /proc"),
        (readonly(true, 0), "config.mounts[0].recursive_read_only: needs readonly to be set"),
        (readonly(true, 1), "config.mounts[0].recursive_read_only: needs private propagation"),
        (readonly(false, 7), "config.mounts[0].propagation: 7 is not known"),
        (image, "config.mounts[0].image: names no image"),
        (mapped, "config.mounts[0].uidMappings: uids[0]: the length is 0"),
        (alone, "config.mounts[0].uidMappings"),
    ] {
        let found = refusal(mount);
        assert!(found.starts_with(expected), "{found}");
    }
}

#[test]
fn lxcfs_may_replace_files_of_proc() {
    let mut fixture = Fixture::new();
    fixture.container.mounts.push(asks("/proc/meminfo", "/var/lib/lxcfs/proc/meminfo"));
    fixture.container.mounts.push(asks("/proc/sys/crypto/fips_enabled", "/etc/fips"));
    fixture.container.mounts.push(asks("/proc", "/proc"));
    all(&fixture, false);
}

#[test]
fn what_a_guest_mounts_is_to_be_shared_with_it() {
    let mut fixture = Fixture::new();
    fixture.container.mounts.push(asks("/data", "/node/data"));
    let read_only =
        cri::Mount { readonly: true, recursive_read_only: true, ..asks("/etc/hosts", "/node/hosts") };
    fixture.container.mounts.push(read_only);
    let of = |propagation: cri::MountPropagation| {
        let mut input = fixture.input();
        input.kind = Kind::Guest;
        let mut container = fixture.container.clone();
        container.mounts[0].propagation = propagation.into();
        mounts(&SpecInput { container: &container, ..input }, &own())
    };
    let shared = of(cri::MountPropagation::PropagationPrivate).unwrap();
    let volume = |source: &str, destination: &str, access| Volume {
        source: source.into(),
        destination: destination.into(),
        access,
    };
    assert_eq!(
        shared.volumes,
        [
            volume("/node/data", "/data", VolumeAccess::ReadWrite),
            volume("/node/hosts", "/etc/hosts", VolumeAccess::ReadOnlyTree)
        ]
    );
    assert_eq!(options(at(&shared, "/data")), ["rbind", "rprivate", "rw"]);
    assert_eq!(options(at(&shared, "/etc/hosts")), ["rbind", "rprivate", "ro"]);
    for passing in
        [cri::MountPropagation::PropagationHostToContainer, cri::MountPropagation::PropagationBidirectional]
    {
        let refused = of(passing).unwrap_err().to_string();
        assert!(refused.contains("config.mounts[0].propagation"), "{refused}");
    }
    assert!(
        all(&fixture, false).volumes.is_empty(),
        "a container on the node takes them from where they are"
    );
}

#[test]
fn a_pod_with_a_user_namespace_sees_its_own_files_with_its_ids_and_volumes_with_theirs() {
    let ids = |host_id, length| vec![cri::IdMapping { host_id, container_id: 0, length }];
    let namespaces = |length| Namespaces {
        users: Some(id_maps(&ids(65536, length), &ids(65536, length)).unwrap()),
        ..own()
    };
    let mut fixture = Fixture::new();
    std::fs::write(fixture.input().sandbox_dir.join("hosts"), "").unwrap();
    let mapped = cri::Mount { uid_mappings: ids(7, 8), gid_mappings: ids(9, 10), ..asks("/mapped", "/host") };
    fixture.container.mounts.extend([mapped, asks("/plain", "/host")]);
    let found = mounts(&fixture.input(), &namespaces(65536)).unwrap();
    let host_ids = |destination| {
        let mount = at(&found, destination);
        let first = |list: &Option<Vec<LinuxIdMapping>>| list.as_ref().map(|list| list[0].host_id());
        (first(mount.uid_mappings()), first(mount.gid_mappings()))
    };
    assert_eq!(host_ids("/etc/hosts"), (Some(65536), Some(65536)));
    assert_eq!((host_ids("/mapped"), host_ids("/plain")), ((Some(7), Some(9)), (None, None)));
    assert!(options(at(&found, "/dev/pts")).contains(&"gid=5"));
    let few = mounts(&fixture.input(), &namespaces(5)).unwrap();
    assert!(!options(at(&few, "/dev/pts")).contains(&"gid=5"));
    fixture.container.mounts[1].propagation = cri::MountPropagation::PropagationBidirectional.into();
    let refused = mounts(&fixture.input(), &namespaces(65536)).unwrap_err().to_string();
    assert!(
        refused.starts_with("config.mounts[1].propagation cannot be honoured: a pod with a user"),
        "{refused}"
    );
}
