//! Against a real TLS server. `testdata` holds an authority, and a server's and a client's certificate of it for 127.0.0.1, made with
//! openssl for a hundred years; they are good for nothing else.

use std::io::{Read, Write};
use std::net::TcpListener;

use rustls::server::WebPkiClientVerifier;
use rustls::{ServerConfig, ServerConnection, Stream};

use crate::reference::Reference;
use crate::registry::{Class, Registry, RegistryOptions};

const CA: &str = include_str!("testdata/ca.pem");
const SERVER: [&str; 2] = [include_str!("testdata/server.pem"), include_str!("testdata/server.key")];
const CLIENT: [&str; 2] = [include_str!("testdata/client.pem"), include_str!("testdata/client.key")];

use super::*;

/// Answers connections with 404 until the process ends; returns its port.
fn server(wants_client: bool) -> u16 {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .unwrap();
    let builder = match wants_client {
        true => {
            let mut roots = RootCertStore::empty();
            roots.add(CertificateDer::from_pem_slice(CA.as_bytes()).unwrap()).unwrap();
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build().unwrap();
            builder.with_client_cert_verifier(verifier)
        }
        false => builder.with_no_client_auth(),
    };
    let certificate = CertificateDer::from_pem_slice(SERVER[0].as_bytes()).unwrap();
    let key = PrivateKeyDer::from_pem_slice(SERVER[1].as_bytes()).unwrap();
    let config = Arc::new(builder.with_single_cert(vec![certificate], key).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for socket in listener.incoming() {
            let mut socket = socket.unwrap();
            let mut connection = ServerConnection::new(Arc::clone(&config)).unwrap();
            let mut stream = Stream::new(&mut connection, &mut socket);
            // A client that does not believe us hangs up.
            if stream.read(&mut [0; 4096]).is_ok() {
                let _ = stream
                    .write_all(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
                let _ = stream.flush();
            }
        }
    });
    port
}

/// What a pull says with these settings.
async fn ask(port: u16, settings: &str) -> (Class, String) {
    let folder = tempfile::tempdir().unwrap();
    let hosts = folder.path().join("_default");
    std::fs::create_dir(&hosts).unwrap();
    for (name, text) in [
        ("ca.pem", CA.to_owned()),
        ("client.pem", CLIENT[0].to_owned()),
        ("client.key", CLIENT[1].to_owned()),
        ("both.pem", CLIENT.concat()),
        ("empty.pem", String::new()),
    ] {
        std::fs::write(hosts.join(name), text).unwrap();
    }
    std::fs::write(hosts.join("hosts.toml"), format!("server = \"https://127.0.0.1:{port}\"\n{settings}"))
        .unwrap();
    let reference: Reference = "reg.example/app".parse().unwrap();
    let options = RegistryOptions {
        hosts_dir: folder.path().to_owned(),
        progress_timeout: std::time::Duration::from_secs(10),
    };
    let registry = Registry::open(&reference, None, &options).await.unwrap();
    let refusals = registry.top().await.unwrap_err();
    (refusals.class(), refusals.into_attempts().to_string())
}

#[tokio::test]
async fn an_unknown_authority_is_not_believed() {
    let (class, said) = ask(server(false), "").await;
    assert_eq!(class, Class::Unavailable);
    assert!(said.contains("invalid peer certificate: UnknownIssuer"), "{said}");
}

#[tokio::test]
async fn an_authority_of_the_settings_is_believed() {
    let (class, said) = ask(server(false), "ca = \"ca.pem\"").await;
    assert_eq!(class, Class::NotFound, "{said}");
}

#[tokio::test]
async fn skip_verify_believes_anybody() {
    let (class, said) = ask(server(false), "skip_verify = true").await;
    assert_eq!(class, Class::NotFound, "{said}");
}

#[tokio::test]
async fn a_client_certificate_is_shown() {
    let port = server(true);
    let (class, said) = ask(port, "ca = \"ca.pem\"").await;
    assert_eq!(class, Class::Unavailable, "{said}");
    for client in ["[[\"client.pem\", \"client.key\"]]", "\"both.pem\"", "[\"both.pem\"]"] {
        let (class, said) = ask(port, &format!("ca = \"ca.pem\"\nclient = {client}")).await;
        assert_eq!(class, Class::NotFound, "{client}: {said}");
    }
}

#[tokio::test]
async fn a_certificate_that_cannot_be_read_is_named() {
    let port = server(false);
    for (settings, part) in [
        ("ca = \"missing.pem\"", "missing.pem"),
        ("ca = \"empty.pem\"", "empty.pem: no certificate in it"),
        ("ca = \"ca.pem\"\nclient = \"client.pem\"", "client.pem"),
    ] {
        let (_, said) = ask(port, settings).await;
        assert!(said.contains(part), "{said}");
    }
}
