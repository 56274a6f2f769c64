//! UpdateContainerResources: limits of a container that change while it lives.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hartpod_proto::cri::v1 as own;
use hartpod_proto::cri::v1::runtime_service_client::RuntimeServiceClient;
use hartpod_tests::{Container, Lab, Need, Pod, Refused, cri, eventually, tests};
use tonic::{Code, Status};

tests![
    limits_change_while_a_container_runs needs Need::MemoryController,
    what_an_update_leaves_open_stays_also_after_a_crash,
    a_created_container_starts_with_its_new_limits,
    a_limit_below_what_is_in_use_is_refused_and_kills_nobody needs Need::MemoryController,
    an_update_that_fails_changes_nothing,
    the_oom_score_of_running_processes_changes,
    a_container_that_has_ended_has_no_limits_to_change,
    updates_race_stops_and_removals,
    a_pods_new_size_is_noted_and_told,
    a_guest_grows_and_shrinks_below_its_ceiling needs Need::Kvm,
];

const MIB: i64 = 1 << 20;
const MEMORY: [&str; 2] = ["memory.limit_in_bytes", "memory.max"];
const QUOTA: [&str; 2] = ["cpu.cfs_quota_us", "cpu.max"];
const SHARES: [&str; 2] = ["cpu.shares", "cpu.weight"];

async fn memory(container: &Container) -> Result<i64> {
    Ok(container.limit(&MEMORY).await?.parse()?)
}

async fn limits_change_while_a_container_runs(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let main = pod.container("main").idle().with_resources(|resources| {
        resources.memory_limit_in_bytes = 64 * MIB;
        resources.cpu_quota = 50_000;
        resources.cpu_period = 100_000;
        resources.cpu_shares = 512;
    });
    let main = main.run().await?;
    for limit in [128 * MIB, 32 * MIB, 48 * MIB] {
        main.update(|resources| resources.memory_limit_in_bytes = limit).await?;
        assert_eq!(memory(&main).await?, limit);
        assert_eq!(main.resources().await?.memory_limit_in_bytes, limit);
    }
    main.update(|resources| {
        resources.cpu_quota = 150_000;
        resources.cpu_shares = 1024;
        resources.cpuset_cpus = "0".into();
    })
    .await?;
    assert!(["150000", "150000 100000"].contains(&main.limit(&QUOTA).await?.as_str()));
    assert!(["1024", "100"].contains(&main.limit(&SHARES).await?.as_str()));
    assert_eq!(main.sh("nproc").await?, "1\n");
    main.update(|resources| resources.cpu_quota = -1).await?;
    assert!(["-1", "max 100000"].contains(&main.limit(&QUOTA).await?.as_str()));
    // The limit holds for what runs.
    let output = main.exec(["sh", "-c", "tail /dev/zero"]).await?;
    assert_eq!(output.exit_code, 137, "{output:?}");
    Ok(())
}

async fn what_an_update_leaves_open_stays_also_after_a_crash(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let main = pod.container("main").idle().with_resources(|resources| {
        resources.cpu_shares = 512;
        resources.cpu_quota = 50_000;
        resources.cpu_period = 100_000;
        resources.cpuset_cpus = "0".into();
        resources.oom_score_adj = 500;
    });
    let main = main.run().await?;
    main.update(|resources| resources.cpu_quota = 70_000).await?;
    // The answer is given: whatever happens now, it counts.
    node.crash().await?;
    let resources = main.resources().await?;
    assert_eq!((resources.cpu_shares, resources.cpu_quota, resources.cpu_period), (512, 70_000, 100_000));
    assert_eq!((resources.cpuset_cpus.as_str(), resources.oom_score_adj), ("0", 500));
    assert!(["70000", "70000 100000"].contains(&main.limit(&QUOTA).await?.as_str()));
    assert!(["512", "59"].contains(&main.limit(&SHARES).await?.as_str()));
    let info = main.verbose_status(true).await?.info;
    let info: serde_json::Value = serde_json::from_str(&info["info"])?;
    assert_eq!(info["runtimeSpec"]["linux"]["resources"]["cpu"]["quota"], 70_000);
    // And the daemon that was restarted changes them as well.
    main.update(|resources| resources.cpu_quota = 80_000).await?;
    assert_eq!(main.resources().await?.cpu_quota, 80_000);
    Ok(())
}

async fn a_created_container_starts_with_its_new_limits(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let main = pod.container("main").sh("cat /proc/self/oom_score_adj; sleep 1000").create().await?;
    main.update(|resources| {
        resources.cpu_quota = 50_000;
        resources.oom_score_adj = 777;
    })
    .await?;
    main.start().await?;
    main.logged("777").await?;
    assert!(["50000", "50000 100000"].contains(&main.limit(&QUOTA).await?.as_str()));
    Ok(())
}

/// 48 MiB of a process, that nothing can take back where there is no swap.
const HOG: &str = "a=$(head -c 50331648 /dev/zero | tr '\\0' x); echo full; while :; do sleep 1000; done";

async fn a_limit_below_what_is_in_use_is_refused_and_kills_nobody(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let main = pod.container("main").sh(HOG).with_resources(|resources| {
        resources.memory_limit_in_bytes = 256 * MIB;
        resources.cpu_quota = 100_000;
    });
    let main = main.run().await?;
    main.logged("full").await?;
    let refused = main.update(|resources| {
        resources.memory_limit_in_bytes = 24 * MIB;
        resources.cpu_quota = 20_000;
    });
    let status = refused.await.refused("a limit below the usage")?;
    assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
    ensure!(status.message().contains("below the"), "{status:?}");
    assert_eq!(memory(&main).await?, 256 * MIB);
    assert!(["100000", "100000 100000"].contains(&main.limit(&QUOTA).await?.as_str()));
    assert_eq!(main.resources().await?.memory_limit_in_bytes, 256 * MIB);
    // Nobody was killed.
    assert_eq!(main.sh("echo alive").await?, "alive\n");
    main.update(|resources| resources.memory_limit_in_bytes = 128 * MIB).await?;
    assert_eq!(memory(&main).await?, 128 * MIB);
    Ok(())
}

async fn an_update_that_fails_changes_nothing(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let main = pod.container("main").idle().with_resources(|resources| {
        resources.cpu_quota = 50_000;
        resources.oom_score_adj = 500;
    });
    let main = main.run().await?;
    let before = main.resources().await?;
    let status = main.update(|resources| {
        resources.cpu_quota = 70_000;
        resources.oom_score_adj = 600;
        resources.cpuset_cpus = "0-4000".into();
    });
    let status = status.await.refused("CPUs that are not there")?;
    assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    ensure!(status.message().contains("cpuset.cpus"), "{status:?}");
    for (what, field) in [("cpu_period", 5), ("cpu_shares", -1), ("oom_score_adj", 1001)] {
        let status = main.update(|resources| match what {
            "cpu_period" => resources.cpu_period = field,
            "cpu_shares" => resources.cpu_shares = field,
            _ => resources.oom_score_adj = field,
        });
        let status = status.await.refused(what)?;
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        ensure!(status.message().contains(what), "{status:?}");
    }
    let status = main.update(|resources| drop(resources.unified.insert("cgroup.procs".into(), "1".into())));
    assert_eq!(status.await.refused("a key of the core")?.code(), Code::InvalidArgument);
    assert_eq!(main.resources().await?, before);
    assert!(["50000", "50000 100000"].contains(&main.limit(&QUOTA).await?.as_str()));
    assert_eq!(main.sh("cat /proc/1/oom_score_adj").await?, "500\n");
    Ok(())
}

async fn the_oom_score_of_running_processes_changes(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    // One that has chosen its own score keeps it.
    let script =
        "sh -c 'echo 900 >/proc/self/oom_score_adj; echo chosen; exec sleep 1000' & sleep 2000 & wait";
    let main = pod.container("main").sh(script).with_resources(|resources| resources.oom_score_adj = 300);
    let main = main.run().await?;
    main.logged("chosen").await?;
    let scores =
        "for p in /proc/[0-9]*; do read c <$p/comm; [ $c = sleep ] && cat $p/oom_score_adj; done | sort";
    let now = async || main.sh(scores).await;
    eventually("both sleeps", now, |scores| scores == "300\n900\n").await?;
    main.update(|resources| resources.oom_score_adj = 400).await?;
    assert_eq!(now().await?, "400\n900\n");
    main.update(|resources| resources.oom_score_adj = 100).await?;
    assert_eq!(now().await?, "100\n900\n");
    assert_eq!(main.resources().await?.oom_score_adj, 100);
    Ok(())
}

async fn a_container_that_has_ended_has_no_limits_to_change(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let main = pod.container("main").sh("true").run().await?;
    main.exited().await?;
    let status =
        main.update(|resources| resources.cpu_quota = 50_000).await.refused("an exited container")?;
    assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
    ensure!(status.message().contains("exited"), "{status:?}");
    assert_eq!(main.resources().await?.cpu_quota, 0, "what is told is what was in force");
    main.remove().await?;
    let status =
        main.update(|resources| resources.cpu_quota = 50_000).await.refused("a removed container")?;
    assert_eq!(status.code(), Code::NotFound, "{status:?}");
    Ok(())
}

async fn updates_race_stops_and_removals(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    for round in 0..6 {
        let main = pod.container(&format!("c{round}")).idle().run().await?;
        let updating = main.clone();
        let updates = tokio::spawn(async move {
            let mut codes = Vec::new();
            for count in 0..40 {
                if let Err(status) = updating.update(|resources| resources.cpu_quota = 10_000 + count).await {
                    codes.push(status.code());
                }
            }
            codes
        });
        if round % 2 == 0 {
            main.stop(Duration::from_secs(1)).await?;
        }
        main.remove().await?;
        let codes = updates.await?;
        let fits = |code: &Code| matches!(code, Code::FailedPrecondition | Code::NotFound);
        ensure!(codes.iter().all(fits), "{codes:?}");
    }
    // All at once: each is told of its own.
    let main = pod.container("main").idle().run().await?;
    let all = (1..=10).map(|quota| {
        let main = main.clone();
        tokio::spawn(async move { main.update(|resources| resources.cpu_quota = quota * 10_000).await })
    });
    for one in all.collect::<Vec<_>>() {
        one.await??;
    }
    let told = main.resources().await?.cpu_quota;
    let quota = main.limit(&QUOTA).await?;
    ensure!(quota == told.to_string() || quota == format!("{told} 100000"), "{quota}, and {told} is told");
    Ok(())
}

/// Tells the runtime another size of a pod. With the project's own types: the client's are of before this call.
async fn resize(pod: &Pod, memory: i64) -> Result<(), Status> {
    let resources = own::LinuxContainerResources { memory_limit_in_bytes: memory, ..Default::default() };
    let request = own::UpdatePodSandboxResourcesRequest {
        pod_sandbox_id: pod.id.clone(),
        resources: Some(resources),
        overhead: None,
    };
    let mut client = RuntimeServiceClient::new(pod.node().client().channel());
    client.update_pod_sandbox_resources(request).await?;
    Ok(())
}

/// The kubelet resizes the pod's cgroup itself: a runtime has to know it, and a guest to follow.
async fn a_pods_new_size_is_noted_and_told(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    resize(&pod, 64 * MIB).await?;
    for _ in 0..2 {
        let told = pod.info().await?;
        assert_eq!(told["resources"]["resources"]["memory_limit_in_bytes"], 64 * MIB, "{told}");
        // Also by the next daemon.
        node.crash().await?;
    }
    pod.stop().await?;
    let status = resize(&pod, 32 * MIB).await.refused("a stopped pod")?;
    assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
    pod.remove().await?;
    let status = resize(&pod, 0).await.refused("a removed pod")?;
    assert_eq!(status.code(), Code::NotFound, "{status:?}");
    Ok(())
}

/// Tries to take so many MiB, and says whether the kernel let it.
async fn takes(container: &Container, mib: u64) -> Result<bool> {
    let script = format!("a=$(head -c {} /dev/zero | tr '\\0' x) && echo taken", mib << 20);
    Ok(container.exec(["sh", "-c", &script]).await?.stdout == "taken\n")
}

async fn a_guest_grows_and_shrinks_below_its_ceiling(lab: &Lab) -> Result<()> {
    let node = lab.node_with("[vm]\nresize_headroom_percent = 50\n").await?;
    let pod = node.pod("web").in_guest().with(|config| {
        let linux = config.linux.get_or_insert_default();
        let memory =
            |mib| cri::LinuxContainerResources { memory_limit_in_bytes: mib * MIB, ..Default::default() };
        (linux.resources, linux.overhead) = (Some(memory(64)), Some(memory(160)));
    });
    let pod = pod.run().await?;
    let main = pod.container("main").idle().run().await?;
    let limit = || -> Result<i64> {
        let parent = pod.cgroup.as_ref().context("the pod has no cgroup")?;
        let files = MEMORY.iter().find_map(|file| Some(parent.leaf_with(&pod.id, file).ok()??.join(file)));
        Ok(std::fs::read_to_string(files.context("no memory limit of the VMM")?)?.trim().parse()?)
    };
    // (64 + 128) * 1.5 = 288 MiB are there; the pod has 64 of them, which its containers share.
    let total = main.sh("sed -n 's/^MemTotal: *\\([0-9]*\\).*/\\1/p' /proc/meminfo").await?;
    ensure!((200..=288).contains(&(total.trim().parse::<u64>()? >> 10)), "{total}");
    ensure!(!takes(&main, 80).await?, "it took more than its pod may have");
    let before = limit()?;
    let size = |mib: i64| resize(&pod, mib * MIB);
    // As the kubelet does before it tells.
    pod.cgroup.as_ref().context("the pod has no cgroup")?.limit_memory((160 + 160) << 20)?;
    size(160).await?;
    assert_eq!(limit()? - before, 96 * MIB);
    ensure!(takes(&main, 48).await?, "it has room for that now");
    let status = size(170).await.refused("more than the guest booted with")?;
    assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
    ensure!(
        status.message().contains("288 MiB") && status.message().contains("resize_headroom_percent"),
        "{status:?}"
    );
    let status = main.update(|resources| resources.memory_limit_in_bytes = 170 * MIB).await;
    assert_eq!(status.refused("a container larger than its guest")?.code(), Code::FailedPrecondition);
    // The next daemon knows the ceiling.
    node.crash().await?;
    ensure!(size(170).await.is_err());
    size(64).await?;
    ensure!(!takes(&main, 80).await?, "it shrank");
    Ok(())
}
