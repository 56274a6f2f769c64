//! What is told of guests, and what they cost.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use hartpod_tests::smaps::Memory;
use hartpod_tests::{Lab, Need, Node, Pod, metrics, process, tests};
use nix::sys::signal::Signal;

tests![
    a_guest_is_told_by_its_vmm needs Need::Kvm,
    a_vmm_that_hangs_has_no_counts needs Need::Kvm,
    a_guests_overhead_is_what_its_vmm_holds_besides_its_containers needs Need::Kvm,
];

/// The value of the one series of a pod that has this name and all of these labels.
async fn value(node: &Node, pod: &Pod, name: &str, labels: &[&str]) -> Result<f64> {
    let text = metrics::scrape(&metrics::address(node)?).await?;
    let sandbox = format!("sandbox=\"{}\"", pod.id);
    let is_meant = |line: &&str| {
        line.split('{').next() == Some(name)
            && line.contains(&sandbox)
            && labels.iter().all(|label| line.contains(label))
    };
    let found: Vec<_> = text.lines().filter(is_meant).collect();
    ensure!(found.len() == 1, "{name} {labels:?}: {found:?}");
    found[0].rsplit(' ').next().and_then(|value| value.parse().ok()).context("no value")
}

async fn a_guest_is_told_by_its_vmm(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").in_guest().run().await?;
    let main = pod.container("main").idle().run().await?;
    let told = async |name: &str, labels: &[&str]| value(&node, &pod, name, labels).await;
    let (kicks, vsock) = (["device=\"block\""], ["device=\"vsock\"", "direction=\"from_guest\""]);

    assert_eq!(told("hartpod_guest_vmm_stale", &[]).await?, 0.0);
    assert_eq!(told("hartpod_guest_vcpus", &[]).await?, 1.0);
    let booted = told("hartpod_guest_memory_bytes", &[]).await?;
    let resident = told("hartpod_guest_memory_resident_bytes", &[]).await?;
    ensure!(resident > 16e6 && resident < booted + 64e6, "{resident} of {booted}");
    ensure!(told("hartpod_guest_vcpu_seconds_total", &[]).await? > 0.01);
    // A guest that keeps quiet makes no SBI call that its VMM hears of.
    for reason in ["mmio_read", "mmio_write"] {
        let count = told("hartpod_guest_exits_total", &[&format!("reason=\"{reason}\"")]).await?;
        ensure!(count > 0.0, "no exits for {reason}");
    }
    for name in ["notifications", "interrupts", "requests"] {
        let count = told(&format!("hartpod_guest_device_{name}_total"), &kicks).await?;
        ensure!(count > 0.0, "no {name} of disks");
    }
    let before = told("hartpod_guest_device_bytes_total", &vsock).await?;
    let output = main.exec(["dd", "if=/dev/zero", "bs=65536", "count=16"]).await?;
    assert_eq!(output.stdout.len(), 1 << 20);
    let after = told("hartpod_guest_device_bytes_total", &vsock).await?;
    // Headers of packets, and what the agent says, come on top.
    ensure!((1e6..2e6).contains(&(after - before)), "{before} to {after}");
    Ok(())
}

async fn a_vmm_that_hangs_has_no_counts(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").in_guest().run().await?;
    let vmm = pod.agent().await?.pid;
    process::signal(vmm, Signal::SIGSTOP)?;
    let stale = value(&node, &pod, "hartpod_guest_vmm_stale", &[]).await;
    let counts = value(&node, &pod, "hartpod_guest_exits_total", &["reason=\"mmio_read\""]).await;
    process::signal(vmm, Signal::SIGCONT)?;
    assert_eq!(stale?, 1.0);
    ensure!(counts.is_err(), "counts of a VMM that hangs: {counts:?}");
    Ok(())
}

/// A file of the cgroup of a process, of cgroup v2.
fn cgroup_file(pid: i32, file: &str) -> Result<String> {
    let of = fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    let path = of.lines().find_map(|line| line.strip_prefix("0::/")).context("no cgroup v2")?;
    let path = Path::new("/sys/fs/cgroup").join(path).join(file);
    fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))
}

const MIB: f64 = 1048576.0;

fn is_near(one: f64, other: f64) -> bool {
    (one - other).abs() <= 0.05 * other + 8.0 * MIB
}

async fn a_guests_overhead_is_what_its_vmm_holds_besides_its_containers(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").in_guest().run().await?;
    let script = "dd if=/dev/zero of=/dev/shm/held bs=1M count=32; echo held; exec sleep 100000";
    let main = pod.container("main").sh(script).run().await?;
    main.logged("held").await?;
    let vmm = pod.agent().await?.pid;
    let booted = value(&node, &pod, "hartpod_guest_memory_bytes", &[]).await?;

    let overhead = value(&node, &pod, "hartpod_pod_overhead_memory_bytes", &[]).await?;
    let used: f64 = cgroup_file(vmm, "memory.current")?.trim().parse()?;
    let stat = cgroup_file(vmm, "memory.stat")?;
    let of_stat = |key: &str| {
        let line = stat.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
        line.and_then(|value| value.parse::<f64>().ok()).with_context(|| format!("no {key} in {stat}"))
    };
    let (anonymous, other) = (of_stat("anon")?, of_stat("file")? + of_stat("kernel")?);
    // The VMM's memory as the kernel tells it by mapping: what its cgroup has but for cached files and the kernel's own.
    let smaps = fs::read_to_string(format!("/proc/{vmm}/smaps"))?;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "some hundred MiB in KiB")]
    let memory = Memory::parse(&smaps, (booted / 1024.0) as u64)?;
    let mapped = (memory.ram_rss_mib() + memory.own_pss_mib()) * MIB;
    ensure!(is_near(anonymous, mapped), "anonymous {anonymous}, by smaps {mapped}");
    ensure!(is_near(used, anonymous + other), "{used} in all, {anonymous} anonymous, {other} other");

    // What is used inside, by one container alone.
    let request = hartpod_tests::cri::ContainerStatsRequest { container_id: main.id.clone() };
    let stats = node.client().container_stats(request).await?.stats.context("no statistics")?;
    #[expect(clippy::cast_precision_loss, reason = "less than 2^52")]
    let inside = stats.memory.and_then(|m| m.usage_bytes).context("no memory")?.value as f64;
    ensure!(inside > 32.0 * MIB, "{inside}");
    ensure!(is_near(overhead, used - inside), "overhead {overhead}, {used} used, {inside} of it inside");
    ensure!(is_near(overhead, mapped + other - inside), "overhead {overhead}, by smaps {mapped} and {other}");
    Ok(())
}
