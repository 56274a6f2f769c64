//! A pod's cgroup from the kubelet's side: made before the pod, limited, deleted when the pod has stopped.

use std::fs;

use anyhow::{Context, Result, ensure};
use hartpod_tests::cgroup::{self, PodCgroup};
use hartpod_tests::{Lab, Need, Node, Pod, cri, tests};

tests![
    a_pods_cgroup_is_the_kubelets_in_every_qos_class,
    the_kubelet_deletes_the_pods_cgroup_between_stop_and_remove,
    exit_codes_are_what_a_shell_would_see,
    memory_is_protected_and_throttled_as_asked needs Need::CgroupV2,
    a_privileged_container_has_the_nodes_cgroups needs Need::OfNode("cgroups"),
];

/// A pod whose cgroup is where the kubelet's layout has it.
async fn pod_in(node: &Node, class: &str) -> Result<(Pod, PodCgroup)> {
    let parent = format!("{}/kubepods{class}/pod-1", node.cgroup_root());
    let pod = node
        .pod("web")
        .with(|config| config.linux.get_or_insert_default().cgroup_parent = parent.clone())
        .run()
        .await?;
    let cgroup = pod.cgroup.clone().context("the pod has no cgroup")?;
    Ok((pod, cgroup))
}

async fn a_pods_cgroup_is_the_kubelets_in_every_qos_class(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    for class in ["", "/burstable", "/besteffort"] {
        let (pod, cgroup) = pod_in(&node, class).await?;
        let main = pod.container("main").idle().run().await?;
        assert_eq!(cgroup.processes()?, Vec::<String>::new(), "nothing runs in it");
        let leaf = if pod.is_guest() { &pod.id } else { &main.id };
        let below = format!("{}/{leaf}", cgroup.path().trim_start_matches('/'));
        ensure!(!cgroup::find(|path| path == below)?.is_empty(), "no leaf {below}");
        pod.stop().await?;
        pod.remove().await?;
        cgroup::remove_tree(&format!("{}/kubepods", node.cgroup_root()))?;
    }
    Ok(())
}

async fn the_kubelet_deletes_the_pods_cgroup_between_stop_and_remove(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let main = pod.container("main").idle().run().await?;
    // Deletes it too, as soon as the pod has stopped.
    pod.stop().await?;
    let path =
        pod.cgroup.as_ref().context("the pod has no cgroup")?.path().trim_start_matches('/').to_owned();
    let left = || cgroup::find(|found| found.contains(&path));
    assert_eq!(left()?, Default::default());
    // Whatever the kubelet asks now, nothing makes it again.
    pod.stop().await?;
    assert_eq!(main.status().await?.exit_code, 137);
    main.stop(std::time::Duration::ZERO).await?;
    main.remove().await?;
    node.crash().await?;
    ensure!(!pod.is_ready().await?);
    pod.remove().await?;
    assert_eq!(left()?, Default::default());
    Ok(())
}

async fn exit_codes_are_what_a_shell_would_see(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    for (name, script, code) in [
        ("c200", "exit 200", 200),
        ("c255", "exit 255", 255),
        // Its own pid namespace's init takes no signal from inside that it does not handle: a child's death is passed on as shells do.
        ("c139", "sh -c 'kill -SEGV $$'; exit $?", 139),
        ("c143", "sh -c 'kill -TERM $$'; exit $?", 143),
    ] {
        let status = pod.container(name).sh(script).run().await?.exited().await?;
        assert_eq!((status.exit_code, status.reason.as_str()), (code, "Error"), "{script}");
    }
    let main = pod.container("main").idle().run().await?;
    if !pod.is_guest() {
        let pid = nix::unistd::Pid::from_raw(main.pid().await?);
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGABRT)?;
        nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL)?;
        assert_eq!(main.exited().await?.exit_code, 137);
    }
    Ok(())
}

/// What the kubelet's MemoryQoS asks for.
async fn memory_is_protected_and_throttled_as_asked(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let main = pod.container("main").idle().with_resources(|resources| {
        resources.memory_limit_in_bytes = 64 << 20;
        resources.unified = [
            ("memory.min".to_owned(), (8 << 20).to_string()),
            ("memory.high".to_owned(), (48 << 20).to_string()),
        ]
        .into();
    });
    let main = main.run().await?;
    assert_eq!(main.limit(&["memory.min"]).await?, (8 << 20).to_string());
    assert_eq!(main.limit(&["memory.high"]).await?, (48 << 20).to_string());
    main.update(|resources| {
        resources.unified.insert("memory.high".into(), (56 << 20).to_string());
    })
    .await?;
    assert_eq!(main.limit(&["memory.high"]).await?, (56 << 20).to_string());
    assert_eq!(main.limit(&["memory.min"]).await?, (8 << 20).to_string());
    assert_eq!(main.resources().await?.unified.len(), 2);
    Ok(())
}

async fn a_privileged_container_has_the_nodes_cgroups(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let privileged = |config: &mut cri::PodSandboxConfig| {
        config.linux.get_or_insert_default().security_context.get_or_insert_default().privileged = true;
    };
    let pod = node.pod("web").with(privileged).run().await?;
    let main =
        pod.container("main").idle().with_security(|security| security.privileged = true).run().await?;
    let plain = pod.container("plain").idle().run().await?;
    let own = |container: &hartpod_tests::Container| {
        let container = container.clone();
        async move { container.sh("readlink /proc/self/ns/cgroup").await }
    };
    let nodes = fs::read_link("/proc/self/ns/cgroup")?.display().to_string();
    assert_eq!(own(&main).await?.trim(), nodes);
    let is_v2 = cgroup::hierarchies()?.len() == 1;
    assert_eq!(own(&plain).await?.trim() != nodes, is_v2, "private on v2 alone");
    // Writable for the one and not for the other.
    let folder = if is_v2 { "/sys/fs/cgroup" } else { "/sys/fs/cgroup/pids" };
    main.sh(&format!("mkdir {folder}/hartpod-made-inside && rmdir {folder}/hartpod-made-inside")).await?;
    ensure!(plain.exec(["mkdir", &format!("{folder}/hartpod-made-inside")]).await?.exit_code != 0);
    Ok(())
}
