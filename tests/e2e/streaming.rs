//! Exec, Attach and PortForward: what a client of the streaming server sees. `agent/streaming` tests the transports; here it is the way to the pod.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use hartpod_tests::{Lab, Refused, cri, eventually, tests};
use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic::Code;

tests![
    a_command_talks_to_its_client_and_its_exit_code_arrives,
    a_url_is_good_once,
    a_command_ends_with_its_client,
    an_attached_client_gets_what_the_container_says_and_the_log_has_it_too,
    a_port_of_the_pods_loopback_is_reached,
    what_cannot_be_opened_gets_no_url,
];

/// Channels of the WebSocket protocols (k8s.io/apimachinery/pkg/util/remotecommand).
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const ERROR: u8 = 3;
const CLOSE: u8 = 255;

/// A WebSocket client that knows just enough: binary messages in one frame (RFC 6455 section 5.2).
struct WebSocket(TcpStream);

/// Asks for an upgrade; the first line of the answer with the connection.
async fn upgrade(url: &str, protocol: &str) -> Result<(String, TcpStream)> {
    let rest = url.strip_prefix("http://").with_context(|| format!("no http URL: {url}"))?;
    let (host, path) = rest.split_once('/').with_context(|| format!("no path: {url}"))?;
    let mut stream = TcpStream::connect(host).await?;
    let request = format!(
        "GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: {protocol}\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.context("read the answer's head")?);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    Ok((head.lines().next().unwrap_or_default().to_owned(), stream))
}

impl WebSocket {
    async fn open(url: &str, protocol: &str) -> Result<Self> {
        let (line, stream) = upgrade(url, protocol).await?;
        ensure!(line.contains(" 101 "), "{line}");
        Ok(Self(stream))
    }

    async fn send(&mut self, channel: u8, bytes: &[u8]) -> Result<()> {
        ensure!(bytes.len() < 125, "a longer length is not written here");
        // Clients mask; with zeros that changes nothing.
        let mut frame = vec![0x82, 0x80 | u8::try_from(bytes.len() + 1)?, 0, 0, 0, 0, channel];
        frame.extend(bytes);
        self.0.write_all(&frame).await.context("send a frame")
    }

    /// The next message of a channel; none once the server is done.
    async fn receive(&mut self) -> Result<Option<(u8, Vec<u8>)>> {
        loop {
            let Ok(first) = self.0.read_u8().await else { return Ok(None) };
            let length = match self.0.read_u8().await? {
                126 => u64::from(self.0.read_u16().await?),
                127 => self.0.read_u64().await?,
                short => u64::from(short),
            };
            let mut payload = vec![0; usize::try_from(length)?];
            self.0.read_exact(&mut payload).await?;
            match (first & 0x0f, payload.split_first()) {
                (0 | 2, Some((channel, bytes))) => return Ok(Some((*channel, bytes.to_vec()))),
                (8, _) => return Ok(None),
                (0 | 2 | 9 | 10, _) => {}
                (code, _) => bail!("a frame of opcode {code}"),
            }
        }
    }

    /// Reads to the end: what came on stdout, and the status.
    async fn finish(mut self) -> Result<(String, Value)> {
        let (mut stdout, mut status) = (Vec::new(), Vec::new());
        while let Some((channel, bytes)) = self.receive().await? {
            match channel {
                STDOUT => stdout.extend(bytes),
                ERROR => status.extend(bytes),
                _ => {}
            }
        }
        Ok((String::from_utf8(stdout)?, serde_json::from_slice(&status).context("no status came")?))
    }
}

fn exec(container: &str, script: &str) -> cri::ExecRequest {
    cri::ExecRequest {
        container_id: container.to_owned(),
        cmd: ["sh", "-c", script].map(str::to_owned).to_vec(),
        stdin: true,
        stdout: true,
        stderr: true,
        ..Default::default()
    }
}

async fn a_command_talks_to_its_client_and_its_exit_code_arrives(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let main = node.pod("web").run().await?.container("main").idle().run().await?;
    let request = exec(&main.id, "cat; exit 7");
    let url = node.client().runtime().exec(request).await?.into_inner().url;
    let mut client = WebSocket::open(&url, "v5.channel.k8s.io").await?;
    client.send(STDIN, b"hello ").await?;
    client.send(STDIN, b"there\n").await?;
    client.send(CLOSE, &[STDIN]).await?;
    let (stdout, status) = client.finish().await?;
    assert_eq!(stdout, "hello there\n");
    assert_eq!(status["details"]["causes"][0]["message"], "7", "{status}");
    Ok(())
}

async fn a_url_is_good_once(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let main = node.pod("web").run().await?.container("main").idle().run().await?;
    let request = cri::ExecRequest { stdin: false, ..exec(&main.id, "echo hi") };
    let url = node.client().runtime().exec(request).await?.into_inner().url;
    let (stdout, status) = WebSocket::open(&url, "v4.channel.k8s.io").await?.finish().await?;
    assert_eq!((stdout.as_str(), &status["status"]), ("hi\n", &Value::from("Success")));
    let (line, _) = upgrade(&url, "v4.channel.k8s.io").await?;
    ensure!(line.contains(" 404 "), "a used URL: {line}");
    Ok(())
}

async fn a_command_ends_with_its_client(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let main = node.pod("web").run().await?.container("main").idle().run().await?;
    let url = node
        .client()
        .runtime()
        .exec(exec(&main.id, "echo begun; sleep 98765 & wait"))
        .await?
        .into_inner()
        .url;
    let mut client = WebSocket::open(&url, "v4.channel.k8s.io").await?;
    while !matches!(client.receive().await?.context("it ended")?, (STDOUT, said) if said == b"begun\n") {}
    let sleeps = async || {
        Ok(main.sh("ps | grep 'sleep 98765' | grep -cv 'sh -c\\|grep' || true").await?.trim().to_owned())
    };
    eventually("the command to run", sleeps, |count| count == "1").await?;
    drop(client);
    eventually("the command to be gone", sleeps, |count| count == "0").await?;
    Ok(())
}

async fn an_attached_client_gets_what_the_container_says_and_the_log_has_it_too(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let builder = node.pod("web").run().await?.container("main");
    let builder =
        builder.sh("while read line; do echo got $line; done; exit 0").with(|config| config.stdin = true);
    let main = builder.run().await?;
    let request = cri::AttachRequest {
        container_id: main.id.clone(),
        stdin: true,
        stdout: true,
        stderr: true,
        ..Default::default()
    };
    let mut runtime = node.client().runtime();
    let mut clients = Vec::new();
    for _ in 0..2 {
        let url = runtime.attach(request.clone()).await?.into_inner().url;
        clients.push(WebSocket::open(&url, "v4.channel.k8s.io").await?);
    }
    clients[0].send(STDIN, b"one\n").await?;
    let mut said = Vec::new();
    while said != b"got one\n" {
        let (channel, bytes) = clients[0].receive().await?.context("the attachment ended")?;
        if channel == STDOUT {
            said.extend(bytes);
        }
    }
    main.logged("got one").await?;
    // Clients that go harm nobody.
    drop(clients);
    tokio::time::timeout(Duration::from_secs(60), main.exec(["true"])).await??;
    assert_eq!(main.state().await?, cri::ContainerState::ContainerRunning);
    Ok(())
}

async fn a_port_of_the_pods_loopback_is_reached(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let script = "mkdir /www; echo from the pod >/www/page; exec httpd -f -p 127.0.0.1:8080 -h /www";
    pod.container("main").sh(script).run().await?;
    let mut runtime = node.client().runtime();
    let ask = async || {
        let request = cri::PortForwardRequest { pod_sandbox_id: pod.id.clone(), port: vec![8080] };
        let url = runtime.port_forward(request).await?.into_inner().url;
        let mut client = WebSocket::open(&url, "v4.channel.k8s.io").await?;
        client.send(0, b"GET /page HTTP/1.0\r\n\r\n").await?;
        let mut said = String::new();
        // Data is channel 0, what went wrong channel 1; the first message of each is the port.
        while let Some((channel, bytes)) = client.receive().await? {
            match channel {
                _ if bytes == 8080_u16.to_le_bytes() => {}
                0 => said.push_str(&String::from_utf8_lossy(&bytes)),
                _ => break,
            }
            if said.ends_with("from the pod\n") {
                break;
            }
        }
        Ok(said)
    };
    eventually("the server to answer", ask, |said| said.ends_with("from the pod\n")).await?;
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
