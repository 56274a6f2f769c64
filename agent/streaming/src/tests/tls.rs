//! HTTPS.

use std::sync::Arc;

use rustls::pki_types::{CertificateDer, ServerName, pem::PemObject as _};
use tokio::net::TcpStream;

use super::spdy_client::{Client, VERSIONS, request_over, upgrade};
use super::{ALL, Lab, noise};
use crate::{Config, TlsError, tls_from_pem};

/// For localhost, signed by itself, until the year 2126.
const CERTIFICATE: &[u8] = include_bytes!("data/cert.pem");
const KEY: &[u8] = include_bytes!("data/key.pem");

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sessions_run_over_tls() {
    let tls = Some(tls_from_pem(CERTIFICATE, KEY).unwrap());
    let lab = Lab::with(Config { tls, ..Config::default() }).await;
    let url = lab.exec(&["cat"], ALL);
    let path = url.as_str().strip_prefix(&format!("https://{}", lab.server.address())).unwrap();

    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(CERTIFICATE).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let trusting = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let stream = TcpStream::connect(lab.server.address()).await.unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(trusting));
    let stream = connector.connect(ServerName::try_from("localhost").unwrap(), stream).await.unwrap();
    let (head, stream) = request_over(stream, "POST", path, &upgrade(VERSIONS)).await;
    assert!(head.starts_with("http/1.1 101 "), "{head}");

    let mut client = Client::over(stream);
    let ids = client.open_all(&["error", "stdin", "stdout", "stderr"]).await;
    let input = noise(2 << 20);
    let Client { mut reader, mut writer } = client;
    let send = async {
        for piece in input.chunks(32 * 1024) {
            writer.data(ids[1], piece, false).await;
        }
        writer.data(ids[1], b"", true).await;
    };
    let (received, ()) = tokio::join!(reader.rest(), send);
    assert!(received.data[&ids[2]] == input);
    assert_eq!(received.exit_code(ids[0]), 0);
}

#[tokio::test]
async fn a_client_that_speaks_no_tls_is_let_go() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    let tls = Some(tls_from_pem(CERTIFICATE, KEY).unwrap());
    let lab = Lab::with(Config { tls, ..Config::default() }).await;
    let mut stream = TcpStream::connect(lab.server.address()).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = super::soon(stream.read_to_end(&mut answer)).await;
    assert!(!answer.starts_with(b"HTTP"));
}

#[test]
fn certificates_and_keys_are_checked() {
    assert!(matches!(tls_from_pem(b"", KEY), Err(TlsError::Certificates(_))));
    assert!(matches!(tls_from_pem(KEY, KEY), Err(TlsError::Certificates(_))));
    assert!(matches!(tls_from_pem(CERTIFICATE, b"nothing"), Err(TlsError::Key(_))));
    let torn = [&CERTIFICATE[..CERTIFICATE.len() / 2], b"\n-----END CERTIFICATE-----\n"].concat();
    assert!(tls_from_pem(&torn, KEY).is_err());
}
