//! Pods in slices of a real systemd (`tests/systemd/run`).

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use hartpod_tests::{Container, Lab, Need, Node, Pod, Refused, cri, eventually, tests};
use tonic::Code;

tests![
    pods_run_in_scopes_that_go_with_them needs Need::Systemd,
    limits_outlive_a_reload needs Need::SystemdWith(&["memory", "cpu"]),
    a_quota_alone_keeps_its_period needs Need::SystemdWith(&["cpu"]),
    a_pod_runs_on_through_a_reexec_of_systemd needs Need::Systemd,
    a_parent_of_the_other_driver_is_refused needs Need::Systemd,
    what_a_lost_pod_left_in_a_slice_is_swept needs Need::Systemd,
];

const TREE: &str = "/sys/fs/cgroup";

async fn node(lab: &Lab) -> Result<Node> {
    let node = lab.start(lab.node_builder()?.settings("[cgroup]\ndriver = \"systemd\"\n")).await?;
    lab.registry().await?;
    node.client().pull(node.image()).await?;
    Ok(node)
}

/// A pod in a slice of the test's own, nested as the kubelet's are.
async fn pod(node: &Node) -> Result<Pod> {
    let slice = format!("{}.slice", stem(node));
    let in_slice = |config: &mut cri::PodSandboxConfig| {
        config.linux.get_or_insert_default().cgroup_parent = slice;
    };
    Ok(node.pod("web").with(in_slice).run().await?)
}

fn stem(node: &Node) -> String {
    let id = node.cgroup_root().rsplit('/').next().unwrap_or_default().replace(['-', '.'], "_");
    format!("hptest-{id}-pod1")
}

fn folder(node: &Node, scope: &str) -> std::path::PathBuf {
    let stem = stem(node);
    let (parent, _) = stem.rsplit_once('-').unwrap_or_default();
    Path::new(TREE).join(format!("hptest.slice/{parent}.slice/{stem}.slice/{scope}"))
}

fn scope(id: &str) -> String {
    format!("cri-hartpod-{id}.scope")
}

fn systemctl<const N: usize>(args: [&str; N]) -> Result<String> {
    let output = Command::new("systemctl").args(args).output().context("run systemctl")?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

fn property(unit: &str, name: &str) -> Result<String> {
    systemctl(["show", "--value", "--property", name, unit])
}

fn file(node: &Node, container: &Container, name: &str) -> Result<String> {
    let path = folder(node, &scope(&container.id)).join(name);
    Ok(std::fs::read_to_string(&path).with_context(|| path.display().to_string())?.trim().to_owned())
}

async fn gone(unit: &str) -> Result<()> {
    eventually(
        "systemd to forget the scope",
        async || property(unit, "LoadState"),
        |state| state == "not-found",
    )
    .await?;
    Ok(())
}

async fn pods_run_in_scopes_that_go_with_them(lab: &Lab) -> Result<()> {
    let node = node(lab).await?;
    let driver = node.client().runtime_config(cri::RuntimeConfigRequest {}).await?.linux.unwrap_or_default();
    assert_eq!(driver.cgroup_driver, cri::CgroupDriver::Systemd as i32);
    let pod = pod(&node).await?;
    let main = pod.container("main").idle().run().await?;
    for id in [&pod.id, &main.id] {
        let unit = scope(id);
        assert_eq!(property(&unit, "ActiveState")?, "active");
        assert_eq!(property(&unit, "Slice")?, format!("{}.slice", stem(&node)));
        assert_eq!(
            (property(&unit, "Delegate")?.as_str(), property(&unit, "TasksMax")?.as_str()),
            ("yes", "infinity")
        );
        // The placeholder has gone: who is there is who belongs there.
        let procs = std::fs::read_to_string(folder(&node, &unit).join("cgroup.procs"))?;
        ensure!(!procs.is_empty());
        for pid in procs.lines() {
            let command = std::fs::read_to_string(format!("/proc/{pid}/cmdline"))?;
            ensure!(!command.contains("placeholder"), "{command}");
        }
    }
    main.exec(["true"]).await?;
    main.remove().await?;
    gone(&scope(&main.id)).await?;
    // One that ends by itself, and one whose pod is stopped with it.
    let short = pod.container("short").sh("exit 3").run().await?;
    assert_eq!(short.exited().await?.exit_code, 3);
    let last = pod.container("last").idle().run().await?;
    pod.stop().await?;
    for id in [&pod.id, &short.id, &last.id] {
        gone(&scope(id)).await?;
    }
    // One that could not be made leaves none.
    Ok(())
}

async fn limits_outlive_a_reload(lab: &Lab) -> Result<()> {
    let node = node(lab).await?;
    let pod = pod(&node).await?;
    let main = pod.container("main").idle().with_resources(|resources| {
        resources.memory_limit_in_bytes = 64 << 20;
        resources.cpu_shares = 512;
    });
    let main = main.run().await?;
    main.update(|resources| resources.memory_limit_in_bytes = 96 << 20).await?;
    let before = ["memory.max", "cpu.weight"].map(|name| file(&node, &main, name).unwrap_or_default());
    systemctl(["daemon-reload"])?;
    let after = ["memory.max", "cpu.weight"].map(|name| file(&node, &main, name).unwrap_or_default());
    assert_eq!(before, after);
    assert_eq!(before, [(96 << 20).to_string(), "59".to_owned()]);
    assert_eq!(property(&scope(&main.id), "MemoryMax")?, (96 << 20).to_string());
    assert_eq!(main.sh("echo alive").await?, "alive\n");
    Ok(())
}

async fn a_quota_alone_keeps_its_period(lab: &Lab) -> Result<()> {
    let node = node(lab).await?;
    let pod = pod(&node).await?;
    let main = pod.container("main").idle().with_resources(|resources| {
        (resources.cpu_quota, resources.cpu_period) = (20_000, 50_000);
    });
    let main = main.run().await?;
    main.update(|resources| resources.cpu_quota = 12_345).await?;
    assert_eq!(file(&node, &main, "cpu.max")?, "12345 50000");
    assert_eq!(property(&scope(&main.id), "CPUQuotaPeriodUSec")?, "50ms");
    assert_eq!(property(&scope(&main.id), "CPUQuotaPerSecUSec")?, "250ms");
    // What is told about something else has systemd write all that it knows.
    main.update(|resources| resources.cpu_shares = 512).await?;
    assert_eq!(file(&node, &main, "cpu.max")?, "12345 50000");
    Ok(())
}

async fn a_pod_runs_on_through_a_reexec_of_systemd(lab: &Lab) -> Result<()> {
    let node = node(lab).await?;
    let pod = pod(&node).await?;
    let main = pod.container("main").idle().run().await?;
    systemctl(["daemon-reexec"])?;
    let active = async || property(&scope(&main.id), "ActiveState");
    eventually("systemd to be back", active, |state| state == "active").await?;
    node.crash().await?;
    assert_eq!(main.sh("echo alive").await?, "alive\n");
    let second = pod.container("second").idle().run().await?;
    assert_eq!(property(&scope(&second.id), "ActiveState")?, "active");
    Ok(())
}

async fn a_parent_of_the_other_driver_is_refused(lab: &Lab) -> Result<()> {
    let node = node(lab).await?;
    let status = node.pod("web").run().await.refused("a path with systemd's driver")?;
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    ensure!(status.message().contains("cgroup driver is systemd"), "{status:?}");
    Ok(())
}

async fn what_a_lost_pod_left_in_a_slice_is_swept(lab: &Lab) -> Result<()> {
    let node = node(lab).await?;
    let pod = pod(&node).await?;
    let main = pod.container("main").idle().run().await?;
    node.kill().await?;
    std::fs::write(node.root().join("pods").join(&pod.id).join("pod.json"), "{")?;
    node.start().await?;
    for id in [&pod.id, &main.id] {
        gone(&scope(id)).await?;
    }
    Ok(())
}
