//! Forwarded ports: what `kubectl port-forward` relies on.

use std::time::Duration;

use anyhow::{Context, Result};
use hartpod_tests::skip::Need;
use hartpod_tests::streaming::{Forward, Protocol};
use hartpod_tests::{Lab, Pod, eventually, tests};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::streaming::PORTS;

tests![
    a_refused_port_is_told_and_harms_no_other_connection,
    the_end_of_what_a_client_sends_leaves_the_answer_whole,
    fifty_connections_at_once_are_kept_apart,
    a_port_of_the_sixth_version_alone_is_reached,
    a_port_of_the_nodes_own_network_is_reached needs Need::OfNode("namespaces"),
    connections_end_with_their_pod,
];

/// What opens a connection each time it is asked, as `kubectl` does: the others have one for each port.
const SPDY: [Protocol; 2] = [Protocol::SPDY_PORTS, Protocol::TUNNEL_PORTS];

async fn a_refused_port_is_told_and_harms_no_other_connection(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    serves(&pod, "exec nc -ll -p 8080 -e cat").await?;
    for protocol in SPDY {
        let mut forward = Forward::start(node.client(), &pod.id, &[8080], protocol).await?;
        let mut good = forward.connect(8080).await?;
        good.write(b"before").await?;
        assert_eq!(good.read().await.as_deref(), Some(&b"before"[..]), "{protocol:?}");
        let (data, error) = forward.connect(9).await?.finish().await;
        assert_eq!(data, b"", "{protocol:?}");
        assert!(error.contains('9') && error.contains("refused"), "{protocol:?}: {error:?}");
        good.write(b"after").await?;
        assert_eq!(good.read().await.as_deref(), Some(&b"after"[..]), "{protocol:?}");
    }
    let mut forward = Forward::start(node.client(), &pod.id, &[9, 8080], Protocol::WEBSOCKET_PORTS).await?;
    let error = forward.connect(9).await?.error().await.context("nothing is told")?;
    assert!(error.contains('9') && error.contains("refused"), "{error:?}");
    let mut good = forward.connect(8080).await?;
    good.write(b"after").await?;
    assert_eq!(good.read().await.as_deref(), Some(&b"after"[..]));
    Ok(())
}

/// Runs a container whose script serves port 8080, and waits until it listens.
async fn serves(pod: &Pod, script: &str) -> Result<()> {
    let main = pod.container("main").sh(script).run().await?;
    let seen = async || {
        // 8080 in hexadecimal, and the state of a listener.
        main.sh("cat /proc/net/tcp /proc/net/tcp6 2>/dev/null | grep -c ':1F90 .* 0A ' || true").await
    };
    eventually("the server to listen", seen, |count| count != "0\n").await?;
    Ok(())
}

async fn the_end_of_what_a_client_sends_leaves_the_answer_whole(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    serves(&pod, "exec nc -ll -p 8080 -e md5sum").await?;
    for protocol in SPDY {
        let mut forward = Forward::start(node.client(), &pod.id, &[8080], protocol).await?;
        let connection = forward.connect(8080).await?;
        for _ in 0..50 {
            connection.write(&[b'x'; 20_000]).await?;
        }
        connection.end().await?;
        let (answer, error) = connection.finish().await;
        let answer = String::from_utf8_lossy(&answer).into_owned();
        // Of a million x.
        assert_eq!((&*answer, &*error), ("ec78dbd963d2fc01e51176ed4dec299e  -\n", ""), "{protocol:?}");
    }
    Ok(())
}

async fn fifty_connections_at_once_are_kept_apart(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    serves(&pod, "exec nc -ll -p 8080 -e cat").await?;
    for protocol in SPDY {
        let mut forward = Forward::start(node.client(), &pod.id, &[8080], protocol).await?;
        let mut connections = JoinSet::new();
        for number in 0..50_u8 {
            let mut connection = forward.connect(8080).await?;
            // Accepted before the next comes: the server's queue is for two, and what is beyond it may be broken off.
            connection.write(&[number]).await?;
            assert_eq!(connection.read().await.as_deref(), Some(&[number][..]), "{protocol:?}");
            connections.spawn(async move {
                for _ in 0..20 {
                    connection.write(&[number; 5_000]).await?;
                }
                connection.end().await?;
                let (data, error) = connection.finish().await;
                assert_eq!(error, "");
                assert!(
                    data == vec![number; 100_000],
                    "connection {number}: {} bytes, or others",
                    data.len()
                );
                anyhow::Ok(())
            });
        }
        while let Some(ended) = connections.join_next().await {
            ended?.with_context(|| format!("{protocol:?}"))?;
        }
    }
    Ok(())
}

async fn a_port_of_the_sixth_version_alone_is_reached(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").run().await?;
    let script = "mkdir /www; echo from the pod >/www/page; exec httpd -f -p [::1]:8080 -h /www";
    serves(&pod, script).await?;
    for protocol in PORTS {
        let mut forward = Forward::start(node.client(), &pod.id, &[8080], protocol).await?;
        let mut connection = forward.connect(8080).await?;
        connection.write(b"GET /page HTTP/1.0\r\n\r\n").await?;
        let mut said = String::new();
        while !said.ends_with("from the pod\n") {
            let bytes = connection.read().await.with_context(|| format!("{protocol:?} ended: {said:?}"))?;
            said.push_str(&String::from_utf8_lossy(&bytes));
        }
    }
    Ok(())
}

async fn a_port_of_the_nodes_own_network_is_reached(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    let pod = node.pod("web").host_network().run().await?;
    let server = TcpListener::bind("127.0.0.1:0").await?;
    let port = server.local_addr()?.port();
    for protocol in PORTS {
        let mut forward = Forward::start(node.client(), &pod.id, &[port], protocol).await?;
        let mut connection = forward.connect(port).await?;
        connection.write(b"ping").await?;
        let (mut stream, _) = tokio::time::timeout(Duration::from_secs(60), server.accept()).await??;
        let mut said = [0; 4];
        stream.read_exact(&mut said).await?;
        assert_eq!(&said, b"ping");
        stream.write_all(b"pong").await?;
        assert_eq!(connection.read().await.as_deref(), Some(&b"pong"[..]), "{protocol:?}");
    }
    Ok(())
}

async fn connections_end_with_their_pod(lab: &Lab) -> Result<()> {
    let node = lab.node().await?;
    for protocol in SPDY {
        let pod = node.pod("web").run().await?;
        serves(&pod, "exec nc -ll -p 8080 -e cat").await?;
        let mut forward = Forward::start(node.client(), &pod.id, &[8080], protocol).await?;
        let mut connection = forward.connect(8080).await?;
        connection.write(b"there").await?;
        assert_eq!(connection.read().await.as_deref(), Some(&b"there"[..]), "{protocol:?}");
        pod.stop().await?;
        let end = tokio::time::timeout(Duration::from_secs(60), connection.read()).await;
        assert_eq!(end.context("the connection lives on")?, None, "{protocol:?}");
        pod.remove().await?;
    }
    Ok(())
}
