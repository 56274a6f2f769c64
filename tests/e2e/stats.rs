//! What pods and containers use, as CRI tells it: each number moves by what was done, and not by more.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hartpod_tests::{Container, Lab, Need, Pod, Refused, cri, eventually, eventually::within, tests};
use tokio::net::TcpListener;

tests![
    cpu_time_is_what_the_container_burned,
    a_rate_is_what_was_used_over_time,
    memory_is_what_the_container_holds needs Need::MemoryController,
    what_is_left_below_a_limit_is_told needs Need::MemoryController,
    what_a_container_wrote_is_counted,
    bytes_of_the_network_are_counted,
    the_nodes_network_is_not_a_pods needs Need::OfNode("namespaces"),
    processes_are_counted,
    an_ended_container_uses_nothing_but_its_files,
    statistics_are_filtered,
    statistics_go_on_after_a_restart,
    what_is_not_there_has_none,
];

const MIB: u64 = 1 << 20;

async fn stats(container: &Container) -> Result<cri::ContainerStats> {
    let request = cri::ContainerStatsRequest { container_id: container.id.clone() };
    let answer = container.pod().node().client().container_stats(request).await?;
    answer.stats.context("no statistics")
}

async fn pod_stats(pod: &Pod) -> Result<cri::LinuxPodSandboxStats> {
    let request = cri::PodSandboxStatsRequest { pod_sandbox_id: pod.id.clone() };
    let answer = pod.node().client().pod_sandbox_stats(request).await?;
    answer.stats.and_then(|s| s.linux).context("no statistics")
}

fn value(number: Option<&cri::UInt64Value>) -> Result<u64> {
    Ok(number.context("a number is missing")?.value)
}

fn cpu_ns(stats: &cri::ContainerStats) -> Result<u64> {
    value(stats.cpu.as_ref().and_then(|c| c.usage_core_nano_seconds.as_ref()))
}

/// Within a twentieth, and `slack` for what is done besides.
fn ensure_near(what: &str, found: u64, expected: u64, slack: u64) -> Result<()> {
    let (least, most) = (expected - expected / 20, expected + expected / 20 + slack);
    ensure!((least..=most).contains(&found), "{what}: {found} is not {expected}");
    Ok(())
}

/// Burns two seconds of CPU time by the process's own account (fields 14 and 15 of proc_pid_stat(5), in hundredths), then idles.
const BURN: &str = "spent() { read -r _ _ _ _ _ _ _ _ _ _ _ _ _ u s _ </proc/$$/stat; }; spent; \
    while [ $((u + s)) -lt 200 ]; do i=0; while [ $i -lt 500 ]; do i=$((i + 1)); done; spent; done; echo burned; exec sleep 1000";

async fn cpu_time_is_what_the_container_burned(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let main = pod.container("main").sh(BURN).run().await?;
    let burned = async || Ok(main.log()?);
    within(Duration::from_secs(60), "the end of the burning", burned, |log| !log.is_empty()).await?;
    let used = stats(&main).await?;
    ensure!(used.cpu.as_ref().is_some_and(|c| c.timestamp > 0), "{used:?}");
    // What made the container runs in its cgroup too.
    ensure_near("CPU time", cpu_ns(&used)?, 2_000_000_000, 50_000_000)?;
    let of_pod = pod_stats(&pod).await?;
    let pod_ns = value(of_pod.cpu.as_ref().and_then(|c| c.usage_core_nano_seconds.as_ref()))?;
    ensure!(pod_ns >= cpu_ns(&used)?, "the pod used {pod_ns}, less than its container: {used:?}");
    let inside = of_pod.containers.first().context("the pod's numbers lack its container")?;
    ensure!(cpu_ns(inside)? >= cpu_ns(&used)?, "{inside:?}");
    Ok(())
}

async fn a_rate_is_what_was_used_over_time(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let main = pod.container("main").sh("while :; do :; done").run().await?;
    // What a rate has to be depends on how busy the machine is: it is held against two readings around it.
    let first = stats(&main).await?;
    let told = async || stats(&main).await;
    let later = within(Duration::from_secs(60), "a rate over ten seconds", told, |now| {
        let elapsed =
            now.cpu.as_ref().map_or(0, |c| c.timestamp) - first.cpu.as_ref().map_or(0, |c| c.timestamp);
        elapsed > 22_000_000_000 && now.cpu.as_ref().is_some_and(|c| c.usage_nano_cores.is_some())
    });
    let later = later.await?;
    let at = |s: &cri::ContainerStats| s.cpu.as_ref().map_or(0, |c| c.timestamp);
    let elapsed = u64::try_from(at(&later) - at(&first))?;
    let mean = u128::from(cpu_ns(&later)? - cpu_ns(&first)?) * 1_000_000_000 / u128::from(elapsed);
    let told = value(later.cpu.as_ref().and_then(|c| c.usage_nano_cores.as_ref()))?;
    let mean = u64::try_from(mean)?;
    ensure!(told > mean / 2 && told < mean * 2, "told {told}, and it used {mean}");
    Ok(())
}

/// Holds a buffer of 64 MiB that was written to.
const HOLD: &str = "{ head -c 67108864 /dev/zero; echo held >&2; sleep 1000; } | dd bs=67108864 iflag=fullblock of=/dev/null";

async fn memory_is_what_the_container_holds(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let main = pod.container("main").idle().run().await?;
    let rss = |s: &cri::ContainerStats| value(s.memory.as_ref().and_then(|m| m.rss_bytes.as_ref()));
    let before = stats(&main).await?;
    let holder = pod.container("holder").sh(HOLD).run().await?;
    let held = async || stats(&holder).await;
    let full = |s: &cri::ContainerStats| rss(s).is_ok_and(|rss| rss >= 64 * MIB);
    let held = eventually("64 MiB to be held", held, full).await?;
    ensure_near("resident memory", rss(&held)?, 64 * MIB, MIB)?;
    let memory = held.memory.unwrap_or_default();
    ensure!(value(memory.working_set_bytes.as_ref())? >= 64 * MIB, "{memory:?}");
    ensure!(value(memory.working_set_bytes.as_ref())? <= value(memory.usage_bytes.as_ref())?, "{memory:?}");
    // As few as one for each huge page.
    ensure!(value(memory.page_faults.as_ref())? >= 64 / 2, "{memory:?}");
    ensure!(memory.available_bytes.is_none(), "there is no limit: {memory:?}");
    let after = stats(&main).await?;
    ensure!(rss(&after)? < rss(&before)? + MIB, "the other container holds it: {after:?}");
    Ok(())
}

async fn what_is_left_below_a_limit_is_told(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let limited = |r: &mut cri::LinuxContainerResources| r.memory_limit_in_bytes = 64 << 20;
    let main = pod.container("main").idle().with_resources(limited).run().await?;
    let memory = stats(&main).await?.memory.unwrap_or_default();
    let both = value(memory.available_bytes.as_ref())? + value(memory.working_set_bytes.as_ref())?;
    assert_eq!(both, 64 * MIB, "{memory:?}");
    Ok(())
}

async fn what_a_container_wrote_is_counted(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let main = pod.container("main").idle().run().await?;
    let layer = |s: &cri::ContainerStats| s.writable_layer.clone().context("no writable layer");
    let before = layer(&stats(&main).await?)?;
    main.sh("dd if=/dev/urandom of=/file bs=1M count=10 && sync").await?;
    let bytes = |s: &cri::ContainerStats| value(layer(s)?.used_bytes.as_ref());
    let already = value(before.used_bytes.as_ref())?;
    let written = async || stats(&main).await;
    let enough = |s: &cri::ContainerStats| bytes(s).is_ok_and(|bytes| bytes >= already + 10 * MIB);
    let after = within(Duration::from_secs(40), "10 MiB to be counted", written, enough).await?;
    ensure_near("written bytes", bytes(&after)? - already, 10 * MIB, MIB / 4)?;
    let after = layer(&after)?;
    ensure!(after.timestamp > before.timestamp && after.fs_id == before.fs_id, "{before:?} {after:?}");
    if let (Some(before), Some(after)) = (before.inodes_used, after.inodes_used) {
        assert_eq!(after.value, before.value + 1);
    }
    Ok(())
}

async fn bytes_of_the_network_are_counted(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let main = pod.container("main").idle().run().await?;
    let interface = async || -> Result<cri::NetworkInterfaceUsage> {
        let network = pod_stats(&pod).await?.network.context("no network")?;
        ensure!(network.timestamp > 0 && network.interfaces.is_empty(), "{network:?}");
        network.default_interface.context("no default interface")
    };
    let before = interface().await?;
    assert_eq!(before.name, "eth0");
    let listener = TcpListener::bind("0.0.0.0:0").await?;
    let port = listener.local_addr()?.port();
    let received = tokio::spawn(async move {
        let (mut from, _) = listener.accept().await?;
        tokio::io::copy(&mut from, &mut tokio::io::sink()).await
    });
    main.sh(&format!("head -c 5242880 /dev/urandom | nc -w 20 10.244.7.1 {port}")).await?;
    assert_eq!(received.await??, 5 * MIB);
    let after = interface().await?;
    let sent = value(after.tx_bytes.as_ref())? - value(before.tx_bytes.as_ref())?;
    ensure_near("sent bytes", sent, 5 * MIB, 64 << 10)?;
    let received = value(after.rx_bytes.as_ref())? - value(before.rx_bytes.as_ref())?;
    ensure!(received < MIB, "{received} bytes were received");
    assert_eq!(value(after.tx_errors.as_ref())?, 0);
    Ok(())
}

async fn the_nodes_network_is_not_a_pods(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").host_network().run().await?;
    assert_eq!(pod_stats(&pod).await?.network, None);
    Ok(())
}

async fn processes_are_counted(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let main = pod.container("main").command(["sleep", "1000"]).run().await?;
    let count = async || value(pod_stats(&pod).await?.process.and_then(|p| p.process_count).as_ref());
    let before = count().await?;
    main.sh("for i in 1 2 3 4 5; do sleep 1000 </dev/null >/dev/null 2>&1 & done").await?;
    let five_more = |now: &u64| *now == before + 5;
    eventually("five processes more", count, five_more).await?;
    Ok(())
}

async fn an_ended_container_uses_nothing_but_its_files(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let main = pod.container("main").sh("echo x >/file").run().await?;
    main.exited().await?;
    let ended = stats(&main).await?;
    assert_eq!((&ended.cpu, &ended.memory), (&None, &None));
    ensure!(ended.writable_layer.is_some(), "{ended:?}");
    pod.stop().await?;
    let stopped = stats(&main).await?;
    assert_eq!((&stopped.cpu, &stopped.memory), (&None, &None));
    let of_pod = pod_stats(&pod).await?;
    assert_eq!((&of_pod.cpu, &of_pod.memory, &of_pod.network), (&None, &None, &None));
    Ok(())
}

async fn statistics_are_filtered(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").label("app", "web").run().await?;
    let other = node.pod("db").label("app", "db").run().await?;
    let main = pod.container("main").label("kind", "app").idle().run().await?;
    let side = pod.container("side").idle().create().await?;
    let database = other.container("main").label("kind", "app").idle().run().await?;
    let list = async |filter: cri::ContainerStatsFilter| -> Result<Vec<String>> {
        let request = cri::ListContainerStatsRequest { filter: Some(filter) };
        let found = node.client().list_container_stats(request).await?.stats;
        let mut ids: Vec<_> = found.into_iter().filter_map(|s| Some(s.attributes?.id)).collect();
        ids.sort();
        Ok(ids)
    };
    let sorted = |ids: &[&str]| {
        let mut ids: Vec<_> = ids.iter().map(|id| (*id).to_owned()).collect();
        ids.sort();
        ids
    };
    let all = || cri::ContainerStatsFilter::default();
    assert_eq!(list(all()).await?, sorted(&[&main.id, &side.id, &database.id]));
    let of_pod = cri::ContainerStatsFilter { pod_sandbox_id: pod.id.clone(), ..all() };
    assert_eq!(list(of_pod).await?, sorted(&[&main.id, &side.id]));
    let label_selector = [("kind".to_owned(), "app".to_owned())].into();
    let apps = cri::ContainerStatsFilter { label_selector, ..all() };
    assert_eq!(list(apps).await?, sorted(&[&main.id, &database.id]));
    let one = cri::ContainerStatsFilter { id: side.id.clone(), ..all() };
    assert_eq!(list(one).await?, sorted(&[&side.id]));

    let pods = async |filter: cri::PodSandboxStatsFilter| -> Result<Vec<String>> {
        let request = cri::ListPodSandboxStatsRequest { filter: Some(filter) };
        let found = node.client().list_pod_sandbox_stats(request).await?.stats;
        let mut ids: Vec<_> = found.into_iter().filter_map(|s| Some(s.attributes?.id)).collect();
        ids.sort();
        Ok(ids)
    };
    assert_eq!(pods(cri::PodSandboxStatsFilter::default()).await?, sorted(&[&pod.id, &other.id]));
    let label_selector = [("app".to_owned(), "db".to_owned())].into();
    let databases = cri::PodSandboxStatsFilter { label_selector, ..Default::default() };
    assert_eq!(pods(databases).await?, sorted(&[&other.id]));
    other.stop().await?;
    assert_eq!(pods(cri::PodSandboxStatsFilter::default()).await?, sorted(&[&pod.id]));
    Ok(())
}

async fn statistics_go_on_after_a_restart(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let main = pod.container("main").idle().run().await?;
    let before = stats(&main).await?;
    node.crash().await?;
    let after = stats(&main).await?;
    ensure!(cpu_ns(&after)? >= cpu_ns(&before)?, "{before:?} {after:?}");
    ensure!(after.writable_layer.is_some(), "{after:?}");
    Ok(())
}

async fn what_is_not_there_has_none(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let client = node.client();
    let request = cri::ContainerStatsRequest { container_id: "0".repeat(64) };
    let refusal = client.container_stats(request).await.refused("a container that is not there")?;
    assert_eq!(refusal.code(), tonic::Code::NotFound);
    let request = cri::PodSandboxStatsRequest { pod_sandbox_id: "0".repeat(64) };
    let refusal = client.pod_sandbox_stats(request).await.refused("a pod that is not there")?;
    assert_eq!(refusal.code(), tonic::Code::NotFound);
    Ok(())
}
