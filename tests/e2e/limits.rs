//! Control groups: limits that hold, leaves below the kubelet's parent and nothing in it.

use anyhow::{Context, Result, ensure};
use hartpod_tests::{Lab, Need, cgroup, eventually, tests};

tests![
    memory_is_limited needs Need::MemoryController,
    cpu_pids_and_cpuset_are_set,
    v2_has_every_limit_in_one_leaf needs Need::CgroupV2,
    a_hybrid_node_has_a_leaf_in_every_hierarchy needs Need::CgroupV1,
    nothing_runs_in_the_kubelets_cgroup,
    a_pod_without_a_parent_gets_one_that_goes_with_it,
    a_limit_of_the_past_does_not_stay,
];

async fn memory_is_limited(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let main = pod.container("main").idle().with_resources(|resources| {
        resources.memory_limit_in_bytes = 64 << 20;
        resources.memory_swap_limit_in_bytes = 64 << 20;
    });
    let main = main.run().await?;
    assert_eq!(main.limit(&["memory.limit_in_bytes", "memory.max"]).await?, (64 << 20).to_string());
    // Execs count as well.
    let output = main.exec(["sh", "-c", "tail /dev/zero"]).await?;
    assert_eq!(output.exit_code, 137, "{output:?}");
    let status = main.status().await?;
    let linux = status.resources.and_then(|resources| resources.linux).unwrap_or_default();
    assert_eq!(linux.memory_limit_in_bytes, 64 << 20);
    Ok(())
}

async fn cpu_pids_and_cpuset_are_set(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let main = pod.container("main").idle().with_resources(|resources| {
        resources.cpu_shares = 512;
        resources.cpu_quota = 50_000;
        resources.cpu_period = 100_000;
        resources.cpuset_cpus = "0".into();
    });
    let main = main.run().await?;
    // 512 shares are weight 59, as with runc since 1.3.2.
    assert!(["512", "59"].contains(&main.limit(&["cpu.shares", "cpu.weight"]).await?.as_str()));
    assert!(
        ["50000", "50000 100000"].contains(&main.limit(&["cpu.cfs_quota_us", "cpu.max"]).await?.as_str())
    );
    assert_eq!(main.limit(&["cpuset.cpus"]).await?, "0");
    assert_eq!(main.sh("nproc").await?, "1\n");
    let linux = main.status().await?.resources.and_then(|resources| resources.linux).unwrap_or_default();
    assert_eq!((linux.cpu_shares, linux.cpu_quota, linux.cpu_period), (512, 50_000, 100_000));
    Ok(())
}

async fn v2_has_every_limit_in_one_leaf(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let main = pod.container("main").idle().with_resources(|resources| {
        resources.memory_limit_in_bytes = 64 << 20;
        resources.unified.insert("memory.high".into(), (32 << 20).to_string());
    });
    let main = main.run().await?;
    assert_eq!(main.limit(&["memory.high"]).await?, (32 << 20).to_string());
    assert_eq!(main.sh("cat /proc/1/cgroup").await?, "0::/\n", "a private cgroup namespace");
    Ok(())
}

async fn a_hybrid_node_has_a_leaf_in_every_hierarchy(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let main = pod.container("main").idle().run().await?;
    let leaves = cgroup::find(|path| path.ends_with(&main.id))?;
    for hierarchy in ["memory", "pids", "cpu", "cpuset", "unified"] {
        if std::path::Path::new("/sys/fs/cgroup").join(hierarchy).is_dir() {
            assert!(
                leaves.iter().any(|leaf| leaf.starts_with(&format!("{hierarchy}:"))),
                "{hierarchy}: {leaves:#?}"
            );
        }
    }
    Ok(())
}

async fn nothing_runs_in_the_kubelets_cgroup(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let main = pod.container("main").idle().run().await?;
    main.exec(["true"]).await?;
    let parent = pod.cgroup.as_ref().context("the pod has no cgroup")?;
    assert_eq!(parent.processes()?, Vec::<String>::new());
    // And all that belongs to the pod is below it, the agent included.
    let leaves = cgroup::find(|path| path.contains(parent.path().trim_start_matches('/')))?;
    ensure!(pod.is_guest() || leaves.iter().any(|leaf| leaf.contains(&main.id)), "{leaves:#?}");
    let agent = pod.agent().await?;
    let of_agent = std::fs::read_to_string(format!("/proc/{}/cgroup", agent.pid))?;
    ensure!(of_agent.contains(parent.path()), "the agent is outside the pod's cgroup: {of_agent}");
    Ok(())
}

async fn a_pod_without_a_parent_gets_one_that_goes_with_it(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node
        .pod("web")
        .with(|config| config.linux.get_or_insert_default().cgroup_parent.clear())
        .run()
        .await?;
    let main = pod.container("main").idle().run().await?;
    let leaves = cgroup::find(|path| path.contains(if pod.is_guest() { &pod.id } else { &main.id }))?;
    ensure!(!leaves.is_empty(), "the container has no cgroup");
    pod.stop().await?;
    let left = async || cgroup::find(|path| path.contains(&main.id) || path.contains(&pod.id));
    eventually("the leaves to go", left, std::collections::BTreeSet::is_empty).await?;
    Ok(())
}

async fn a_limit_of_the_past_does_not_stay(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let tight =
        pod.container("main").idle().with_resources(|resources| resources.cpu_quota = 10_000).run().await?;
    tight.remove().await?;
    let loose = pod.container("main").idle().run().await?;
    let quota = loose.limit(&["cpu.cfs_quota_us", "cpu.max"]).await?;
    assert!(["-1", "max 100000"].contains(&quota.as_str()), "{quota}");
    Ok(())
}
