//! CNI over the life of pods: restarts of the daemon and of the machine, changed configurations, checks, and garbage.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hartpod_tests::cni::{self, PluginCall, SUBNET};
use hartpod_tests::{Lab, Need, Node, Pod, Refused, cri, eventually, process, tests};
use serde_json::{Value, json};
use tokio::process::Command;
use tonic::Code;

use crate::restart::lose_power;

tests![
    a_pod_leaves_after_a_reboot_as_it_joined needs Need::OfNode("networks without interfaces"),
    a_pod_whose_record_is_lost_in_a_reboot_leaves_too needs Need::OfNode("networks without interfaces"),
    a_changed_configuration_is_for_new_pods,
    a_network_that_was_changed_is_told_after_a_restart,
    a_check_that_hangs_holds_nothing_up needs Need::OfNode("networks without interfaces"),
    garbage_is_collected_where_that_is_asked_for needs Need::OfNode("networks without interfaces"),
    garbage_of_a_network_shared_with_others_is_left needs Need::OfNode("networks without interfaces"),
    port_mappings_keep_address_and_protocol needs Need::OfNode("networks without interfaces"),
    a_pod_has_the_bandwidth_of_its_annotations,
    a_bandwidth_that_is_none_is_refused,
    a_host_port_of_a_pod_on_the_nodes_network_is_no_plugins needs Need::OfNode("namespaces"),
];

/// Runs a command of the node; what it printed.
async fn run(program: &str, args: &[&str]) -> Result<String> {
    let output = Command::new(program).args(args).output().await.with_context(|| format!("run {program}"))?;
    ensure!(output.status.success(), "{program} {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// A node whose network is a plugin that writes down its calls, and what else it does: lines of a shell script.
async fn recorded(lab: &Lab, version: &str, does: &str, settings: &str) -> Result<(Node, PathBuf)> {
    let record = lab.dir().join("calls");
    let result = json!({
        "cniVersion": version,
        "interfaces": [{ "name": "eth0", "mac": "00:11:22:33:44:55", "sandbox": "/run/netns/x" }],
        "ips": [{ "address": "192.0.2.77/24", "gateway": "192.0.2.1", "interface": 0 }],
    });
    let builder = lab.node_builder()?.settings(settings).network(|cni| {
        cni.install_recorder("recorder", &record, &result).ok()?;
        // The shell of the recorder is the rest of this one.
        let script = format!("#!/bin/sh\n{does}\nexec \"$(dirname \"$0\")\"/recorder\n");
        cni.install_plugin("front", &script).ok()?;
        let capabilities = json!({ "portMappings": true, "bandwidth": true });
        Some(json!({
            "cniVersion": version, "name": "fake",
            "plugins": [{ "type": "front", "capabilities": capabilities }],
        }))
    });
    let node = lab.start(builder).await?;
    Ok((node, record))
}

fn of(record: &Path, command: &str) -> Result<Vec<PluginCall>> {
    Ok(cni::calls(record)?.into_iter().filter(|call| call.command == command).collect())
}

fn the_one(record: &Path, command: &str) -> Result<PluginCall> {
    let calls = of(record, command)?;
    ensure!(calls.len() == 1, "one {command}: {calls:#?}");
    calls.into_iter().next().context("none")
}

/// A DEL of a pod whose network namespace went with a reboot.
fn must_be_of_a_lost_pod(del: &PluginCall, pod: &Pod) -> Result<()> {
    assert_eq!((del.variable("CNI_CONTAINERID"), del.variable("CNI_IFNAME")), (pod.id.as_str(), "eth0"));
    assert_eq!(del.variable("CNI_NETNS"), "", "as the spec has it for one that is gone");
    assert_eq!(del.stdin["prevResult"]["ips"][0]["address"], "192.0.2.77/24");
    let mapping = &del.stdin["runtimeConfig"]["portMappings"][0];
    assert_eq!((&mapping["HostPort"], &mapping["ContainerPort"]), (&json!(8081), &json!(81)));
    let uid = &pod.config.metadata.as_ref().context("metadata")?.uid;
    ensure!(del.variable("CNI_ARGS").contains(&format!("K8S_POD_UID={uid}")), "{del:#?}");
    Ok(())
}

async fn a_pod_leaves_after_a_reboot_as_it_joined(lab: &Lab) -> Result<()> {
    let (node, record) = recorded(lab, "0.4.0", "", "").await?;
    let pod = node.pod("web").port(8081, 81).run().await?;
    lose_power(&node, &pod).await?;
    // It was another network, which the file has no more.
    node.cni().write("10-pods", &node.cni().bridge(&[SUBNET]))?;
    node.start().await?;
    ensure!(!pod.is_ready().await?);
    assert_eq!(of(&record, "DEL")?.len(), 0, "the kubelet stops it");
    assert_eq!(of(&record, "CHECK")?.len(), 0, "there is nothing to check");
    pod.stop().await?;
    must_be_of_a_lost_pod(&the_one(&record, "DEL")?, &pod)?;
    pod.remove().await?;
    the_one(&record, "DEL")?;
    Ok(())
}

async fn a_pod_whose_record_is_lost_in_a_reboot_leaves_too(lab: &Lab) -> Result<()> {
    let (node, record) = recorded(lab, "1.0.0", "", "").await?;
    let pod = node.pod("web").port(8081, 81).run().await?;
    lose_power(&node, &pod).await?;
    std::fs::remove_dir_all(node.root().join("pods").join(&pod.id)).context("remove the pod's record")?;
    node.start().await?;
    // Its entry in the cache of attachments was all that was left.
    must_be_of_a_lost_pod(&the_one(&record, "DEL")?, &pod)?;
    assert_eq!(std::fs::read_dir(node.root().join("cni"))?.count(), 0);
    node.crash().await?;
    the_one(&record, "DEL")?;
    Ok(())
}

/// Each pod on a wire of its own to the node: no bridge whose address would have to be another.
fn ptp(node: &Node, subnet: &str) -> Value {
    json!({
        "cniVersion": "1.0.0", "name": "pods",
        "plugins": [{
            "type": "ptp",
            "ipam": {
                "type": "host-local", "dataDir": node.cni().reservations, "ranges": [[{ "subnet": subnet }]],
                "routes": [{ "dst": "0.0.0.0/0" }],
            },
        }],
    })
}

async fn a_changed_configuration_is_for_new_pods(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let old = node.pod("old").port(18082, 8080).run().await?;
    ensure!(old.ip().await?.starts_with("10.244.7."));
    node.cni().write("10-pods", &ptp(&node, "10.244.8.0/24"))?;
    let new = node.pod("new").run().await?;
    ensure!(new.ip().await?.starts_with("10.244.8."), "{}", new.ip().await?);
    let main = new.container("main").idle().run().await?;
    assert_eq!(main.exec(["ping", "-c", "1", "-W", "5", "10.244.8.1"]).await?.exit_code, 0);
    // portmap is not in the new configuration; the old pod leaves by the one that it joined with.
    let rules = async || run("iptables-save", &[]).await;
    ensure!(rules().await?.contains("CNI-DN-"), "{}", rules().await?);
    old.stop().await?;
    ensure!(!rules().await?.contains("CNI-DN-"), "{}", rules().await?);
    assert_eq!(node.cni().reserved()?, [new.ip().await?]);
    Ok(())
}

async fn a_network_that_was_changed_is_told_after_a_restart(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let (whole, changed) = (node.pod("whole").run().await?, node.pod("changed").run().await?);
    let main = changed.container("main").idle().run().await?;
    let warning = async |pod: &Pod| -> Result<String> {
        Ok(pod.info().await?["networkWarning"].as_str().context("no networkWarning")?.to_owned())
    };
    assert_eq!(warning(&changed).await?, "");
    let netns = format!("/run/netns/hartpod-{}", changed.id);
    run("nsenter", &[&format!("--net={netns}"), "ip", "route", "delete", "default"]).await?;
    node.crash().await?;
    let told = eventually("the warning", async || warning(&changed).await, |text| !text.is_empty()).await?;
    ensure!(told.starts_with("check network `pods`: CNI CHECK of plugin `bridge`: "), "{told}");
    ensure!(node.log_tail(50).contains("the pod's network is not as it was made"), "{}", node.log_tail(50));
    // It is no reason to end the pod.
    ensure!(changed.is_ready().await?);
    assert_eq!(main.exec(["echo", "hi"]).await?.stdout, "hi\n");
    assert_eq!(warning(&whole).await?, "");
    Ok(())
}

async fn a_check_that_hangs_holds_nothing_up(lab: &Lab) -> Result<()> {
    let hang = "[ $CNI_COMMAND = CHECK ] && { sleep 41200; exit 0; }";
    let (node, record) = recorded(lab, "1.0.0", hang, "").await?;
    lab.registry().await?;
    node.client().pull(node.image()).await?;
    let mut pods = Vec::new();
    for name in ["a", "b", "c"] {
        pods.push(node.pod(name).run().await?);
    }
    let main = pods[0].container("main").idle().run().await?;
    node.crash().await?;
    let checks = async || {
        let all = process::all()?.into_iter();
        Ok(all.filter(|one| one.command.starts_with("sleep 41200")).count())
    };
    eventually("two checks at a time", checks, |count| *count == 2).await?;
    assert_eq!(main.exec(["echo", "hi"]).await?.stdout, "hi\n");
    // A stop does not wait for it, and no pod has CHECK and DEL at once.
    for pod in &pods {
        ensure!(pod.is_ready().await?);
        pod.stop().await?;
    }
    assert_eq!(of(&record, "DEL")?.len(), 3);
    eventually("the end of all checks", checks, |count| *count == 0).await?;
    Ok(())
}

/// Lines of a plugin that speaks 1.1.0.
const MODERN: &str = r#"[ $CNI_COMMAND = VERSION ] && { echo '{"cniVersion":"1.1.0","supportedVersions":["1.0.0","1.1.0"]}'; exit 0; }"#;

async fn garbage_is_collected_where_that_is_asked_for(lab: &Lab) -> Result<()> {
    let foreign = lab.dir().join("foreign");
    let settings = format!("[cni]\ngc = true\nforeign_caches = [{foreign:?}]\n");
    let (node, record) = recorded(lab, "1.1.0", MODERN, &settings).await?;
    let collected = async || of(&record, "GC");
    eventually("GC of an empty node", collected, |calls| calls.len() == 1).await?;
    let stays = node.pod("stays").run().await?;
    let goes = node.pod("goes").run().await?;
    goes.stop().await?;
    node.crash().await?;
    let calls = eventually("GC after a restart", collected, |calls| calls.len() == 2).await?;
    assert_eq!(calls[0].stdin["cni.dev/valid-attachments"], json!([]));
    let valid = json!([{ "containerID": stays.id, "ifname": "eth0" }]);
    assert_eq!(calls[1].stdin["cni.dev/valid-attachments"], valid);
    assert_eq!((&calls[1].stdin["name"], &calls[1].stdin["type"]), (&json!("fake"), &json!("front")));
    ensure!(stays.is_ready().await?);
    Ok(())
}

async fn garbage_of_a_network_shared_with_others_is_left(lab: &Lab) -> Result<()> {
    let foreign = lab.dir().join("foreign");
    std::fs::create_dir(&foreign)?;
    let entry = json!({ "kind": "cniCacheV1", "containerId": "f0", "networkName": "fake", "ifName": "eth0" });
    std::fs::write(foreign.join("fake-f0-eth0"), entry.to_string())?;
    let settings = format!("[cni]\ngc = true\nforeign_caches = [{foreign:?}]\n");
    let (node, record) = recorded(lab, "1.1.0", MODERN, &settings).await?;
    let log = async || Ok(node.log_tail(50));
    let refused = "network `fake` has 1 attachments of other runtimes";
    eventually("the refusal", log, |text| text.contains(refused)).await?;
    assert_eq!(of(&record, "GC")?.len(), 0);
    // Unless it is asked for, nobody even looks.
    std::fs::remove_dir_all(&foreign)?;
    let config = node.dir().join("config.toml");
    std::fs::write(&config, std::fs::read_to_string(&config)?.replace("gc = true\n", ""))?;
    node.crash().await?;
    node.pod("web").run().await?;
    assert_eq!(of(&record, "GC")?.len(), 0);
    Ok(())
}

async fn port_mappings_keep_address_and_protocol(lab: &Lab) -> Result<()> {
    let (node, record) = recorded(lab, "1.0.0", "", "").await?;
    let mapping = |protocol: cri::Protocol, container_port, host_port, host_ip: &str| cri::PortMapping {
        protocol: protocol.into(),
        container_port,
        host_port,
        host_ip: host_ip.into(),
    };
    let pod = node.pod("web").with(|config| {
        config.port_mappings = vec![
            mapping(cri::Protocol::Tcp, 80, 8080, "192.0.2.1"),
            mapping(cri::Protocol::Udp, 53, 8053, "2001:db8::1"),
            mapping(cri::Protocol::Sctp, 36412, 36412, ""),
            // The same port by another protocol is another port.
            mapping(cri::Protocol::Udp, 80, 8080, "192.0.2.1"),
            // Without a host port there is nothing to map.
            mapping(cri::Protocol::Tcp, 99, 0, ""),
        ];
    });
    let pod = pod.run().await?;
    let wanted = json!([
        { "HostPort": 8080, "ContainerPort": 80, "Protocol": "tcp", "HostIP": "192.0.2.1" },
        { "HostPort": 8053, "ContainerPort": 53, "Protocol": "udp", "HostIP": "2001:db8::1" },
        { "HostPort": 36412, "ContainerPort": 36412, "Protocol": "sctp", "HostIP": "" },
        { "HostPort": 8080, "ContainerPort": 80, "Protocol": "udp", "HostIP": "192.0.2.1" },
    ]);
    assert_eq!(the_one(&record, "ADD")?.stdin["runtimeConfig"]["portMappings"], wanted);
    assert_eq!(
        pod.info().await?["config"]["port_mappings"].as_array().map(Vec::len),
        Some(5),
        "all are told"
    );
    pod.stop().await?;
    assert_eq!(the_one(&record, "DEL")?.stdin["runtimeConfig"]["portMappings"], wanted);
    Ok(())
}

async fn a_pod_has_the_bandwidth_of_its_annotations(lab: &Lab) -> Result<()> {
    let builder = lab.node_builder()?.network(|cni| {
        let mut network = cni.bridge(&[SUBNET]);
        let plugins = network["plugins"].as_array_mut()?;
        plugins.push(json!({ "type": "bandwidth", "capabilities": { "bandwidth": true } }));
        Some(network)
    });
    lab.registry().await?;
    let node = lab.start(builder).await?;
    node.client().pull(node.image()).await?;
    let pod = node.pod("slow").with(|config| {
        config.annotations.insert("kubernetes.io/ingress-bandwidth".into(), "8M".into());
        config.annotations.insert("kubernetes.io/egress-bandwidth".into(), "4M".into());
    });
    let pod = pod.run().await?;
    // To the pod by the node's end of its wire, from the pod by an interface of the plugin's.
    let queues = run("tc", &["qdisc", "show"]).await?;
    let limits: Vec<&str> = queues.lines().filter(|line| line.contains(" tbf ")).collect();
    let has = |rate: &str| limits.iter().any(|line| line.contains(rate));
    ensure!(limits.len() == 2 && has("rate 8Mbit") && has("rate 4Mbit"), "{queues}");
    let main = pod.container("main").idle().run().await?;
    assert_eq!(main.exec(["ping", "-c", "1", "-W", "5", "10.244.7.1"]).await?.exit_code, 0);
    let free = node.pod("free").run().await?;
    let of_both = run("tc", &["qdisc", "show"]).await?;
    assert_eq!(of_both.matches(" tbf ").count(), 2, "a pod without annotations has no limit: {of_both}");
    pod.stop().await?;
    let left = run("tc", &["qdisc", "show"]).await?;
    ensure!(!left.contains(" tbf "), "{left}");
    free.stop().await
}

async fn a_bandwidth_that_is_none_is_refused(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let before = lab.look(&node)?;
    for (key, value) in [
        ("kubernetes.io/ingress-bandwidth", "fast"),
        ("kubernetes.io/egress-bandwidth", "-1M"),
        ("kubernetes.io/ingress-bandwidth", ""),
        ("kubernetes.io/egress-bandwidth", "999"),
        ("kubernetes.io/ingress-bandwidth", "2P"),
    ] {
        let pod = node.pod("web").with(|config| {
            config.annotations.insert(key.into(), value.into());
        });
        let status = pod.run().await.refused(value)?;
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
        let words = format!("annotation {key}: {value:?} is not a quantity of 1k to 1P bit/s");
        ensure!(status.message().contains(&words), "{status:?}");
    }
    hartpod_tests::world::must_return_to(&before, || lab.look(&node)).await
}

async fn a_host_port_of_a_pod_on_the_nodes_network_is_no_plugins(lab: &Lab) -> Result<()> {
    let (node, record) = recorded(lab, "1.0.0", "", "").await?;
    lab.registry().await?;
    node.client().pull(node.image()).await?;
    let pod = node.pod("agent").port(18083, 18083).host_network().run().await?;
    let main = pod.container("main").sh("exec nc -ll -p 18083 -e echo hello").run().await?;
    // Kubernetes has both ports the same there: the container has it itself.
    let answer = async || Ok(main.exec_within(Duration::from_secs(5), ["nc", "127.0.0.1", "18083"]).await?);
    eventually("an answer on the node's port", answer, |output| output.stdout == "hello\n").await?;
    let own = node_name()?;
    assert_eq!(main.sh("hostname; echo $HOSTNAME").await?, format!("{own}\n{own}\n"));
    pod.stop().await?;
    ensure!(cni::calls(&record)?.is_empty(), "{:#?}", cni::calls(&record)?);
    Ok(())
}

/// The host name of the test's node.
fn node_name() -> Result<String> {
    Ok(std::fs::read_to_string("/proc/sys/kernel/hostname")?.trim().to_owned())
}
