//! Exec, Attach and PortForward: what a client of the streaming server sees. `agent/streaming` tests the transports; here it is the way to the pod.

use std::time::Duration;

use anyhow::{Context, Result};
use hartpod_tests::streaming::{Channel, Exec, Forward, Protocol, Streams, upgrade};
use hartpod_tests::{Lab, Refused, cri, eventually, tests};
use tonic::Code;

tests![
    a_command_talks_to_its_client_and_its_exit_code_arrives,
    a_url_is_good_once,
    a_command_ends_with_its_client,
    an_attached_client_gets_what_the_container_says_and_the_log_has_it_too,
    a_port_of_the_pods_loopback_is_reached,
    what_cannot_be_opened_gets_no_url,
];

/// Both ways to carry a command's streams.
pub(crate) const COMMANDS: [Protocol; 2] = [Protocol::SPDY, Protocol::WEBSOCKET];
/// All ways to carry a port's.
pub(crate) const PORTS: [Protocol; 3] =
    [Protocol::SPDY_PORTS, Protocol::TUNNEL_PORTS, Protocol::WEBSOCKET_PORTS];

/// `kubectl exec -i`.
pub(crate) fn exec(container: &str, script: &str) -> cri::ExecRequest {
    cri::ExecRequest {
        container_id: container.to_owned(),
        cmd: ["sh", "-c", script].map(str::to_owned).to_vec(),
        stdin: true,
        stdout: true,
        stderr: true,
        ..Default::default()
    }
}

/// `kubectl attach -i`.
pub(crate) fn attachment(container: &str) -> cri::AttachRequest {
    cri::AttachRequest {
        container_id: container.to_owned(),
        stdin: true,
        stdout: true,
        stderr: true,
        ..Default::default()
    }
}

async fn a_command_talks_to_its_client_and_its_exit_code_arrives(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let main = node.pod("web").run().await?.container("main").idle().run().await?;
    for protocol in COMMANDS {
        let mut client = Exec::start(node.client(), exec(&main.id, "cat; exit 7"), protocol).await?;
        client.write(b"hello ").await?;
        client.write(b"there\n").await?;
        client.end_stdin().await?;
        let done = client.finish().await?;
        assert_eq!((&*done.text(), done.exit_code()?), ("hello there\n", 7), "{protocol:?}");
    }
    Ok(())
}

async fn a_url_is_good_once(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let main = node.pod("web").run().await?.container("main").idle().run().await?;
    let request = cri::ExecRequest { stdin: false, ..exec(&main.id, "echo hi") };
    for protocol in COMMANDS {
        let streams = Streams::from(&request);
        let url = node.client().runtime().exec(request.clone()).await?.into_inner().url;
        let done = Exec::open(&url, protocol, streams).await?.finish().await?;
        assert_eq!((&*done.text(), done.exit_code()?), ("hi\n", 0), "{protocol:?}");
        assert_eq!(upgrade(&url, protocol).await?.status, 404, "a used URL over {protocol:?}");
    }
    Ok(())
}

async fn a_command_ends_with_its_client(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let main = node.pod("web").run().await?.container("main").idle().run().await?;
    for protocol in COMMANDS {
        let request = exec(&main.id, "echo begun; sleep 98765 & wait");
        let mut client = Exec::start(node.client(), request, protocol).await?;
        let first = client.read().await?.context("it ended")?;
        assert_eq!((first.0, &*first.1), (Channel::Stdout, &b"begun\n"[..]), "{protocol:?}");
        let sleeps = async || {
            Ok(main.sh("ps | grep 'sleep 98765' | grep -cv 'sh -c\\|grep' || true").await?.trim().to_owned())
        };
        eventually("the command to run", sleeps, |count| count == "1").await?;
        drop(client);
        eventually("the command to be gone", sleeps, |count| count == "0").await?;
    }
    Ok(())
}

async fn an_attached_client_gets_what_the_container_says_and_the_log_has_it_too(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let builder = node.pod("web").run().await?.container("main");
    let builder =
        builder.sh("while read line; do echo got $line; done; exit 0").with(|config| config.stdin = true);
    let main = builder.run().await?;
    let request = attachment(&main.id);
    let mut clients = Vec::new();
    for (number, protocol) in COMMANDS.into_iter().enumerate() {
        let mut client = Exec::attach(node.client(), request.clone(), protocol).await?;
        // It is attached once it hears what it says.
        client.write(format!("client {number}\n").as_bytes()).await?;
        hears(&mut client, &format!("got client {number}\n")).await?;
        clients.push(client);
    }
    clients[0].write(b"one\n").await?;
    for client in &mut clients {
        hears(client, "got one\n").await?;
    }
    main.logged("got one").await?;
    // Clients that go harm nobody.
    drop(clients);
    tokio::time::timeout(Duration::from_secs(60), main.exec(["true"])).await??;
    assert_eq!(main.state().await?, cri::ContainerState::ContainerRunning);
    Ok(())
}

/// Reads stdout until it has said a text.
pub(crate) async fn hears(client: &mut Exec, text: &str) -> Result<()> {
    let mut said = String::new();
    while !said.contains(text) {
        let next = client.read().await?;
        let (channel, bytes) = next.with_context(|| format!("the session ended after {said:?}"))?;
        assert_eq!(channel, Channel::Stdout);
        said.push_str(&String::from_utf8_lossy(&bytes));
    }
    Ok(())
}

async fn a_port_of_the_pods_loopback_is_reached(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let script = "mkdir /www; echo from the pod >/www/page; exec httpd -f -p 127.0.0.1:8080 -h /www";
    pod.container("main").sh(script).run().await?;
    for protocol in PORTS {
        let ask = async || {
            let mut forward = Forward::start(node.client(), &pod.id, &[8080], protocol).await?;
            let mut connection = forward.connect(8080).await?;
            connection.write(b"GET /page HTTP/1.0\r\n\r\n").await?;
            let mut said = String::new();
            // Over WebSocket nothing tells the connection's end.
            while !said.ends_with("from the pod\n") {
                let Some(bytes) = connection.read().await else { break };
                said.push_str(&String::from_utf8_lossy(&bytes));
            }
            Ok(said)
        };
        eventually("the server to answer", ask, |said| said.ends_with("from the pod\n")).await?;
    }
    Ok(())
}

async fn what_cannot_be_opened_gets_no_url(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let main = pod.container("main").idle().run().await?;
    let mut runtime = node.client().runtime();
    let good = exec(&main.id, "true");
    for (request, code) in [
        (cri::ExecRequest { container_id: "no-such".into(), ..good.clone() }, Code::NotFound),
        (cri::ExecRequest { cmd: Vec::new(), ..good.clone() }, Code::InvalidArgument),
        (cri::ExecRequest { tty: true, ..good.clone() }, Code::InvalidArgument),
        (
            cri::ExecRequest { stdin: false, stdout: false, stderr: false, ..good.clone() },
            Code::InvalidArgument,
        ),
    ] {
        let status = runtime.exec(request).await.refused("an exec that cannot be")?;
        assert_eq!(status.code(), code, "{status:?}");
    }
    for port in [0, 65536, -1] {
        let request = cri::PortForwardRequest { pod_sandbox_id: pod.id.clone(), port: vec![port] };
        let status = runtime.port_forward(request).await.refused("a port that is none")?;
        assert_eq!(status.code(), Code::InvalidArgument, "{status:?}");
    }
    main.stop(Duration::ZERO).await?;
    let status = runtime.exec(good).await.refused("an exec in a container that has ended")?;
    assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
    pod.stop().await?;
    let request = cri::PortForwardRequest { pod_sandbox_id: pod.id.clone(), port: vec![80] };
    let status = runtime.port_forward(request).await.refused("a port of a pod that is stopped")?;
    assert_eq!(status.code(), Code::FailedPrecondition, "{status:?}");
    Ok(())
}
