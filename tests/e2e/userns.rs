//! Pods with a user namespace of their own: root inside is nobody on the node.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use hartpod_tests::log_file::text;
use hartpod_tests::streaming::{Exec, Forward, Protocol};
use hartpod_tests::{
    Container, ContainerBuilder, Lab, Need, Node, Pod, PodBuilder, Refused, cri, eventually, process, tests,
};
use k8s_cri::v1::NamespaceMode;
use tonic::Code;

tests![
    root_of_a_pod_is_nobody_on_the_node needs Need::OfNode("user namespaces"),
    files_of_a_container_are_its_roots_inside needs Need::OfNode("user namespaces"),
    a_volume_with_maps_is_written_to_as_on_the_node needs Need::OfNode("user namespaces"),
    the_pods_own_files_and_shared_memory_are_roots needs Need::OfNode("user namespaces"),
    containers_share_the_pods_user_namespace needs Need::OfNode("user namespaces"),
    execs_terminals_and_ports_work_as_elsewhere needs Need::OfNode("user namespaces"),
    users_and_groups_are_those_inside needs Need::OfNode("user namespaces"),
    root_administers_the_pods_network_and_mounts_alone needs Need::OfNode("user namespaces"),
    a_read_only_volume_stays_so_for_root_that_may_mount needs Need::OfNode("user namespaces"),
    kernel_parameters_of_a_mapped_pod_are_set needs Need::OfNode("user namespaces"),
    a_privileged_container_has_no_rights_on_the_node needs Need::OfNode("user namespaces"),
    the_nodes_network_with_users_of_its_own needs Need::OfNode("user namespaces"),
    a_mapped_pod_goes_on_without_a_daemon needs Need::OfNode("user namespaces"),
    maps_that_no_pod_can_have_are_refused,
    a_container_with_other_maps_than_its_pods_is_refused needs Need::OfNode("user namespaces"),
    mounts_that_would_reach_the_node_are_refused needs Need::OfNode("user namespaces"),
    user_namespaces_are_told_as_a_feature,
];

const HOST: u32 = 327_680;
const LENGTH: u32 = 65536;

fn ids(host_id: u32, container_id: u32, length: u32) -> Vec<cri::IdMapping> {
    vec![cri::IdMapping { host_id, container_id, length }]
}

fn kubelets() -> Vec<cri::IdMapping> {
    ids(HOST, 0, LENGTH)
}

fn users(mode: NamespaceMode, ids: Vec<cri::IdMapping>) -> cri::UserNamespace {
    cri::UserNamespace { mode: mode.into(), uids: ids.clone(), gids: ids }
}

trait WithUsers {
    fn with_users(self, users: cri::UserNamespace) -> Self;
}

impl WithUsers for PodBuilder {
    fn with_users(self, users: cri::UserNamespace) -> Self {
        self.with(|config| {
            let security = config.linux.get_or_insert_default().security_context.get_or_insert_default();
            security.namespace_options.get_or_insert_default().userns_options = Some(users);
        })
    }
}

/// A pod as the kubelet asks for with `hostUsers: false`.
fn mapped(node: &Node, name: &str) -> PodBuilder {
    node.pod(name).with_users(users(NamespaceMode::Pod, kubelets()))
}

fn volume(builder: ContainerBuilder, host: &Path, container: &str) -> ContainerBuilder {
    builder.mount(host, container).with(|config| {
        if let Some(mount) = config.mounts.last_mut() {
            (mount.uid_mappings, mount.gid_mappings) = (kubelets(), kubelets());
        }
    })
}

fn writable_folder(node: &Node, name: &str) -> Result<PathBuf> {
    let folder = node.dir().join(name);
    fs::create_dir(&folder)?;
    fs::set_permissions(&folder, fs::Permissions::from_mode(0o777))?;
    Ok(folder)
}

fn owner(path: &Path) -> Result<(u32, u32)> {
    let found = fs::metadata(path).with_context(|| path.display().to_string())?;
    Ok((found.uid(), found.gid()))
}

async fn root_of_a_pod_is_nobody_on_the_node(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = mapped(&node, "web").run().await?;
    let main = pod.container("main").sh("id -u; cat /proc/self/uid_map; exec sleep 31415").run().await?;
    let said = text(&main.logged("65536").await?, "stdout");
    let words: Vec<&str> = said.split_whitespace().collect();
    assert_eq!(words, ["0", "0", "327680", "65536"]);
    let pid = main.pid().await?;
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    assert!(status.contains(&format!("Uid:\t{HOST}\t{HOST}\t{HOST}\t{HOST}")), "{status}");
    for kind in ["user", "mnt", "pid", "net", "ipc", "uts"] {
        let own = process::namespace(pid, kind)?;
        assert_ne!(own, process::namespace(node.daemon_pid()?, kind)?, "{kind}");
    }
    let options = pod.status().await?.linux.and_then(|l| l.namespaces).and_then(|n| n.options);
    let told = options.and_then(|options| options.userns_options);
    assert_eq!(told, Some(users(NamespaceMode::Pod, kubelets())));
    // Its log is the node's.
    assert_eq!(owner(&main.log_path())?, (0, 0));
    Ok(())
}

async fn files_of_a_container_are_its_roots_inside(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = mapped(&node, "web").run().await?;
    let main = pod.container("main").idle().run().await?;
    let script = "stat -c %u:%g / /etc /etc/passwd /bin; echo x >/etc/new; echo x >>/etc/passwd; chown 12:34 /etc/new; \
                  mkdir /d; rm /etc/group; stat -c %u:%g /etc/new /etc/passwd /d";
    assert_eq!(main.sh(script).await?, "0:0\n0:0\n0:0\n0:0\n12:34\n0:0\n0:0\n");
    let upper = node.root().join("containers").join(&main.id).join("upper");
    assert_eq!(owner(&upper)?, (HOST, HOST));
    assert_eq!(owner(&upper.join("etc/new"))?, (HOST + 12, HOST + 34));
    assert_eq!(owner(&upper.join("etc/passwd"))?, (HOST, HOST));
    // The layers are everyone's: another pod, with the node's users, sees them as they were.
    let other = node.pod("other").run().await?.container("main").idle().run().await?;
    assert_eq!(other.sh("stat -c %u:%g /etc/passwd /etc/group").await?, "0:0\n0:0\n");
    Ok(())
}

async fn a_volume_with_maps_is_written_to_as_on_the_node(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let (with, without) = (writable_folder(&node, "with")?, writable_folder(&node, "without")?);
    fs::write(with.join("roots"), "")?;
    fs::write(with.join("apps"), "")?;
    chown(with.join("apps"), Some(1000), Some(29))?;
    fs::write(without.join("roots"), "")?;
    let pod = mapped(&node, "web").run().await?;
    let builder = volume(pod.container("main").idle(), &with, "/with").mount(&without, "/without");
    let main = volume(builder, &with.join("apps"), "/apps").run().await?;
    let script = "stat -c %u:%g /with/roots /with/apps /apps /without/roots; touch /with/new /without/new; chown 7:8 /with/new";
    assert_eq!(main.sh(script).await?, "0:0\n1000:29\n1000:29\n65534:65534\n");
    assert_eq!(owner(&with.join("new"))?, (7, 8));
    assert_eq!(owner(&without.join("new"))?, (HOST, HOST));
    Ok(())
}

async fn the_pods_own_files_and_shared_memory_are_roots(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = mapped(&node, "web").run().await?;
    let main = pod.container("main").idle().run().await?;
    let script = "stat -c '%n %u:%g %a' /etc/hosts /etc/hostname /dev /dev/shm /dev/mqueue /proc/1; hostname";
    let wanted = "/etc/hosts 0:0 644\n/etc/hostname 0:0 644\n/dev 0:0 755\n/dev/shm 0:0 1777\n/dev/mqueue 0:0 1777\n\
                  /proc/1 0:0 555\nweb\n";
    assert_eq!(main.sh(script).await?, wanted);
    let script = "echo x >/dev/null && head -c 2 /dev/zero | wc -c; echo 10.9.9.9 other >>/etc/hosts && grep -c other /etc/hosts";
    assert_eq!(main.sh(script).await?, "2\n1\n");
    let file = node.root().join("pods").join(&pod.id).join("hosts");
    assert_eq!(owner(&file)?, (0, 0));
    let second = pod.container("second").idle().run().await?;
    main.sh("echo note >/dev/shm/note").await?;
    assert_eq!(second.sh("cat /dev/shm/note; grep -c other /etc/hosts").await?, "note\n1\n");
    Ok(())
}

async fn containers_share_the_pods_user_namespace(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = mapped(&node, "web").pid(NamespaceMode::Pod).run().await?;
    let (first, second) =
        (pod.container("first").idle().run().await?, pod.container("second").idle().run().await?);
    for kind in ["user", "pid", "net"] {
        let of = async |one: &Container| process::namespace(one.pid().await?, kind);
        assert_eq!(of(&first).await?, of(&second).await?, "{kind}");
    }
    // Each sees the other's processes, and may end them, but not the namespace.
    let seen = first.sh("kill -9 1; ps | grep -c 'trap'; cat /proc/1/comm").await?;
    assert!(seen.ends_with("hartpod-holder\n"), "{seen}");
    assert!(pod.is_ready().await?);
    let debug = pod.container("debug").idle().with_security(|security| {
        let options = security.namespace_options.get_or_insert_default();
        options.pid = NamespaceMode::Target.into();
        options.target_id.clone_from(&first.id);
    });
    let debug = debug.run().await?;
    assert_eq!(debug.sh("id -u").await?, "0\n");
    first.stop(Duration::ZERO).await?;
    assert_eq!(second.sh("echo on").await?, "on\n");
    Ok(())
}

async fn execs_terminals_and_ports_work_as_elsewhere(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = mapped(&node, "web").run().await?;
    let main = pod.container("main").sh("exec nc -ll -p 8080 -e cat").run().await?;
    assert_eq!(
        main.sh("id -u; readlink /proc/self/ns/user >/dev/null; echo out >/dev/stdout").await?,
        "0\nout\n"
    );
    let user = process::namespace(main.pid().await?, "user")?;
    assert_eq!(main.sh("readlink /proc/self/ns/user").await?.trim(), user);
    let request = cri::ExecRequest {
        container_id: main.id.clone(),
        cmd: ["sh", "-c", "tty; stat -c %u:%g $(tty); exit 5"].map(str::to_owned).to_vec(),
        tty: true,
        stdout: true,
        ..Default::default()
    };
    let done = Exec::start(node.client(), request, Protocol::SPDY).await?.finish().await?;
    assert_eq!((done.text().replace('\r', ""), done.exit_code()?), ("/dev/pts/0\n0:5\n".to_owned(), 5));
    let listens = async || {
        main.sh("grep -c ':1F90 .* 0A ' /proc/net/tcp /proc/net/tcp6 | grep -c ':[1-9]' || true").await
    };
    eventually("the server to listen", listens, |count| count != "0\n").await?;
    let mut forward = Forward::start(node.client(), &pod.id, &[8080], Protocol::SPDY_PORTS).await?;
    let mut connection = forward.connect(8080).await?;
    connection.write(b"hello").await?;
    assert_eq!(connection.read().await.as_deref(), Some(&b"hello"[..]));
    let request = cri::ContainerStatsRequest { container_id: main.id.clone() };
    let stats = node.client().container_stats(request).await?.stats.context("no stats")?;
    assert!(stats.memory.and_then(|memory| memory.usage_bytes).is_some_and(|usage| usage.value > 0));
    let terminal =
        pod.container("terminal").sh("stat -c %u:%g /dev/console; id -u").with(|config| config.tty = true);
    let terminal =
        terminal.with_security(|s| s.run_as_user = Some(cri::Int64Value { value: 1000 })).run().await?;
    terminal.exited().await?;
    assert_eq!(text(&terminal.log()?, "stdout").replace('\r', ""), "1000:5\n1000\n");
    Ok(())
}

async fn users_and_groups_are_those_inside(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let shared = writable_folder(&node, "shared")?;
    // As the kubelet prepares a volume for `fsGroup`.
    chown(&shared, Some(0), Some(2000))?;
    fs::set_permissions(&shared, fs::Permissions::from_mode(0o2770))?;
    let pod = mapped(&node, "web").run().await?;
    let who = |builder: ContainerBuilder, uid: i64, groups: &[i64]| {
        let groups = groups.to_vec();
        builder.with_security(|security| {
            security.run_as_user = Some(cri::Int64Value { value: uid });
            security.supplemental_groups = groups;
        })
    };
    let main = who(pod.container("main").idle(), 1000, &[2000, 3000]);
    let main = volume(main, &shared, "/shared").run().await?;
    let script = "id -u; id -g; for g in 2000 3000; do id -G | grep -cw $g; done; touch /shared/new; echo x >/dev/stdout";
    assert_eq!(main.sh(script).await?, "1000\n1000\n1\n1\nx\n");
    assert_eq!(owner(&shared.join("new"))?, (1000, 2000));
    let told = main.status().await?.user.and_then(|user| user.linux).unwrap_or_default();
    assert_eq!((told.uid, told.gid), (1000, 1000));
    let pid = main.pid().await?;
    assert_eq!(owner(Path::new(&format!("/proc/{pid}/task")))?.0, HOST + 1000);
    for (uid, groups, expected) in [(65536, vec![], "user 65536"), (1, vec![70000], "group 70000")] {
        let builder = who(pod.container("high").idle(), uid, &groups);
        let status = builder.create().await.refused("an id that is not mapped")?;
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().contains(expected), "{status}");
    }
    Ok(())
}

fn with_capability(builder: ContainerBuilder, name: &str) -> ContainerBuilder {
    builder.with_security(|security| {
        security.capabilities.get_or_insert_default().add_capabilities.push(name.into());
    })
}

/// AppArmor's default, where there is one, lets nobody mount.
fn unconfined(builder: ContainerBuilder) -> ContainerBuilder {
    builder.with_security(|security| {
        let profile = cri::security_profile::ProfileType::Unconfined.into();
        security.apparmor = Some(cri::SecurityProfile { profile_type: profile, ..Default::default() });
    })
}

async fn root_administers_the_pods_network_and_mounts_alone(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = mapped(&node, "web").run().await?;
    let main = with_capability(with_capability(pod.container("main").idle(), "NET_ADMIN"), "SYS_ADMIN");
    let main = with_capability(with_capability(main, "NET_RAW"), "MKNOD");
    let main = unconfined(main).run().await?;
    assert_eq!(main.sh("ip link set lo mtu 1400 && cat /sys/class/net/lo/mtu").await?, "1400\n");
    main.sh(&format!("ping -c 1 -W 2 {} >/dev/null", pod.ip().await?)).await?;
    assert_eq!(main.sh("mkdir /t && mount -t tmpfs none /t && touch /t/x && ls /t").await?, "x\n");
    // Each is tried with all rights that the pod has: what stops it is the node's side.
    let before = fs::read_to_string("/proc/sys/kernel/panic")?;
    assert_eq!(main.sh("mount -o remount,bind,rw /proc/sys && echo writable").await?, "writable\n");
    for (tried, refusal) in [
        ("mknod /null c 1 3", "Operation not permitted"),
        ("echo 1 >/proc/sys/vm/drop_caches", "Permission denied"),
        ("echo 7 >/proc/sys/kernel/panic", "Permission denied"),
    ] {
        let outcome = main.exec(["sh", "-c", tried]).await?;
        let said = &outcome.stderr;
        assert!(outcome.exit_code != 0 && said.contains(refusal), "{tried}: {outcome:?}");
    }
    assert_eq!(fs::read_to_string("/proc/sys/kernel/panic")?, before);
    Ok(())
}

async fn a_read_only_volume_stays_so_for_root_that_may_mount(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let (with, without) = (writable_folder(&node, "with")?, writable_folder(&node, "without")?);
    let pod = mapped(&node, "web").run().await?;
    let main = volume(pod.container("main").idle(), &with, "/with").mount(&without, "/without");
    let main = main.with(|config| config.mounts.iter_mut().for_each(|mount| mount.readonly = true));
    let main = unconfined(with_capability(main, "SYS_ADMIN")).run().await?;
    for at in ["/with", "/without", "/sys"] {
        let outcome = main.exec(["mount", "-o", "remount,bind,rw", at]).await?;
        assert_ne!(outcome.exit_code, 0, "{at}: {outcome:?}");
    }
    for at in ["/with", "/without"] {
        main.sh(&format!("mkdir -p /copy && mount --bind {at} /copy")).await?;
        let outcome = main.exec(["sh", "-c", "mount -o remount,bind,rw /copy; touch /copy/new"]).await?;
        assert!(outcome.stderr.contains("Read-only file system"), "{outcome:?}");
        main.sh("umount /copy").await?;
    }
    for folder in [with, without] {
        assert_eq!(fs::read_dir(&folder)?.count(), 0, "{}", folder.display());
    }
    Ok(())
}

async fn kernel_parameters_of_a_mapped_pod_are_set(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let parameters = [
        ("net.ipv4.ip_unprivileged_port_start", "79"),
        ("net.ipv4.ping_group_range", "0 65535"),
        ("kernel.shmmni", "99"),
    ];
    let pod = mapped(&node, "web").with(|config| {
        let linux = config.linux.get_or_insert_default();
        linux.sysctls.extend(parameters.map(|(key, value)| (key.to_owned(), value.to_owned())));
    });
    let pod = pod.run().await?;
    let main = pod.container("main").idle().with_security(|security| {
        security.run_as_user = Some(cri::Int64Value { value: 1000 });
        security.capabilities.get_or_insert_default().drop_capabilities.push("ALL".into());
    });
    let main = main.run().await?;
    let shown = "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shmmni; (nc -l -p 80 & sleep 0.2; kill $!) 2>&1";
    assert_eq!(main.sh(shown).await?, "79\n99\n");
    // Groups that may ping are the pod's own, not the node's.
    assert_eq!(main.sh("cat /proc/sys/net/ipv4/ping_group_range").await?, "0\t65535\n");
    let bad = mapped(&node, "bad").with(|config| {
        config.linux.get_or_insert_default().sysctls.insert("kernel.sem".into(), "nonsense".into());
    });
    let status = bad.run().await.refused("a parameter with a bad value")?;
    assert!(status.message().contains("set sysctl `kernel.sem` to `nonsense`"), "{status}");
    Ok(())
}

async fn a_privileged_container_has_no_rights_on_the_node(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = mapped(&node, "web").with(|config| {
        let security = config.linux.get_or_insert_default().security_context.get_or_insert_default();
        security.privileged = true;
    });
    let pod = pod.run().await?;
    let main =
        pod.container("main").idle().with_security(|security| security.privileged = true).run().await?;
    assert_eq!(main.sh("grep CapEff /proc/self/status | cut -f2 | tail -c 7").await?, "ffffff\n");
    // It sees the node's devices, as their owners let anyone.
    let out = main.sh("stat -c %u /dev/null; head -c 1 /dev/kmsg 2>&1; dmesg -c 2>&1 | head -n 1").await?;
    assert!(out.starts_with("65534\n") && !out.contains("Linux version"), "{out}");
    Ok(())
}

async fn the_nodes_network_with_users_of_its_own(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = mapped(&node, "web").host_network().run().await?;
    let main = with_capability(pod.container("main").idle(), "NET_ADMIN").run().await?;
    assert_eq!(process::namespace(main.pid().await?, "net")?, process::namespace(node.daemon_pid()?, "net")?);
    assert_ne!(
        process::namespace(main.pid().await?, "user")?,
        process::namespace(node.daemon_pid()?, "user")?
    );
    // The node's network is seen, and not the pod's to change.
    assert_eq!(main.sh("ls -d /sys/class/net/lo; id -u").await?, "/sys/class/net/lo\n0\n");
    let refused = main.exec(["ip", "link", "set", "lo", "mtu", "1400"]).await?;
    assert_ne!(refused.exit_code, 0, "{refused:?}");
    assert!(main.exec(["sh", "-c", "echo 0 >/sys/kernel/uevent_seqnum"]).await?.exit_code != 0);
    Ok(())
}

async fn a_mapped_pod_goes_on_without_a_daemon(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = mapped(&node, "web").pid(NamespaceMode::Pod).run().await?;
    let main = pod.container("main").idle().run().await?;
    let waiting = pod.container("waiting").idle().create().await?;
    node.kill().await?;
    node.start().await?;
    assert_eq!(main.sh("id -u").await?, "0\n");
    waiting.start().await?;
    let late = pod.container("late").idle().run().await?;
    let user = process::namespace(main.pid().await?, "user")?;
    assert_eq!(process::namespace(late.pid().await?, "user")?, user);
    assert_eq!(process::namespace(waiting.pid().await?, "user")?, user);
    pod.stop().await?;
    pod.remove().await?;
    // Nothing keeps the namespace; the lab looks for files, mounts and network namespaces itself.
    let left =
        process::all()?.into_iter().any(|one| process::namespace(one.pid, "user").is_ok_and(|of| of == user));
    assert!(!left, "a process is left in {user}");
    Ok(())
}

async fn maps_that_no_pod_can_have_are_refused(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let two = [kubelets(), ids(1, 70000, 1)].concat();
    for (asked, expected) in [
        (users(NamespaceMode::Pod, vec![]), "uids: 0 ranges of ids"),
        (users(NamespaceMode::Pod, two), "uids: 2 ranges of ids"),
        (
            cri::UserNamespace { gids: vec![], ..users(NamespaceMode::Pod, kubelets()) },
            "gids: 0 ranges of ids",
        ),
        (users(NamespaceMode::Pod, ids(HOST, 1, LENGTH)), "container_id 0 is not mapped"),
        (users(NamespaceMode::Pod, ids(HOST, 0, 0)), "the length is 0"),
        (users(NamespaceMode::Pod, ids(u32::MAX - 9, 0, LENGTH)), "are more than there are"),
        (users(NamespaceMode::Node, kubelets()), "uids: must be empty with mode NODE"),
        (users(NamespaceMode::Container, kubelets()), "mode: must be POD or NODE"),
        (users(NamespaceMode::Target, kubelets()), "mode: must be POD or NODE"),
    ] {
        let status = node.pod("web").with_users(asked).run().await.refused(expected)?;
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().contains(expected), "{status}");
    }
    let config = mapped(&node, "web").config;
    let status = node.client().run_pod_sandbox(config, "vm").await.refused("a guest with maps")?;
    // Where there are guests, they have users of their own.
    assert!(matches!(status.code(), Code::InvalidArgument | Code::Unimplemented), "{status}");
    for (mode, pod) in [
        ("pid", mapped(&node, "web").handler("").pid(NamespaceMode::Node)),
        ("ipc", mapped(&node, "web").handler("").ipc(NamespaceMode::Node)),
    ] {
        let status = pod.run().await.refused(mode)?;
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(
            status.message().contains("NODE is not possible for a pod with a user namespace"),
            "{status}"
        );
    }
    Ok(())
}

async fn a_container_with_other_maps_than_its_pods_is_refused(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = mapped(&node, "web").run().await?;
    let plain = node.pod("plain").run().await?;
    let other = |pod: &Pod, users: Option<cri::UserNamespace>| {
        pod.container("main").idle().with_security(|security| {
            security.namespace_options.get_or_insert_default().userns_options = users;
        })
    };
    for (pod, asked) in [
        (&pod, Some(users(NamespaceMode::Pod, ids(HOST + LENGTH, 0, LENGTH)))),
        (&pod, Some(users(NamespaceMode::Node, vec![]))),
        (&pod, None),
        (&plain, Some(users(NamespaceMode::Pod, kubelets()))),
    ] {
        let status = other(pod, asked).create().await.refused("a container with other maps")?;
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().contains("userns_options: is not the same as the pod's"), "{status}");
    }
    Ok(())
}

async fn mounts_that_would_reach_the_node_are_refused(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let folder = writable_folder(&node, "volume")?;
    let pod = mapped(&node, "web").run().await?;
    let refused = async |builder: ContainerBuilder, expected: &str| {
        let status = builder.create().await.refused(expected)?;
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().contains(expected), "{status}");
        anyhow::Ok(())
    };
    let main = || volume(pod.container("main").idle(), &folder, "/volume");
    let bidirectional = main().with(|config| {
        config.mounts[0].propagation = cri::MountPropagation::PropagationBidirectional.into();
    });
    refused(bidirectional, "not PROPAGATION_BIDIRECTIONAL").await?;
    let no_length = main().with(|config| config.mounts[0].uid_mappings = ids(HOST, 0, 0));
    refused(no_length, "config.mounts[0].uidMappings: uids[0]: the length is 0").await?;
    let one_sided = main().with(|config| config.mounts[0].gid_mappings.clear());
    refused(one_sided, "config.mounts[0].uidMappings: gids: no range of ids").await?;
    // procfs cannot show its files with other ids.
    let of_proc = volume(pod.container("main").idle(), Path::new("/proc/self"), "/volume");
    refused(of_proc, "show it with the ids of a user namespace, which its file system may be unable to do")
        .await?;
    Ok(())
}

async fn user_namespaces_are_told_as_a_feature(lab: &Lab) -> Result<()> {
    let node = lab.start(lab.node_builder()?).await?;
    let answer = node.client().status(cri::StatusRequest { verbose: false }).await?;
    assert!(!answer.runtime_handlers.is_empty());
    for handler in answer.runtime_handlers {
        let told = handler.features.context("no features")?.user_namespaces;
        assert_eq!(told, handler.name != "vm", "{:?}", handler.name);
    }
    Ok(())
}
