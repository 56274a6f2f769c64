//! The pod address ranges that the kubelet tells, and the network configuration that is made of them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use hartpod_tests::{Lab, Need, Node, Refused, cri, eventually, node, tests};
use tokio::process::Command;
use tonic::{Code, Status};

tests![
    a_template_becomes_the_nodes_network,
    both_families_are_in_a_dual_stack_configuration needs Need::Ipv6,
    a_configuration_that_is_there_stays,
    ranges_that_are_none_are_refused,
    a_template_that_is_not_understood_stops_the_start,
];

/// As the clusters have it that containerd's template was made for.
const TEMPLATE: &str = r#"{
  "name": "pods", "cniVersion": "1.0.0",
  "plugins": [
    {
      "type": "ptp",
      "ipam": {
        "type": "host-local", "dataDir": "RESERVATIONS",
        "ranges": [{{range $i, $range := .PodCIDRRanges}}{{if $i}}, {{end}}[{"subnet": "{{$range}}"}]{{end}}],
        "routes": [{{range $i, $route := .Routes}}{{if $i}}, {{end}}{"dst": "{{$route}}"}{{end}}]
      }
    },
    {"type": "portmap", "capabilities": {"portMappings": true}}
  ]
}
"#;

/// A node that has the template, and the network `conflist` makes, if any.
async fn node_with(lab: &Lab, template: &str, own_network: bool) -> Result<Node> {
    let path = lab.dir().join("template");
    let mut builder = lab.node_builder()?.settings(&format!("[cni]\nconf_template = {path:?}\n"));
    builder = builder.network(|cni| {
        let text = template.replace("RESERVATIONS", &cni.reservations.display().to_string());
        std::fs::write(&path, text).ok()?;
        own_network.then(|| cni.bridge(&[hartpod_tests::cni::SUBNET]))
    });
    lab.start(builder).await
}

/// What the kubelet says when the node gets its ranges.
async fn tell(node: &Node, pod_cidr: &str) -> Result<(), Status> {
    let network_config = Some(cri::NetworkConfig { pod_cidr: pod_cidr.into() });
    let runtime_config = Some(cri::RuntimeConfig { network_config });
    node.client().update_runtime_config(cri::UpdateRuntimeConfigRequest { runtime_config }).await?;
    Ok(())
}

fn made(node: &Node) -> PathBuf {
    node.cni().conf_dir.join("10-hartpod-net.conflist")
}

async fn is_network_ready(node: &Node) -> Result<bool> {
    let status = node.client().status(cri::StatusRequest::default()).await?.status.context("no status")?;
    Ok(status.conditions.iter().any(|condition| condition.r#type == "NetworkReady" && condition.status))
}

async fn pull(lab: &Lab, node: &Node) -> Result<()> {
    lab.registry().await?;
    node.client().pull(node.image()).await.context("pull the test image")?;
    Ok(())
}

async fn a_template_becomes_the_nodes_network(lab: &Lab) -> Result<()> {
    let node = node_with(lab, TEMPLATE, false).await?;
    pull(lab, &node).await?;
    ensure!(!is_network_ready(&node).await?, "nobody has told ranges yet");
    tell(&node, "10.244.9.0/24").await?;
    ensure!(is_network_ready(&node).await?, "{}", node.log_tail(20));
    let first = node.pod("first").run().await?;
    ensure!(first.ip().await?.starts_with("10.244.9."), "{}", first.ip().await?);
    let main = first.container("main").idle().run().await?;
    ensure!(
        main.sh("ip -4 route").await?.starts_with("default via 10.244.9.1 "),
        "{}",
        main.sh("ip -4 route").await?
    );

    // The kubelet repeats it after each of its restarts.
    let modified = || -> Result<_> { Ok(std::fs::metadata(made(&node))?.modified()?) };
    let before = modified()?;
    tell(&node, "10.244.9.0/24").await?;
    assert_eq!(modified()?, before, "the same ranges change nothing");

    // Another range: for new pods. Those that are there leave as they came.
    tell(&node, "10.244.10.0/24").await?;
    let second = node.pod("second").run().await?;
    ensure!(second.ip().await?.starts_with("10.244.10."), "{}", second.ip().await?);
    assert_eq!(node.cni().reserved()?.len(), 2);
    first.stop().await?;
    assert_eq!(node.cni().reserved()?, [second.ip().await?]);

    // The next daemon has it from the file.
    node.crash().await?;
    ensure!(is_network_ready(&node).await?, "{}", node.log_tail(20));
    let leftovers: Vec<_> =
        std::fs::read_dir(&node.cni().conf_dir)?.flatten().map(|e| e.file_name()).collect();
    assert_eq!(leftovers, ["10-hartpod-net.conflist"]);
    Ok(())
}

async fn both_families_are_in_a_dual_stack_configuration(lab: &Lab) -> Result<()> {
    let node = node_with(lab, TEMPLATE, false).await?;
    tell(&node, "10.244.9.0/24,fd00:9::/64").await?;
    let pod = node.pod("web").run().await?;
    let network = pod.status().await?.network.context("no network status")?;
    ensure!(network.ip.starts_with("10.244.9."), "{network:?}");
    let more: Vec<&str> = network.additional_ips.iter().map(|ip| ip.ip.as_str()).collect();
    ensure!(matches!(more[..], [one] if one.starts_with("fd00:9::")), "{more:?}");
    Ok(())
}

async fn a_configuration_that_is_there_stays(lab: &Lab) -> Result<()> {
    let node = node_with(lab, TEMPLATE, true).await?;
    tell(&node, "10.244.9.0/24").await?;
    ensure!(!made(&node).exists(), "there is a network already");
    let pod = node.pod("web").run().await?;
    ensure!(pod.ip().await?.starts_with("10.244.7."), "{}", pod.ip().await?);
    // When it goes, the next word of the kubelet's makes the file.
    pod.stop().await?;
    node.cni().clear()?;
    let gone = async || is_network_ready(&node).await;
    eventually("the network to be gone", gone, |ready| !ready).await?;
    tell(&node, "10.244.9.0/24").await?;
    ensure!(is_network_ready(&node).await?, "{}", node.log_tail(20));
    Ok(())
}

async fn ranges_that_are_none_are_refused(lab: &Lab) -> Result<()> {
    let node = node_with(lab, TEMPLATE, false).await?;
    for (ranges, word) in [
        ("10.244.9.0", "\"10.244.9.0\" is not an address with a prefix length"),
        ("10.244.9.0/24,", "\"\" is not an address"),
        ("10.244.9.0/24;fd00::/64", "is not an address"),
        ("10.244.9.7/24", "bits set behind its prefix"),
        ("\"}, {\"type\": \"sh\"}", "is not an address"),
    ] {
        let status = tell(&node, ranges).await.refused(ranges)?;
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        let message = status.message();
        ensure!(
            message.starts_with("runtime_config.network_config.pod_cidr: ") && message.contains(word),
            "{message}"
        );
        ensure!(!made(&node).exists(), "{ranges}");
    }
    Ok(())
}

async fn a_template_that_is_not_understood_stops_the_start(lab: &Lab) -> Result<()> {
    let Err(error) = node_with(lab, "{\n{{.Gateway}}", false).await else {
        anyhow::bail!("the daemon started with a template that it does not understand")
    };
    let error = format!("{error:#}");
    let path = lab.dir().join("template").display().to_string();
    ensure!(error.contains(&path) && error.contains("line 2: {{.Gateway}} is not understood"), "{error}");
    let mut check = Command::new(node::bin_dir().join("hartpod"));
    let output = check.arg("check").arg("--config").arg(config(lab.dir())?).output().await?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(said.contains("line 2: {{.Gateway}} is not understood"), "{said}");
    Ok(())
}

/// A configuration with this template and nothing else.
fn config(dir: &Path) -> Result<PathBuf> {
    let file = dir.join("check.toml");
    std::fs::write(&file, format!("[cni]\nconf_template = {:?}\n", dir.join("template")))?;
    Ok(file)
}
