//! The network of pods: addresses, ports, what plugins are told, and nodes without a network.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hartpod_tests::cni::{self, CniDir, SUBNET, SUBNET6};
use hartpod_tests::registry::Http;
use hartpod_tests::{Lab, Need, Node, Refused, cri, eventually, tests};
use serde_json::{Value, json};
use tokio::process::Command;

tests![
    pods_reach_each_other_and_the_node,
    a_pod_has_lo_and_eth0,
    a_dual_stack_pod_has_two_addresses needs Need::Ipv6,
    an_address_is_given_back_at_stop,
    host_network_is_the_nodes_own needs Need::OfNode("namespaces"),
    a_host_port_is_reached_on_loopback_and_from_another_host,
    hosts_hostname_and_dns_are_the_pods,
    a_plugin_is_called_as_containerd_calls_it needs Need::OfNode("networks without interfaces"),
    del_gets_the_result_of_add needs Need::OfNode("networks without interfaces"),
    a_failed_add_is_undone,
    a_hanging_plugin_is_given_up,
    del_that_fails_is_tried_again needs Need::OfNode("networks without interfaces"),
    a_node_without_a_configuration_is_not_ready,
    a_node_without_a_plugin_refuses_pods,
    an_ill_configuration_is_told,
    a_configuration_that_appears_is_used,
    sysctls_of_the_pod_are_set,
];

async fn ip(args: &str) -> Result<()> {
    let output = Command::new("ip").args(args.split(' ')).output().await.context("run ip")?;
    ensure!(output.status.success(), "ip {args}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// A web server that answers `hello`.
const SERVER: &str = "mkdir -p /www; echo hello >/www/index.html; exec httpd -f -p 8080 -h /www";

async fn pods_reach_each_other_and_the_node(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let server = node.pod("server").run().await?;
    let web = server.container("web").sh(SERVER).run().await?;
    let client = node.pod("client").run().await?;
    let main = client.container("main").idle().run().await?;
    let url = format!("http://{}:8080/", server.ip().await?);
    let answer = async || Ok(main.exec_within(Duration::from_secs(5), ["wget", "-qO-", &url]).await?);
    eventually("an answer from the other pod", answer, |output| output.stdout == "hello\n").await?;
    let gateway = main.exec(["ping", "-c", "1", "-W", "5", "10.244.7.1"]).await?;
    assert_eq!(gateway.exit_code, 0, "{gateway:?}");
    // Containers of one pod share its network, its loopback included.
    let second = server.container("second").idle().run().await?;
    assert_eq!(second.sh("wget -qO- http://127.0.0.1:8080/").await?, "hello\n");
    drop(web);
    Ok(())
}

async fn a_pod_has_lo_and_eth0(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let main = pod.container("main").idle().run().await?;
    let links = main.sh("ip -o link | cut -d: -f2 | cut -d@ -f1").await?;
    assert_eq!(links.split_whitespace().collect::<Vec<_>>(), ["lo", "eth0"]);
    assert!(main.sh("ip -o link show lo").await?.contains("UP"));
    let address = pod.ip().await?;
    assert!(main.sh("ip -o -4 addr show eth0").await?.contains(&format!(" {address}/24 ")));
    assert!(node.cni().reserved()?.contains(&address), "{:?}", node.cni().reserved()?);
    Ok(())
}

async fn a_dual_stack_pod_has_two_addresses(lab: &Lab) -> Result<()> {
    let builder = lab.node_builder()?.network(|cni| Some(cni.bridge(&[SUBNET, SUBNET6])));
    lab.registry().await?;
    let node = lab.start(builder).await?;
    let pod = node.pod("web").run().await?;
    let network = pod.status().await?.network.context("no network status")?;
    assert!(network.ip.starts_with("10.244.7."), "{network:?}");
    let more: Vec<&str> = network.additional_ips.iter().map(|ip| ip.ip.as_str()).collect();
    assert!(matches!(more[..], [one] if one.starts_with("fd00:7::")), "{more:?}");
    node.crash().await?;
    assert_eq!(pod.status().await?.network, Some(network));
    Ok(())
}

async fn an_address_is_given_back_at_stop(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    assert_eq!(node.cni().reserved()?, [pod.ip().await?]);
    pod.stop().await?;
    assert_eq!(node.cni().reserved()?, Vec::<String>::new());
    assert!(!Path::new(&format!("/run/netns/hartpod-{}", pod.id)).exists());
    Ok(())
}

async fn host_network_is_the_nodes_own(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").host_network().run().await?;
    let main = pod.container("main").idle().run().await?;
    let own = std::fs::read_link("/proc/self/ns/net")?;
    assert_eq!(main.sh("readlink /proc/self/ns/net").await?.trim(), own.display().to_string());
    assert!(node.cni().reserved()?.is_empty());
    assert_eq!(pod.ip().await?, "", "the kubelet knows the node's addresses itself");
    let options = pod.status().await?.linux.and_then(|linux| linux.namespaces).and_then(|all| all.options);
    assert_eq!(options.context("no options")?.network(), cri::NamespaceMode::Node);
    Ok(())
}

async fn a_host_port_is_reached_on_loopback_and_from_another_host(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    // Another host: a network namespace on a wire to this one.
    ip("netns add other").await?;
    ip("link add wire type veth peer name wire0 netns other").await?;
    ip("addr add 192.0.2.1/24 dev wire").await?;
    ip("link set wire up").await?;
    ip("-n other addr add 192.0.2.2/24 dev wire0").await?;
    ip("-n other link set wire0 up").await?;

    let pod = node.pod("server").port(18080, 8080).run().await?;
    pod.container("web").sh(SERVER).run().await?;
    // In bash, whose /dev/tcp needs no resolver: a static program's may crash on a node's name service switch.
    let get = "exec 3<>/dev/tcp/192.0.2.1/18080 && printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3 && cat <&3";
    let remote = async || {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", "other", "timeout", "5", "bash", "-c", get]);
        let output = command.output().await.context("run bash")?;
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    eventually("an answer to the other host", remote, |text| text.ends_with("hello\n")).await?;
    let here = Http::new("127.0.0.1:18080");
    let local = async || Ok(here.get("/").await.unwrap_or_default());
    eventually("an answer on loopback", local, |body| body == b"hello\n").await?;
    pod.stop().await?;
    let chains = Command::new("iptables-save").output().await?.stdout;
    assert!(!String::from_utf8_lossy(&chains).contains("CNI-DN-"), "{}", String::from_utf8_lossy(&chains));
    ip("netns delete other").await?;
    // `ip netns` makes the folder a mount of its own.
    nix::mount::umount("/run/netns").context("umount /run/netns")?;
    let gone = async || Ok(std::fs::read_to_string("/proc/self/net/dev")?);
    eventually("the wire to be gone", gone, |text| !text.contains("wire")).await?;
    Ok(())
}

async fn hosts_hostname_and_dns_are_the_pods(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").with(|config| {
        config.hostname = "web-0".into();
        config.dns_config = Some(cri::DnsConfig {
            servers: vec!["10.96.0.10".into(), "10.96.0.11".into()],
            searches: vec!["test.svc.cluster.local".into(), "svc.cluster.local".into()],
            options: vec!["ndots:5".into()],
        });
    });
    let pod = pod.run().await?;
    let main = pod.container("main").idle().run().await?;
    assert_eq!(main.sh("hostname; cat /etc/hostname").await?, "web-0\nweb-0\n");
    let resolv = main.sh("cat /etc/resolv.conf").await?;
    let words: Vec<&str> = resolv.split_whitespace().collect();
    let wanted = "search test.svc.cluster.local svc.cluster.local nameserver 10.96.0.10 nameserver 10.96.0.11 options ndots:5";
    let mut wanted: Vec<&str> = wanted.split(' ').collect();
    let mut words = words;
    wanted.sort_unstable();
    words.sort_unstable();
    assert_eq!(words, wanted);
    assert!(main.sh("cat /etc/hosts").await?.contains("localhost"));
    assert_eq!(main.sh("echo $HOSTNAME").await?, "web-0\n");
    Ok(())
}

/// A network of one fake plugin that writes down its calls and gives `result` to ADD.
fn recording(cni: &CniDir, record: &Path, version: &str) -> Option<Value> {
    let result = json!({
        "cniVersion": version,
        "interfaces": [{ "name": "fake0" }, { "name": "eth0", "mac": "00:11:22:33:44:55", "sandbox": "/run/netns/x" }],
        "ips": [{ "address": "192.0.2.77/24", "gateway": "192.0.2.1", "interface": 1 }],
        "dns": {},
    });
    cni.install_recorder("recorder", record, &result).ok()?;
    Some(json!({
        "cniVersion": version, "name": "fake",
        "plugins": [{
            "type": "recorder", "someKey": { "kept": [1, 2.5, "x"] },
            "capabilities": { "portMappings": true, "bandwidth": true, "dns": true, "io.kubernetes.cri.pod-annotations": true },
        }],
    }))
}

/// A pod with everything that a plugin may be told.
fn talkative(node: &Node) -> hartpod_tests::PodBuilder {
    node.pod("web").port(8081, 81).with(|config| {
        config.port_mappings.push(cri::PortMapping {
            protocol: cri::Protocol::Udp.into(),
            container_port: 53,
            host_port: 5353,
            host_ip: "127.0.0.1".into(),
        });
        // Without a host port there is nothing to map.
        config.port_mappings.push(cri::PortMapping { container_port: 99, ..Default::default() });
        config.annotations = BTreeMap::from([
            ("kubernetes.io/ingress-bandwidth".to_owned(), "1M".to_owned()),
            ("kubernetes.io/egress-bandwidth".to_owned(), "2M".to_owned()),
        ])
        .into_iter()
        .collect();
        config.dns_config = Some(cri::DnsConfig {
            servers: vec!["10.96.0.10".into()],
            searches: vec!["svc.cluster.local".into()],
            options: vec!["ndots:5".into()],
        });
    })
}

/// The same with all keys in lower case and without empty values.
fn lower_keys(value: &Value) -> Value {
    match value {
        Value::Object(object) => {
            let entries = object.iter().filter(|(_, value)| **value != json!(""));
            Value::Object(entries.map(|(key, value)| (key.to_lowercase(), lower_keys(value))).collect())
        }
        Value::Array(values) => Value::Array(values.iter().map(lower_keys).collect()),
        other => other.clone(),
    }
}

async fn a_plugin_is_called_as_containerd_calls_it(lab: &Lab) -> Result<()> {
    let record = lab.dir().join("calls");
    let builder = lab.node_builder()?.network(|cni| recording(cni, &record, "1.0.0"));
    let node = lab.start(builder).await?;
    let pod = talkative(&node).run().await?;
    assert_eq!(pod.ip().await?, "192.0.2.77");
    let calls = cni::calls(&record)?;
    let adds: Vec<_> = calls.iter().filter(|call| call.command == "ADD").collect();
    let [add] = adds[..] else { anyhow::bail!("one ADD: {calls:#?}") };
    assert_eq!(add.variable("CNI_CONTAINERID"), pod.id);
    assert_eq!(add.variable("CNI_IFNAME"), "eth0");
    assert!(add.variable("CNI_NETNS").contains("/netns/"), "{add:#?}");
    assert!(add.variable("CNI_PATH").starts_with(&node.cni().bin_dirs[0].display().to_string()), "{add:#?}");
    let mut args: Vec<&str> = add.variable("CNI_ARGS").split(';').collect();
    args.sort_unstable();
    let uid = &pod.config.metadata.as_ref().context("metadata")?.uid;
    let mut wanted = vec![
        "IgnoreUnknown=1".to_owned(),
        "K8S_POD_NAMESPACE=test".to_owned(),
        "K8S_POD_NAME=web".to_owned(),
        format!("K8S_POD_UID={uid}"),
        format!("K8S_POD_INFRA_CONTAINER_ID={}", pod.id),
    ];
    wanted.sort_unstable();
    assert_eq!(args, wanted);

    assert_eq!(add.stdin["cniVersion"], "1.0.0");
    assert_eq!((&add.stdin["name"], &add.stdin["type"]), (&json!("fake"), &json!("recorder")));
    assert_eq!(
        add.stdin["someKey"],
        json!({ "kept": [1, 2.5, "x"] }),
        "keys that are not ours are passed on"
    );
    assert_eq!(add.stdin.get("prevResult"), None, "the first plugin has no previous result");
    // Containerd writes these keys as Go names them, the conventions document in lower camel case; plugins take both.
    let runtime = lower_keys(&add.stdin["runtimeConfig"]);
    let ports = json!([
        { "hostport": 8081, "containerport": 81, "protocol": "tcp" },
        { "hostport": 5353, "containerport": 53, "protocol": "udp", "hostip": "127.0.0.1" },
    ]);
    assert_eq!(runtime["portmappings"], ports);
    let bandwidth = &runtime["bandwidth"];
    assert_eq!((&bandwidth["ingressrate"], &bandwidth["egressrate"]), (&json!(1_000_000), &json!(2_000_000)));
    let dns = json!({ "servers": ["10.96.0.10"], "searches": ["svc.cluster.local"], "options": ["ndots:5"] });
    assert_eq!(runtime["dns"], dns);
    assert_eq!(runtime["io.kubernetes.cri.pod-annotations"]["kubernetes.io/ingress-bandwidth"], "1M");
    assert_eq!(runtime.get("aliases"), None, "a capability that the plugin does not have is not passed");
    Ok(())
}

async fn del_gets_the_result_of_add(lab: &Lab) -> Result<()> {
    let record = lab.dir().join("calls");
    let builder = lab.node_builder()?.network(|cni| recording(cni, &record, "0.4.0"));
    let node = lab.start(builder).await?;
    let pod = talkative(&node).run().await?;
    // Even after a restart and with another configuration in place.
    node.cni().write("00-other", &node.cni().bridge(&[SUBNET]))?;
    node.crash().await?;
    pod.stop().await?;
    let calls = cni::calls(&record)?;
    let dels: Vec<_> = calls.iter().filter(|call| call.command == "DEL").collect();
    let [del] = dels[..] else { anyhow::bail!("one DEL: {calls:#?}") };
    assert_eq!((del.variable("CNI_CONTAINERID"), del.variable("CNI_IFNAME")), (pod.id.as_str(), "eth0"));
    assert_eq!(del.stdin["prevResult"]["ips"][0]["address"], "192.0.2.77/24");
    assert_eq!(del.stdin["cniVersion"], "0.4.0");
    assert_eq!(lower_keys(&del.stdin["runtimeConfig"])["portmappings"][0]["hostport"], 8081);
    pod.stop().await?;
    pod.remove().await?;
    assert_eq!(cni::calls(&record)?.len(), calls.len(), "no second DEL after one that succeeded");
    Ok(())
}

async fn a_failed_add_is_undone(lab: &Lab) -> Result<()> {
    let record = lab.dir().join("calls");
    let builder = lab.node_builder()?.network(|cni| {
        cni.install_recorder("recorder", &record, &json!({ "cniVersion": "1.0.0" })).ok()?;
        let no = r#"#!/bin/sh
[ "$CNI_COMMAND" = ADD ] || exit 0
echo '{"cniVersion":"1.0.0","code":117,"msg":"out of luck","details":"the third of the month"}'
exit 1
"#;
        cni.install_plugin("unlucky", no).ok()?;
        Some(json!({ "cniVersion": "1.0.0", "name": "fake", "plugins": [{ "type": "recorder" }, { "type": "unlucky" }] }))
    });
    let node = lab.start(builder).await?;
    let before = lab.look(&node)?;
    let status = node.pod("web").run().await.refused("a pod whose network fails")?;
    assert!(status.message().contains("out of luck"), "{status:?}");
    assert!(status.message().contains("unlucky"), "which plugin: {status:?}");
    let commands: Vec<String> =
        cni::calls(&record)?.into_iter().map(|call| call.command).filter(|c| c != "STATUS").collect();
    assert_eq!(commands, ["ADD", "DEL"]);
    assert!(node.client().pods().await?.is_empty());
    hartpod_tests::world::must_return_to(&before, || lab.look(&node)).await
}

async fn a_hanging_plugin_is_given_up(lab: &Lab) -> Result<()> {
    let builder = lab.node_builder()?.network(|cni| {
        cni.install_plugin(
            "stuck",
            "#!/bin/sh\n[ \"$CNI_COMMAND\" = ADD ] || exit 0\nsleep 41100 &\nsleep 41101\n",
        )
        .ok()?;
        Some(json!({ "cniVersion": "1.0.0", "name": "fake", "plugins": [{ "type": "stuck" }] }))
    });
    let node = lab.start(builder.plugin_timeout(Duration::from_secs(20))).await?;
    let status = node.pod("web").run().await.refused("a pod whose plugin hangs")?;
    assert!(status.message().contains("stuck"), "{status:?}");
    let left = async || {
        let all = hartpod_tests::process::all()?.into_iter();
        Ok(all.filter(|one| one.command.starts_with("sleep 4110")).collect())
    };
    eventually("the end of the plugin and its child", left, Vec::is_empty).await?;
    Ok(())
}

async fn del_that_fails_is_tried_again(lab: &Lab) -> Result<()> {
    let flag = lab.dir().join("fail");
    let builder = lab.node_builder()?.network(|cni| {
        let script = format!(
            "#!/bin/sh\nif [ $CNI_COMMAND = DEL ] && [ -e '{}' ]; then\n\
             echo '{{\"cniVersion\":\"1.0.0\",\"code\":11,\"msg\":\"try later\"}}'; exit 1; fi\n\
             [ $CNI_COMMAND = ADD ] && echo '{{\"cniVersion\":\"1.0.0\",\"ips\":[{{\"address\":\"192.0.2.9/24\"}}]}}'; exit 0\n",
            flag.display()
        );
        cni.install_plugin("moody", &script).ok()?;
        Some(json!({ "cniVersion": "1.0.0", "name": "fake", "plugins": [{ "type": "moody" }] }))
    });
    let node = lab.start(builder).await?;
    let pod = node.pod("web").run().await?;
    std::fs::write(&flag, "")?;
    let stop = cri::StopPodSandboxRequest { pod_sandbox_id: pod.id.clone() };
    let status = node.client().stop_pod_sandbox(stop).await.refused("a stop whose DEL fails")?;
    assert!(status.message().contains("try later"), "{status:?}");
    std::fs::remove_file(&flag)?;
    pod.stop().await?;
    pod.remove().await?;
    Ok(())
}

/// What Status says about the network.
async fn network_condition(node: &Node) -> Result<cri::RuntimeCondition> {
    let status = node.client().status(cri::StatusRequest::default()).await?.status.context("no status")?;
    let network = status.conditions.into_iter().find(|condition| condition.r#type == "NetworkReady");
    network.context("no condition NetworkReady")
}

async fn a_node_without_a_configuration_is_not_ready(lab: &Lab) -> Result<()> {
    let node = lab.start(lab.node_builder()?.network(|_| None)).await?;
    let condition = network_condition(&node).await?;
    assert!(!condition.status);
    assert!(!condition.reason.is_empty(), "{condition:?}");
    let dir = node.cni().conf_dir.display().to_string();
    assert!(condition.message.contains(&dir), "which folder: {condition:?}");
    let before = lab.look(&node)?;
    let status = node.pod("web").run().await.refused("a pod on a node without a network")?;
    assert!(status.message().contains(&dir), "{status:?}");
    hartpod_tests::world::must_return_to(&before, || lab.look(&node)).await?;
    // Pods on the host's network need none: the network's own pods start that way.
    node.pod("agent").host_network().run().await?;
    Ok(())
}

async fn a_node_without_a_plugin_refuses_pods(lab: &Lab) -> Result<()> {
    let builder = lab.node_builder()?.network(|_| {
        Some(json!({ "cniVersion": "1.0.0", "name": "fake", "plugins": [{ "type": "no-such-plugin" }] }))
    });
    let node = lab.start(builder).await?;
    let condition = network_condition(&node).await?;
    assert!(!condition.status, "{condition:?}");
    assert!(condition.message.contains("no-such-plugin"), "{condition:?}");
    let before = lab.look(&node)?;
    let status = node.pod("web").run().await.refused("a pod without its plugin")?;
    assert!(status.message().contains("no-such-plugin"), "{status:?}");
    hartpod_tests::world::must_return_to(&before, || lab.look(&node)).await
}

async fn an_ill_configuration_is_told(lab: &Lab) -> Result<()> {
    let node = lab.start(lab.node_builder()?.network(|_| None)).await?;
    for (name, text) in [
        ("no JSON", "{ nope"),
        ("no plugins", r#"{"cniVersion":"1.0.0","name":"x","plugins":[]}"#),
        ("nothing", ""),
    ] {
        std::fs::write(node.cni().conf_dir.join("10-ill.conflist"), text)?;
        let condition = network_condition(&node).await?;
        assert!(!condition.status, "{name}: {condition:?}");
        assert!(condition.message.contains("10-ill.conflist"), "{name}: {condition:?}");
    }
    let unknown = json!({ "cniVersion": "99.0.0", "name": "x", "plugins": [{ "type": "bridge" }] });
    std::fs::write(node.cni().conf_dir.join("10-ill.conflist"), unknown.to_string())?;
    let status = node.pod("web").run().await.refused("a pod of an unknown CNI version")?;
    assert!(status.message().contains("99.0.0"), "{status:?}");
    Ok(())
}

async fn a_configuration_that_appears_is_used(lab: &Lab) -> Result<()> {
    let node = lab.start(lab.node_builder()?.network(|_| None)).await?;
    assert!(!network_condition(&node).await?.status);
    node.cni().write("10-pods", &node.cni().bridge(&[SUBNET]))?;
    let ready = async || network_condition(&node).await;
    eventually("the network to be ready", ready, |condition| condition.status).await?;
    let pod = node.pod("web").run().await?;
    assert!(pod.ip().await?.starts_with("10.244.7."));
    node.cni().clear()?;
    let gone = async || network_condition(&node).await;
    eventually("the network not to be ready", gone, |condition| !condition.status).await?;
    pod.stop().await
}

async fn sysctls_of_the_pod_are_set(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").with(|config| {
        let linux = config.linux.get_or_insert_default();
        linux.sysctls.insert("net.ipv4.ip_unprivileged_port_start".into(), "80".into());
        linux.sysctls.insert("kernel.shm_rmid_forced".into(), "1".into());
    });
    let pod = pod.run().await?;
    let main = pod.container("main").idle().run().await?;
    let seen =
        main.sh("cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced").await?;
    assert_eq!(seen, "80\n1\n");
    if pod.is_guest() {
        // All are its own.
        return Ok(());
    }
    // Not one of a namespace: it would be the node's.
    let node_wide = node.pod("greedy").with(|config| {
        config.linux.get_or_insert_default().sysctls.insert("vm.swappiness".into(), "1".into());
    });
    let status = node_wide.run().await.refused("a pod that sets the node's swappiness")?;
    assert!(status.message().contains("vm.swappiness"), "{status:?}");
    Ok(())
}
