//! Pods of a network that has IPv6 addresses alone.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hartpod_tests::cni::SUBNET6;
use hartpod_tests::streaming::{Forward, Protocol};
use hartpod_tests::{Container, Lab, Need, Node, eventually, tests};
use tokio::process::Command;

tests![
    a_pod_has_an_address_of_the_sixth_version_alone needs Need::Ipv6,
    pods_reach_each_other_by_the_sixth_version needs Need::Ipv6,
    a_port_is_forwarded_where_there_is_no_fourth_version needs Need::Ipv6,
    a_host_port_of_the_sixth_version_is_reached_from_another_host needs Need::Ipv6,
];

async fn node(lab: &Lab) -> Result<Node> {
    let builder = lab.node_builder()?.network(|cni| Some(cni.bridge(&[SUBNET6])));
    lab.registry().await?;
    let node = lab.start(builder).await?;
    node.client().pull(node.image()).await.context("pull the test image")?;
    Ok(node)
}

/// A web server on all addresses that answers `hello`.
const SERVER: &str = "mkdir -p /www; echo hello >/www/index.html; exec httpd -f -p [::]:8080 -h /www";

async fn a_pod_has_an_address_of_the_sixth_version_alone(lab: &Lab) -> Result<()> {
    let node = node(lab).await?;
    let pod = node.pod("web").with(|config| config.hostname = "web-6".into()).run().await?;
    let network = pod.status().await?.network.context("no network status")?;
    ensure!(network.ip.starts_with("fd00:7::"), "{network:?}");
    ensure!(network.additional_ips.is_empty(), "{network:?}");
    assert_eq!(node.cni().reserved()?, std::slice::from_ref(&network.ip));
    let main = pod.container("main").idle().run().await?;
    let seen = main.sh("ip -o addr show eth0 scope global").await?;
    ensure!(seen.contains(&format!("inet6 {}/64 ", network.ip)) && !seen.contains("inet "), "{seen}");
    let hosts = main.sh("cat /etc/hosts").await?;
    let own = |line: &str| line.split_whitespace().collect::<Vec<_>>() == [network.ip.as_str(), "web-6"];
    ensure!(hosts.lines().any(own), "{hosts}");
    assert_eq!(main.exec(["ping", "-c", "1", "-W", "5", "web-6"]).await?.exit_code, 0);
    // The same after a restart of the daemon, and nothing is kept after the pod.
    node.crash().await?;
    assert_eq!(pod.status().await?.network, Some(network));
    pod.stop().await?;
    assert_eq!(node.cni().reserved()?, Vec::<String>::new());
    Ok(())
}

async fn answers(from: &Container, url: &str) -> Result<()> {
    let get = async || Ok(from.exec_within(Duration::from_secs(5), ["wget", "-qO-", url]).await?);
    eventually("an answer", get, |output| output.stdout == "hello\n").await?;
    Ok(())
}

async fn pods_reach_each_other_by_the_sixth_version(lab: &Lab) -> Result<()> {
    let node = node(lab).await?;
    let server = node.pod("server").run().await?;
    server.container("web").sh(SERVER).run().await?;
    let client = node.pod("client").run().await?;
    let main = client.container("main").idle().run().await?;
    answers(&main, &format!("http://[{}]:8080/", server.ip().await?)).await?;
    assert_eq!(main.exec(["ping", "-c", "1", "-W", "5", "fd00:7::1"]).await?.exit_code, 0, "the node");
    Ok(())
}

async fn a_port_is_forwarded_where_there_is_no_fourth_version(lab: &Lab) -> Result<()> {
    let node = node(lab).await?;
    let pod = node.pod("server").run().await?;
    let web = pod.container("web").sh(&SERVER.replace("[::]", "[::1]")).run().await?;
    answers(&web, "http://[::1]:8080/").await?;
    let mut forward = Forward::start(node.client(), &pod.id, &[8080], Protocol::SPDY_PORTS).await?;
    let mut connection = forward.connect(8080).await?;
    connection.write(b"GET / HTTP/1.0\r\n\r\n").await?;
    let mut said = String::new();
    while !said.ends_with("hello\n") {
        let bytes = connection.read().await.with_context(|| format!("ended: {said:?}"))?;
        said.push_str(&String::from_utf8_lossy(&bytes));
    }
    Ok(())
}

async fn ip(args: &str) -> Result<()> {
    let output = Command::new("ip").args(args.split(' ')).output().await.context("run ip")?;
    ensure!(output.status.success(), "ip {args}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

async fn a_host_port_of_the_sixth_version_is_reached_from_another_host(lab: &Lab) -> Result<()> {
    let node = node(lab).await?;
    ip("netns add other").await?;
    ip("link add wire type veth peer name wire0 netns other").await?;
    // Without waiting for somebody else to have the same address.
    ip("addr add 2001:db8::1/64 dev wire nodad").await?;
    ip("link set wire up").await?;
    ip("-n other addr add 2001:db8::2/64 dev wire0 nodad").await?;
    ip("-n other link set wire0 up").await?;

    let pod = node.pod("server").port(18084, 8080).run().await?;
    pod.container("web").sh(SERVER).run().await?;
    let get = "exec 3<>/dev/tcp/2001:db8::1/18084 && printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3 && cat <&3";
    let remote = async || {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", "other", "timeout", "5", "bash", "-c", get]);
        let output = command.output().await.context("run bash")?;
        Ok(String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    };
    eventually("an answer to the other host", remote, |text| text.ends_with("hello\n")).await?;
    pod.stop().await?;
    let chains = Command::new("ip6tables-save").output().await?.stdout;
    ensure!(!String::from_utf8_lossy(&chains).contains("CNI-DN-"), "{}", String::from_utf8_lossy(&chains));
    ip("netns delete other").await?;
    // `ip netns` makes the folder a mount of its own.
    nix::mount::umount("/run/netns").context("umount /run/netns")?;
    let gone = async || Ok(std::fs::read_to_string("/proc/self/net/dev")?);
    eventually("the wire to be gone", gone, |text| !text.contains("wire")).await?;
    Ok(())
}
