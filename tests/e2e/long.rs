//! Many pods: up and down leaves nothing, and nor does a daemon killed at any moment of it.

use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use futures_util::future::try_join_all;
use hartpod_tests::cgroup::PodCgroup;
use hartpod_tests::{Lab, Need, Node, cri, eventually, process, tests, world};

tests![
    a_hundred_pods_leave_nothing needs Need::Speed,
    a_daemon_killed_at_fifty_moments_leaves_nothing needs Need::Speed,
];

/// One whole life, as the kubelet drives it.
async fn one_life(node: &Node, name: &str, number: u32) -> Result<()> {
    // Every third pod shares a pid namespace, every fifth is on the node's network, every seventh has a host port.
    let mut builder = node.pod(name);
    if number % 3 == 0 {
        builder = builder.pid(cri::NamespaceMode::Pod);
    }
    if number % 5 == 0 {
        builder = builder.host_network();
    } else if number % 7 == 0 {
        builder = builder.port(20_000 + i32::try_from(number)?, 80);
    }
    let pod = builder.run().await.context("RunPodSandbox")?;
    let main = pod.container("main").idle().run().await.context("a container")?;
    let output = main.exec(["echo", "hi"]).await.context("ExecSync")?;
    ensure!(output.stdout == "hi\n", "{output:?}");
    if number % 2 == 0 {
        main.stop(Duration::from_secs(5)).await.context("StopContainer")?;
        main.remove().await.context("RemoveContainer")?;
    }
    pod.stop().await?;
    pod.remove().await.context("RemovePodSandbox")?;
    Ok(())
}

async fn a_hundred_pods_leave_nothing(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    // The first pod makes what stays: the bridge, shared chains, parent folders.
    for number in [0, 1, 3, 7] {
        one_life(&node, "warm-up", number).await?;
    }
    std::fs::remove_dir_all(node.log_root())?;
    std::fs::create_dir(node.log_root())?;
    let before = lab.look(&node)?;
    let daemon = node.daemon_pid()?;
    let files = process::open_files(daemon)?;
    let weight = process::pss_kib(daemon)?;

    for number in 0..60 {
        one_life(&node, &format!("pod-{number}"), number).await.with_context(|| format!("pod {number}"))?;
    }
    for group in 0..5 {
        let numbers = (0..8).map(|one| 60 + group * 8 + one);
        let lives = numbers.map(|number| {
            let node = node.clone();
            async move {
                one_life(&node, &format!("pod-{number}"), number)
                    .await
                    .with_context(|| format!("pod {number}"))
            }
        });
        try_join_all(lives).await?;
    }

    assert!(node.client().pods().await?.is_empty());
    assert!(node.client().containers().await?.is_empty());
    node.trash_is_empty().await?;
    world::must_return_to(&before, || lab.look(&node)).await?;
    eventually("the daemon's files to be closed", async || process::open_files(daemon), |now| *now == files)
        .await?;
    let grown = process::pss_kib(daemon)?.saturating_sub(weight);
    println!("100 pods: the daemon weighed {weight} KiB before and {grown} KiB more after");
    assert!(grown < 8 << 10, "the daemon grew by {grown} KiB");
    Ok(())
}

/// xorshift64: the same moments again for the same seed.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit.max(1)
    }
}

/// Sets the seed of [`a_daemon_killed_at_fifty_moments_leaves_nothing`].
const SEED: &str = "HARTPOD_E2E_SEED";

async fn a_daemon_killed_at_fifty_moments_leaves_nothing(lab: &Lab) -> Result<()> {
    let seed = match std::env::var(SEED) {
        Ok(text) => text.parse().context(SEED)?,
        Err(_) => {
            u64::try_from(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_nanos() & 0xffff_ffff)?
                | 1
        }
    };
    println!("seed: {SEED}={seed}");
    eprintln!("seed: {SEED}={seed}");
    let mut dice = Dice(seed | 1);
    let node = lab.node().await?;
    for number in [0, 1, 3, 7] {
        one_life(&node, "warm-up", number).await?;
    }
    let start = Instant::now();
    one_life(&node, "measured", 1).await?;
    let life = u64::try_from(start.elapsed().as_micros())?;
    let before = lab.look(&node)?;

    let mut ended_early = 0;
    for number in 0..50 {
        let moment = Duration::from_micros(dice.below(life * 11 / 10));
        let name = format!("pod-{number}");
        let step = format!("moment {number}: kill -9 after {moment:?} (seed {seed})");
        let kill = async {
            tokio::time::sleep(moment).await;
            node.kill().await
        };
        let (lived, killed) = tokio::join!(one_life(&node, &name, number), kill);
        killed.with_context(|| step.clone())?;
        ended_early += u32::from(lived.is_err());
        node.start().await.with_context(|| step.clone())?;
        drain(&node).await.with_context(|| step.clone())?;
        // The kubelet removes the cgroups of pods that it does not know; they must be empty.
        for cgroup in PodCgroup::all_below(node.cgroup_root())? {
            cgroup.remove().with_context(|| step.clone())?;
        }
        node.trash_is_empty().await.with_context(|| step.clone())?;
        world::must_return_to(&before, || lab.look(&node)).await.with_context(|| step.clone())?;
    }
    println!("50 kills, {ended_early} of them within a life of {} ms", life / 1000);
    assert!(ended_early > 10, "hardly a kill hit a life: {ended_early}");
    // Whoever was killed so often still works.
    one_life(&node, "last", 1).await
}

/// As a kubelet that finds pods it does not want.
async fn drain(node: &Node) -> Result<()> {
    for pod in node.client().pods().await.context("ListPodSandbox")? {
        let stop = cri::StopPodSandboxRequest { pod_sandbox_id: pod.id.clone() };
        node.client().stop_pod_sandbox(stop).await.with_context(|| format!("StopPodSandbox {}", pod.id))?;
        let remove = cri::RemovePodSandboxRequest { pod_sandbox_id: pod.id.clone() };
        node.client()
            .remove_pod_sandbox(remove)
            .await
            .with_context(|| format!("RemovePodSandbox {}", pod.id))?;
    }
    ensure!(node.client().pods().await?.is_empty(), "pods are left");
    ensure!(node.client().containers().await?.is_empty(), "containers are left");
    Ok(())
}
