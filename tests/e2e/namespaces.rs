//! Which namespaces containers share: with their pod, with each other, with the node.

use anyhow::{Context, Result};
use hartpod_tests::cri::NamespaceMode;
use hartpod_tests::{Container, Lab, Need, Refused, eventually, process, tests};

tests![
    each_container_has_a_pid_namespace_of_its_own,
    a_pod_can_share_one_pid_namespace,
    a_pod_can_use_the_nodes_pid_namespace needs Need::OfNode("namespaces"),
    a_container_can_join_anothers_pid_namespace,
    orphans_of_a_shared_namespace_are_reaped,
    containers_share_the_pods_ipc_and_shm,
    a_pod_can_use_the_nodes_ipc needs Need::OfNode("namespaces"),
    containers_share_the_pods_host_name,
    mount_namespaces_are_never_shared,
    a_container_does_not_end_with_its_neighbour,
];

async fn namespace(container: &Container, kind: &str) -> Result<String> {
    Ok(container.sh(&format!("readlink /proc/self/ns/{kind}")).await?.trim().to_owned())
}

fn own(kind: &str) -> Result<String> {
    process::namespace(i32::try_from(std::process::id())?, kind)
}

async fn each_container_has_a_pid_namespace_of_its_own(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let one = pod.container("one").idle().run().await?;
    let two = pod.container("two").idle().run().await?;
    assert_ne!(namespace(&one, "pid").await?, namespace(&two, "pid").await?);
    assert_eq!(one.sh("head -n 1 /proc/1/status").await?, "Name:\tsh\n");
    let seen = one.sh("ls /proc | grep -c '^[0-9]'").await?;
    assert!(seen.trim().parse::<u32>()? <= 6, "{seen} processes are seen");
    Ok(())
}

async fn a_pod_can_share_one_pid_namespace(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").pid(NamespaceMode::Pod).run().await?;
    let one = pod.container("one").sh("exec sleep 5001").run().await?;
    let two = pod.container("two").sh("exec sleep 5002").run().await?;
    assert_eq!(namespace(&one, "pid").await?, namespace(&two, "pid").await?);
    assert_ne!(namespace(&one, "pid").await?, own("pid")?);
    let seen = one.sh("cat /proc/[0-9]*/cmdline | tr '\\0' ' '").await?;
    assert!(seen.contains("sleep 5001") && seen.contains("sleep 5002"), "{seen}");
    assert_ne!(
        one.sh("tr '\\0' ' ' </proc/1/cmdline").await?.trim(),
        "sleep 5001",
        "init is neither container"
    );
    // Signals reach a neighbour, as shareProcessNamespace promises.
    one.sh(
        "for p in /proc/[0-9]*; do grep -q '[5]002' $p/cmdline 2>/dev/null && kill -TERM ${p#/proc/}; done; true",
    )
    .await?;
    assert_eq!(two.exited().await?.exit_code, 143);
    assert_eq!(one.exec(["true"]).await?.exit_code, 0);
    let options = pod.status().await?.linux.and_then(|linux| linux.namespaces).and_then(|all| all.options);
    assert_eq!(options.context("no options")?.pid(), NamespaceMode::Pod);
    Ok(())
}

async fn a_pod_can_use_the_nodes_pid_namespace(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").pid(NamespaceMode::Node).run().await?;
    let main = pod.container("main").sh("exec sleep 5003").run().await?;
    assert_eq!(namespace(&main, "pid").await?, own("pid")?);
    let daemon = node.daemon_pid()?;
    assert_eq!(main.sh(&format!("[ -d /proc/{daemon} ] && echo seen")).await?, "seen\n");
    main.stop(std::time::Duration::ZERO).await?;
    let left = async || Ok(process::all()?.into_iter().filter(|one| one.command == "sleep 5003").count());
    eventually("the container's end", left, |count| *count == 0).await?;
    Ok(())
}

async fn a_container_can_join_anothers_pid_namespace(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let target = pod.container("target").sh("exec sleep 5004").run().await?;
    let other = pod.container("other").sh("exec sleep 5005").run().await?;
    let join = |id: &str| {
        let id = id.to_owned();
        move |security: &mut hartpod_tests::cri::LinuxContainerSecurityContext| {
            let options = security.namespace_options.get_or_insert_default();
            options.pid = NamespaceMode::Target.into();
            options.target_id = id;
        }
    };
    // As `kubectl debug --target` does.
    let debug = pod.container("debug").idle().with_security(join(&target.id)).run().await?;
    assert_eq!(namespace(&debug, "pid").await?, namespace(&target, "pid").await?);
    let seen = debug.sh("cat /proc/[0-9]*/cmdline | tr '\\0' ' '").await?;
    assert!(seen.contains("sleep 5004") && !seen.contains("sleep 5005"), "{seen}");
    debug.remove().await?;
    assert_eq!(target.exec(["true"]).await?.exit_code, 0, "the target lives on");
    let nobody = pod.container("lost").idle().with_security(join(&"0".repeat(64)));
    nobody.run().await.refused("joining a container that is not there")?;
    let elsewhere = node.pod("elsewhere").run().await?;
    let foreign = elsewhere.container("foreign").idle().with_security(join(&other.id));
    foreign.run().await.refused("joining a container of another pod")?;
    Ok(())
}

async fn orphans_of_a_shared_namespace_are_reaped(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").pid(NamespaceMode::Pod).run().await?;
    let main = pod.container("main").idle().run().await?;
    main.sh("for i in 1 2 3 4 5; do (sleep 0.1 &) ; done").await?;
    let zombies = async || {
        Ok(main.sh("grep -l '^State:.Z' /proc/[0-9]*/status 2>/dev/null | wc -l").await?.trim().to_owned())
    };
    eventually("init to reap its orphans", zombies, |count| count == "0").await?;
    Ok(())
}

async fn containers_share_the_pods_ipc_and_shm(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let one = pod.container("one").idle().run().await?;
    let two = pod.container("two").idle().run().await?;
    assert_eq!(namespace(&one, "ipc").await?, namespace(&two, "ipc").await?);
    assert_ne!(namespace(&one, "ipc").await?, own("ipc")?);
    one.sh("echo shared >/dev/shm/note").await?;
    assert_eq!(two.sh("cat /dev/shm/note").await?, "shared\n");
    assert!(!std::path::Path::new("/dev/shm/note").exists());
    let size = one.sh("df -k /dev/shm | tail -n 1").await?;
    assert!(size.split_whitespace().any(|word| word == "65536"), "64 MiB: {size}");
    // It is the pod's, not a container's.
    one.remove().await?;
    assert_eq!(two.sh("cat /dev/shm/note").await?, "shared\n");
    let other = node.pod("other").run().await?;
    let stranger = other.container("stranger").idle().run().await?;
    assert_eq!(stranger.sh("ls /dev/shm").await?, "");
    Ok(())
}

async fn a_pod_can_use_the_nodes_ipc(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").ipc(NamespaceMode::Node).run().await?;
    let main = pod.container("main").idle().run().await?;
    assert_eq!(namespace(&main, "ipc").await?, own("ipc")?);
    let name = format!("/dev/shm/hartpod-e2e-{}-{}", std::process::id(), &pod.id[..12]);
    std::fs::write(&name, "the node's\n")?;
    let seen = main.sh(&format!("cat {name}")).await;
    std::fs::remove_file(&name)?;
    assert_eq!(seen?, "the node's\n");
    Ok(())
}

async fn containers_share_the_pods_host_name(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("named").run().await?;
    let one = pod.container("one").idle().run().await?;
    let two = pod.container("two").idle().run().await?;
    assert_eq!(namespace(&one, "uts").await?, namespace(&two, "uts").await?);
    assert_ne!(namespace(&one, "uts").await?, own("uts")?);
    assert_eq!(one.sh("hostname").await?, "named\n");
    if pod.is_guest() {
        return Ok(());
    }
    // On the node's network the name is the node's, unless the kubelet says otherwise.
    let host = node.pod("host").host_network().run().await?;
    let main = host.container("main").idle().run().await?;
    let node_name = std::fs::read_to_string("/proc/sys/kernel/hostname")?;
    assert_eq!(main.sh("hostname").await?, node_name);
    Ok(())
}

async fn mount_namespaces_are_never_shared(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").pid(NamespaceMode::Pod).run().await?;
    let one = pod.container("one").idle().run().await?;
    let two = pod.container("two").idle().run().await?;
    let all = [namespace(&one, "mnt").await?, namespace(&two, "mnt").await?, own("mnt")?];
    assert!(all[0] != all[1] && all[0] != all[2] && all[1] != all[2], "{all:?}");
    Ok(())
}

async fn a_container_does_not_end_with_its_neighbour(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    for mode in [NamespaceMode::Container, NamespaceMode::Pod] {
        let pod = node.pod("web").pid(mode).run().await?;
        let first = pod.container("first").idle().run().await?;
        let second = pod.container("second").idle().run().await?;
        first.stop(std::time::Duration::from_secs(5)).await?;
        first.remove().await?;
        assert_eq!(second.exec(["echo", "here"]).await?.stdout, "here\n");
        let third = pod.container("third").idle().run().await?;
        assert_eq!(third.exec(["echo", "here"]).await?.stdout, "here\n");
    }
    Ok(())
}
