//! Metrics of pods and containers under cAdvisor's names.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hartpod_tests::eventually::within;
use hartpod_tests::{Lab, Need, Node, Refused, cri, eventually, metrics, tests};
use tokio::io::AsyncWriteExt as _;
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

tests![
    every_name_has_a_sample_where_the_kernel_counts needs Need::MemoryController,
    samples_have_cadvisors_labels,
    samples_move_by_what_was_done needs Need::MemoryController,
    a_stopped_pod_has_none,
    a_prometheus_scrapes_what_the_cgroup_says needs Need::Prometheus,
    promtool_finds_nothing_wrong needs Need::Prometheus,
    promtool_finds_nothing_wrong_with_the_alerts needs Need::Prometheus,
    calls_and_pods_are_counted,
    only_metrics_are_served,
    who_asks_at_once_shares_an_answer,
    silent_clients_keep_no_scrape_out,
];

const MIB: u64 = 1 << 20;

/// A sample: its labels by name, and its value.
type Sample = (BTreeMap<String, String>, u64);

/// All samples by name.
async fn samples(node: &Node) -> Result<BTreeMap<String, Vec<Sample>>> {
    let descriptors =
        node.client().list_metric_descriptors(cri::ListMetricDescriptorsRequest {}).await?.descriptors;
    let keys: BTreeMap<_, _> = descriptors.into_iter().map(|d| (d.name, d.label_keys)).collect();
    let pods =
        node.client().list_pod_sandbox_metrics(cri::ListPodSandboxMetricsRequest {}).await?.pod_metrics;
    let containers = |pod: &cri::PodSandboxMetrics| pod.container_metrics.clone();
    let inside = pods.iter().flat_map(containers).flat_map(|c| c.metrics);
    let all = pods.iter().flat_map(|pod| pod.metrics.clone()).chain(inside);
    let mut found: BTreeMap<String, Vec<Sample>> = BTreeMap::new();
    for metric in all {
        let keys = keys.get(&metric.name).with_context(|| format!("{} has no descriptor", metric.name))?;
        ensure!(keys.len() == metric.label_values.len(), "{metric:?} has not the labels {keys:?}");
        let labels = keys.iter().cloned().zip(metric.label_values).collect();
        let value = metric.value.context("no value")?.value;
        found.entry(metric.name).or_default().push((labels, value));
    }
    Ok(found)
}

/// The one sample of a container, which has these labels besides.
fn of_container(all: &BTreeMap<String, Vec<Sample>>, name: &str, more: &[(&str, &str)]) -> Result<u64> {
    let is_meant = |labels: &BTreeMap<String, String>| {
        labels["container"] == "main" && more.iter().all(|(key, value)| labels[*key] == **value)
    };
    let found: Vec<_> = all.get(name).into_iter().flatten().filter(|(labels, _)| is_meant(labels)).collect();
    ensure!(found.len() == 1, "{name}: {found:?}");
    Ok(found[0].1)
}

fn is_v2() -> bool {
    Path::new("/sys/fs/cgroup/cgroup.controllers").exists()
}

/// Names that this kernel has no numbers for, as far as it says so itself.
fn not_counted(node: &Node) -> BTreeSet<&'static str> {
    let mut missing = BTreeSet::new();
    let v2 = is_v2();
    let own =
        |file: &str| Path::new("/sys/fs/cgroup").join(node.cgroup_root().trim_start_matches('/')).join(file);
    if !Path::new("/proc/pressure").exists() {
        missing.extend([
            "container_pressure_cpu_stalled_seconds_total",
            "container_pressure_cpu_waiting_seconds_total",
            "container_pressure_io_stalled_seconds_total",
            "container_pressure_io_waiting_seconds_total",
            "container_pressure_memory_stalled_seconds_total",
            "container_pressure_memory_waiting_seconds_total",
        ]);
    }
    if !Path::new("/sys/fs/cgroup/hugetlb").exists() {
        // Only v1 remembers it.
        missing.insert("container_hugetlb_max_usage_bytes");
    }
    if v2 {
        if !own("memory.swap.current").exists() {
            missing.insert("container_memory_swap");
        }
    } else {
        // v1 counts only for cgroups with a throttle.
        missing.extend([
            "container_blkio_device_usage_total",
            "container_fs_reads_bytes_total",
            "container_fs_reads_total",
            "container_fs_writes_bytes_total",
            "container_fs_writes_total",
        ]);
    }
    missing
}

async fn every_name_has_a_sample_where_the_kernel_counts(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let limited = |r: &mut cri::LinuxContainerResources| {
        r.memory_limit_in_bytes = 256 << 20;
        r.cpu_quota = 50_000;
        r.cpu_period = 100_000;
    };
    let main = pod.container("main").idle().with_resources(limited).run().await?;
    main.sh(
        "dd if=/dev/zero of=/file bs=1M count=1 oflag=direct; dd if=/file of=/dev/null bs=1M iflag=direct",
    )
    .await?;
    let descriptors =
        node.client().list_metric_descriptors(cri::ListMetricDescriptorsRequest {}).await?.descriptors;
    let names: BTreeSet<_> = descriptors.iter().map(|d| d.name.as_str()).collect();
    assert_eq!(names.len(), 56);
    let not_counted = not_counted(&node);
    let missing = async || -> Result<Vec<&str>> {
        let all = samples(&node).await?;
        Ok(names
            .iter()
            .copied()
            .filter(|name| !all.contains_key(*name) && !not_counted.contains(name))
            .collect())
    };
    eventually("a sample of every name", missing, Vec::is_empty).await?;
    Ok(())
}

async fn samples_have_cadvisors_labels(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let main = pod.container("main").idle().run().await?;
    let all = samples(&node).await?;
    let usage = &all["container_cpu_usage_seconds_total"];
    let inside = usage.iter().find(|(labels, _)| labels["container"] == "main").context("no container")?;
    let label = |key: &str| inside.0[key].as_str();
    assert_eq!((label("pod"), label("namespace"), label("name")), ("web", "test", main.id.as_str()));
    assert_eq!((label("image"), label("cpu")), (node.image(), "total"));
    ensure!(label("id").starts_with('/') && label("id").ends_with(&main.id), "{inside:?}");
    let of_pod = usage.iter().find(|(labels, _)| labels["container"].is_empty()).context("no pod")?;
    assert_eq!((&*of_pod.0["pod"], &*of_pod.0["name"], &*of_pod.0["image"]), ("web", "", ""));
    ensure!(!of_pod.0["id"].contains(&main.id) && of_pod.0["id"].starts_with('/'), "{of_pod:?}");
    let network = &all["container_network_receive_bytes_total"];
    assert_eq!(network.len(), 1, "{network:?}");
    assert_eq!((&*network[0].0["interface"], &*network[0].0["pod"]), ("eth0", "web"));
    Ok(())
}

async fn samples_move_by_what_was_done(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let limited = |r: &mut cri::LinuxContainerResources| {
        r.memory_limit_in_bytes = 256 << 20;
        r.cpu_shares = 512;
    };
    let main = pod.container("main").command(["sleep", "1000"]).with_resources(limited).run().await?;
    let before = samples(&node).await?;
    assert_eq!(of_container(&before, "container_spec_memory_limit_bytes", &[])?, 256 * MIB);
    assert_eq!(of_container(&before, "container_spec_cpu_shares", &[])?, 512);
    let started = of_container(&before, "container_start_time_seconds", &[])?;
    assert_eq!(started, u64::try_from(main.status().await?.started_at / 1_000_000_000)?);
    let processes = of_container(&before, "container_processes", &[])?;
    main.sh("for i in 1 2 3; do sleep 1000 </dev/null >/dev/null 2>&1 & done; nc -l -p 81 </dev/null >/dev/null 2>&1 &").await?;
    main.sh("dd if=/dev/zero of=/file bs=1M count=10 oflag=direct").await?;
    let told = async || {
        let all = samples(&node).await?;
        let read = |name| of_container(&all, name, &[]);
        Ok((read("container_processes")?, read("container_sockets")?))
    };
    let is_done = |(now, sockets): &(u64, u64)| *now == processes + 4 && *sockets >= 1;
    eventually("four processes more and a socket", told, is_done).await?;
    let after = samples(&node).await?;
    let files = of_container(&after, "container_file_descriptors", &[])?;
    ensure!(files >= of_container(&before, "container_file_descriptors", &[])? + 12, "{files} files");
    let written = |all: &BTreeMap<String, Vec<Sample>>| -> u64 {
        let of_all = all.get("container_fs_writes_bytes_total").into_iter().flatten();
        of_all
            .filter(|(labels, _)| labels["container"] == "main")
            .map(|(_, value)| *value)
            .max()
            .unwrap_or_default()
    };
    let grown = written(&after) - written(&before);
    ensure!(!is_v2() || (10 * MIB..11 * MIB).contains(&grown), "{grown} bytes were written");
    let faults = [("failure_type", "pgfault"), ("scope", "container")];
    let (now, then) = (
        of_container(&after, "container_memory_failures_total", &faults)?,
        of_container(&before, "container_memory_failures_total", &faults)?,
    );
    ensure!(now > then, "{now} page faults after {then}");
    Ok(())
}

async fn a_stopped_pod_has_none(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let _main = pod.container("main").idle().run().await?;
    ensure!(!samples(&node).await?.is_empty(), "there are no samples");
    pod.stop().await?;
    assert_eq!(samples(&node).await?, BTreeMap::new());
    Ok(())
}

/// What Prometheus would get.
pub(crate) async fn scrape(node: &Node) -> Result<String> {
    metrics::scrape(&metrics::address(node)?).await
}

/// A real Prometheus that scrapes a node; it ends with the test.
struct Prometheus {
    address: String,
    _process: Child,
}

impl Prometheus {
    fn start(lab: &Lab, target: &str) -> Result<Self> {
        let dir = lab.dir().join("prometheus");
        std::fs::create_dir(&dir)?;
        let config = format!(
            "global: {{scrape_interval: 1s}}\nscrape_configs: [{{job_name: hartpod, static_configs: [{{targets: ['{target}']}}]}}]\n"
        );
        std::fs::write(dir.join("prometheus.yml"), config)?;
        // The test's loopback is its own.
        let address = "127.0.0.1:9090".to_owned();
        let process = Command::new("prometheus")
            .arg(format!("--config.file={}", dir.join("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", dir.join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(dir.join("log"))?)
            .kill_on_drop(true)
            .spawn()
            .context("run prometheus")?;
        Ok(Self { address, _process: process })
    }

    /// The value of the only series that a query gives, or nothing yet.
    async fn query(&self, query: &str) -> Result<Option<f64>> {
        let escaped: String = query.bytes().map(|b| format!("%{b:02X}")).collect();
        // It listens a moment after its start.
        let Ok((_, body)) = metrics::http(&self.address, &format!("GET /api/v1/query?query={escaped}")).await
        else {
            return Ok(None);
        };
        let Some(begin) = body.find('{') else { return Ok(None) };
        let mut answers = serde_json::Deserializer::from_str(&body[begin..]).into_iter::<serde_json::Value>();
        let answer = answers.next().context("no answer")??;
        let found = answer["data"]["result"].as_array().cloned().unwrap_or_default();
        ensure!(found.len() <= 1, "{query}: {answer}");
        found.first().map(|one| Ok(one["value"][1].as_str().context("no value")?.parse()?)).transpose()
    }
}

async fn a_prometheus_scrapes_what_the_cgroup_says(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let main = pod
        .container("main")
        .sh("dd if=/dev/zero of=/dev/shm/held bs=1M count=32; while :; do :; done")
        .run()
        .await?;
    let prometheus = Prometheus::start(lab, &metrics::address(&node)?)?;
    let of_main = |name: &str| format!("{name}{{namespace=\"test\",pod=\"web\",container=\"main\"}}");

    let usage = of_main("container_memory_usage_bytes");
    let memory = async || prometheus.query(&usage).await;
    let seen = within(Duration::from_secs(60), "the memory to be seen", memory, |seen| {
        seen.is_some_and(|b| b > 32e6)
    })
    .await?;
    let request = cri::ContainerStatsRequest { container_id: main.id.clone() };
    let stats = node.client().container_stats(request.clone()).await?.stats.context("no statistics")?;
    // What CRI's statistics say is held against the cgroup by their own tests, in both kinds of pod.
    let said = stats.memory.and_then(|m| m.usage_bytes).context("no memory")?.value;
    let seen = seen.unwrap_or_default();
    #[allow(clippy::cast_precision_loss)]
    let (least, most) = (said as f64 * 0.95, said as f64 * 1.05);
    ensure!((least..=most).contains(&seen), "Prometheus has {seen}, CRI {said}");

    let time = of_main("container_cpu_usage_seconds_total");
    let cpu = async || prometheus.query(&time).await;
    within(Duration::from_secs(60), "three seconds of CPU time", cpu, |seen| seen.is_some_and(|s| s > 3.0))
        .await?;
    let rate = format!("rate({time}[30s])");
    let using = async || prometheus.query(&rate).await;
    within(Duration::from_secs(60), "a rate", using, |rate| rate.is_some_and(|r| r > 0.1)).await?;
    let up = prometheus.query("up").await?;
    assert_eq!(up, Some(1.0));
    Ok(())
}

async fn promtool_finds_nothing_wrong(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let _main = pod.container("main").idle().run().await?;
    let text = scrape(&node).await?;
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    let mut input = promtool.stdin.take().context("no input")?;
    input.write_all(text.as_bytes()).await?;
    drop(input);
    let output = promtool.wait_with_output().await?;
    let said = String::from_utf8_lossy(&output.stderr);
    // cAdvisor chose its names before there were rules for them.
    let ours = said.lines().filter(|line| !line.starts_with("container_")).collect::<Vec<_>>();
    ensure!(ours.is_empty() && output.status.code() != Some(1), "{said}");
    Ok(())
}

async fn promtool_finds_nothing_wrong_with_the_alerts(_: &Lab) -> Result<()> {
    let rules = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/prometheus/hartpod.rules.yml");
    let checked = Command::new("promtool").args(["check", "rules", rules]).output().await?;
    ensure!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
    Ok(())
}

async fn calls_and_pods_are_counted(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let _main = pod.container("main").idle().run().await?;
    let request = cri::ContainerStatusRequest { container_id: "0".repeat(64), verbose: false };
    node.client().container_status(request).await.refused("a container that is not there")?;
    let kind = if pod.is_guest() { "vm" } else { "container" };
    let text = scrape(&node).await?;
    for expected in [
        "hartpod_cri_calls_total{code=\"ok\",method=\"RunPodSandbox\"} 1".to_owned(),
        "hartpod_cri_calls_total{code=\"not_found\",method=\"ContainerStatus\"} 1".to_owned(),
        "hartpod_cri_call_seconds_count{method=\"RunPodSandbox\"} 1".to_owned(),
        "hartpod_cni_calls_total{result=\"success\",verb=\"ADD\"} 1".to_owned(),
        "hartpod_image_pulls_total{result=\"success\"} 1".to_owned(),
        format!("hartpod_pods{{state=\"ready\",kind=\"{kind}\"}} 1"),
    ] {
        ensure!(text.lines().any(|line| line == expected), "no {expected} in {text}");
    }
    let overhead =
        text.lines().find(|l| l.starts_with("hartpod_pod_overhead_memory_bytes{")).context("no overhead")?;
    let bytes: f64 = overhead.rsplit(' ').next().context("no value")?.parse()?;
    ensure!(bytes > 65536.0, "{overhead}");
    pod.stop().await?;
    let text = scrape(&node).await?;
    ensure!(!text.contains("container_cpu_usage_seconds_total{"), "a stopped pod's series went on: {text}");
    ensure!(text.contains(&format!("hartpod_pods{{state=\"stopped\",kind=\"{kind}\"}} 1")), "{text}");
    Ok(())
}

async fn only_metrics_are_served(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let address = metrics::address(&node)?;
    let head = async |request: &str| -> Result<String> { Ok(metrics::http(&address, request).await?.0) };
    ensure!(head("GET /").await?.starts_with("HTTP/1.1 404 "), "{}", head("GET /").await?);
    ensure!(head("POST /metrics").await?.starts_with("HTTP/1.1 405 "), "{}", head("POST /metrics").await?);
    let answer = head("GET /metrics").await?;
    ensure!(answer.contains("text/plain; version=0.0.4"), "{answer}");
    Ok(())
}

async fn who_asks_at_once_shares_an_answer(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let address = metrics::address(&node)?;
    let (one, other) = tokio::try_join!(metrics::scrape_once(&address), metrics::scrape_once(&address))?;
    assert_eq!(one, other);
    ensure!(metrics::scrape(&address).await? != one, "the answer is never a new one");
    Ok(())
}

async fn silent_clients_keep_no_scrape_out(lab: &Lab) -> Result<()> {
    // More than there are places; each has ten seconds to say something.
    const CLIENTS: usize = 40;
    let node = lab.node().await?;
    let address = metrics::address(&node)?;
    let mut clients = Vec::new();
    for number in 0..CLIENTS {
        let mut client = TcpStream::connect(&address).await?;
        // Some say something, and never all of it.
        client.write_all(if number % 2 == 0 { b"GET /met" } else { b"" }).await?;
        clients.push(client);
    }
    let scrape = tokio::time::timeout(Duration::from_secs(5), metrics::scrape_once(&address));
    let text = scrape.await.context("silent clients were in the way")??;
    ensure!(text.contains("hartpod_build_info{"), "{text}");
    Ok(())
}
