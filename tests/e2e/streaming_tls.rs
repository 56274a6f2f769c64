//! The streaming server behind TLS, as `[streaming] tls_cert` and `tls_key` ask for it.

use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hartpod_tests::{Lab, cri, guest, node, tests};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::process::Command;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;
use tokio_rustls::rustls::pki_types::{CertificateDer, ServerName};
use tokio_rustls::rustls::{ClientConfig, RootCertStore, crypto};

tests![
    a_session_runs_over_https,
    run_trusts_the_certificate_of_the_configuration_and_no_other,
    a_daemon_does_not_start_with_a_bad_certificate,
];

/// For localhost, signed by itself, until the year 2126.
const CERTIFICATE: &[u8] = include_bytes!("../../agent/streaming/src/tests/data/cert.pem");
const KEY: &[u8] = include_bytes!("../../agent/streaming/src/tests/data/key.pem");

/// For localhost too, signed by itself.
const OTHER: &[u8] = b"-----BEGIN CERTIFICATE-----\n\
    MIIBgDCCASWgAwIBAgIUdD5vM0uLnsCx+YrT2cugmvw1hTkwCgYIKoZIzj0EAwIw\n\
    FDESMBAGA1UEAwwJbG9jYWxob3N0MCAXDTI2MTEyMzEzNTUzM1oYDzIxMjYxMDMw\n\
    MTM1NTMzWjAUMRIwEAYDVQQDDAlsb2NhbGhvc3QwWTATBgcqhkjOPQIBBggqhkjO\n\
    PQMBBwNCAATEF4ePEIocJg7tLCETM15nPHnfNbcYmYR9NJ3ti+WSVmqowuwLgT+A\n\
    Z7uWtVzlnFR5jkzmUkUg8xWgvglzxhk4o1MwUTAdBgNVHQ4EFgQUzUTS/RJ+c2ao\n\
    Yjfi+sYdDwYXN0EwHwYDVR0jBBgwFoAUzUTS/RJ+c2aoYjfi+sYdDwYXN0EwDwYD\n\
    VR0TAQH/BAUwAwEB/zAKBggqhkjOPQQDAgNJADBGAiEA4uwApvUGwLkHGX1kS+VH\n\
    6iKOCyRn60Ul1dwcsTmqH14CIQCvlqPd4qBCvK3Q+bgi+p6eimGWwza2BIg1Qyw9\n\
    h6lDug==\n\
    -----END CERTIFICATE-----\n";

const PATIENCE: Duration = Duration::from_secs(60);

/// Writes both files into `dir`; the configuration that names them.
fn settings(dir: &Path, certificate: &[u8]) -> Result<String> {
    let (cert, key) = (dir.join("cert.pem"), dir.join("key.pem"));
    std::fs::write(&cert, certificate)?;
    std::fs::write(&key, KEY)?;
    Ok(format!("[streaming]\ntls_cert = {cert:?}\ntls_key = {key:?}\n"))
}

/// A client that trusts this certificate and no other.
fn trusting() -> Result<TlsConnector> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(CERTIFICATE)?)?;
    let config = ClientConfig::builder_with_provider(Arc::new(crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

async fn a_session_runs_over_https(lab: &Lab) -> Result<()> {
    let settings = settings(lab.dir(), CERTIFICATE)?;
    let node = lab.start(lab.node_builder()?.settings(&settings)).await?;
    lab.registry().await?;
    node.client().pull(node.image()).await?;
    let main = node.pod("web").run().await?.container("main").idle().run().await?;
    let request = cri::ExecRequest {
        container_id: main.id.clone(),
        cmd: ["echo", "over https"].map(str::to_owned).to_vec(),
        stdout: true,
        ..Default::default()
    };
    let url = node.client().runtime().exec(request).await?.into_inner().url;
    let rest = url.strip_prefix("https://").with_context(|| format!("no https URL: {url}"))?;
    let (host, path) = rest.split_once('/').context("no path")?;
    let stream = TcpStream::connect(host).await?;
    let mut stream = trusting()?.connect(ServerName::try_from("localhost")?, stream).await?;
    let request = format!(
        "GET /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
         Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: v4.channel.k8s.io\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut received = Vec::new();
    // The server ends its half once it has said all.
    tokio::time::timeout(PATIENCE, stream.read_to_end(&mut received))
        .await
        .context("the session goes on")??;
    let received = String::from_utf8_lossy(&received);
    ensure!(received.starts_with("HTTP/1.1 101 "), "{received}");
    ensure!(received.contains("over https\n") && received.contains(r#""status":"Success""#), "{received}");
    Ok(())
}

async fn run_trusts_the_certificate_of_the_configuration_and_no_other(lab: &Lab) -> Result<()> {
    let settings = settings(lab.dir(), CERTIFICATE)?;
    let node = lab.start(lab.node_builder()?.settings(&settings)).await?;
    lab.registry().await?;
    node.client().pull(node.image()).await?;
    if guest::by_default() {
        guest::provide_image(&node.root())?;
    }
    let other = lab.dir().join("other.toml");
    std::fs::write(&other, settings.replace("cert.pem", "other.pem"))?;
    std::fs::write(lab.dir().join("other.pem"), OTHER)?;
    let none = lab.dir().join("none.toml");
    std::fs::write(&none, "")?;
    let own = node.dir().join("config.toml");
    for (config, stdout, stderr) in [
        (&own, "hi\n", ""),
        (&other, "", "the server's certificate is not the one in "),
        (&none, "", "no streaming.tls_cert says with which certificate"),
    ] {
        let mut hartpod = Command::new(node::bin_dir().join("hartpod"));
        hartpod.args(["run", "-i", "--handler", &guest::default_handler(), "--config"]).arg(config);
        hartpod.arg("--socket").arg(node.socket()).args([node.image(), "echo", "hi"]);
        hartpod.stdin(Stdio::null()).kill_on_drop(true);
        let output = tokio::time::timeout(PATIENCE, hartpod.output()).await.context("hartpod goes on")??;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success() == stderr.is_empty() && said.contains(stderr), "{config:?}: {said}");
        ensure!(output.stdout == stdout.as_bytes(), "{output:?}");
    }
    ensure!(node.client().pods().await?.is_empty(), "the pods are removed");
    Ok(())
}

async fn a_daemon_does_not_start_with_a_bad_certificate(lab: &Lab) -> Result<()> {
    let config = lab.dir().join("bad.toml");
    std::fs::write(&config, settings(lab.dir(), b"nothing")?)?;
    for command in ["serve", "check"] {
        let mut hartpod = Command::new(node::bin_dir().join("hartpod"));
        hartpod.args([command, "--config"]).arg(&config).stdin(Stdio::null()).kill_on_drop(true);
        if command == "serve" {
            hartpod.arg("--root").arg(lab.dir().join("r")).arg("--state").arg(lab.dir().join("s"));
        }
        let output = tokio::time::timeout(PATIENCE, hartpod.output()).await.context("hartpod goes on")??;
        ensure!(output.status.code() == Some(1), "{command}: {output:?}");
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        let file = lab.dir().join("cert.pem").display().to_string();
        ensure!(said.contains(&format!("{file}: read the certificates")), "{command}: {said}");
    }
    Ok(())
}
