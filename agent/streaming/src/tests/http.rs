//! Requests that get no session.

use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use super::spdy_client::{VERSIONS, request, request_over, upgrade};
use super::{ALL, Lab, OUTPUT, soon, websocket_client};
use crate::{Config, RequestError, Streams};

async fn status(lab: &Lab, method: &str, path: &str, headers: &[(&str, &str)]) -> String {
    let stream = TcpStream::connect(lab.server.address()).await.unwrap();
    let (head, _) = request_over(stream, method, path, headers).await;
    head
}

#[tokio::test]
async fn a_url_is_good_once() {
    let lab = Lab::new().await;
    let url = lab.exec(&["exit", "0"], OUTPUT);
    let (head, _) = request(&url, "POST", &upgrade(VERSIONS)).await;
    assert!(head.starts_with("http/1.1 101 "), "{head}");
    let (head, _) = request(&url, "POST", &upgrade(VERSIONS)).await;
    assert!(head.starts_with("http/1.1 404 "), "{head}");
}

#[tokio::test]
async fn a_url_expires() {
    let lab = Lab::with(Config { token_ttl: Duration::ZERO, ..Config::default() }).await;
    let (head, _) = request(&lab.exec(&["exit", "0"], OUTPUT), "POST", &upgrade(VERSIONS)).await;
    assert!(head.starts_with("http/1.1 404 "), "{head}");
}

#[tokio::test]
async fn a_url_is_for_what_it_was_made_for() {
    let lab = Lab::new().await;
    let url = lab.exec(&["exit", "0"], OUTPUT);
    let (_, token) = url.as_str().rsplit_once('/').unwrap();
    for path in [format!("/attach/{token}"), format!("/exec/{token}")] {
        // The second comes too late: the first has spent it.
        assert!(status(&lab, "POST", &path, &upgrade(VERSIONS)).await.starts_with("http/1.1 404 "));
    }
}

#[tokio::test]
async fn other_paths_and_methods_are_refused() {
    let lab = Lab::new().await;
    let token = "/exec/00000000000000000000000000000000";
    for (method, path, expected) in [
        ("GET", "/", "http/1.1 404 "),
        ("GET", "/exec", "http/1.1 404 "),
        ("GET", "/exec/", "http/1.1 404 "),
        ("POST", token, "http/1.1 404 "),
        ("GET", "/metrics", "http/1.1 404 "),
        ("PUT", token, "http/1.1 405 "),
        ("DELETE", token, "http/1.1 405 "),
        ("HEAD", token, "http/1.1 405 "),
    ] {
        let head = status(&lab, method, path, &upgrade(VERSIONS)).await;
        assert!(head.starts_with(expected), "{method} {path}: {head}");
        assert_eq!(head.contains("\r\nallow: get, post\r\n"), expected.contains("405"));
        assert!(head.contains("\r\nconnection: close\r\n"), "{head}");
    }
}

#[tokio::test]
async fn an_upgrade_needs_its_headers() {
    let lab = Lab::new().await;
    let all = upgrade("v4.channel.k8s.io");
    for left_out in 0..3 {
        let mut headers = all.to_vec();
        headers.remove(left_out);
        let (head, _) = request(&lab.exec(&["exit", "0"], OUTPUT), "POST", &headers).await;
        assert!(head.starts_with("http/1.1 400 "), "{head}");
    }
    let empty = upgrade(" , ");
    let (head, _) = request(&lab.exec(&["exit", "0"], OUTPUT), "POST", &empty).await;
    assert!(head.starts_with("http/1.1 400 "), "{head}");
}

#[tokio::test]
async fn a_protocol_that_nobody_knows_is_answered_with_those_that_are_known() {
    let lab = Lab::new().await;
    let (head, _) = request(&lab.exec(&["exit", "0"], OUTPUT), "POST", &upgrade("v9.channel.k8s.io")).await;
    assert!(head.starts_with("http/1.1 403 "), "{head}");
    for version in VERSIONS.split(',') {
        assert!(head.contains(&format!("\r\nx-accepted-stream-protocol-versions: {version}\r\n")), "{head}");
    }
    let (head, _) = request(&lab.port_forward(&[]), "POST", &upgrade("v4.channel.k8s.io")).await;
    assert!(head.starts_with("http/1.1 403 "), "{head}");
    assert!(head.contains("\r\nx-accepted-stream-protocol-versions: portforward.k8s.io\r\n"), "{head}");
}

#[tokio::test]
async fn a_websocket_needs_its_headers() {
    let lab = Lab::new().await;
    let all = websocket_client::upgrade(Some("v5.channel.k8s.io"));
    for (name, value, expected) in [
        ("Sec-WebSocket-Key", "", "http/1.1 400 "),
        ("Sec-WebSocket-Key", "c2hvcnQ=", "http/1.1 400 "),
        ("Sec-WebSocket-Version", "8", "http/1.1 400 "),
        ("Sec-WebSocket-Protocol", "v6.channel.k8s.io", "http/1.1 403 "),
        ("Sec-WebSocket-Protocol", "v6.channel.k8s.io, v5.channel.k8s.io", "http/1.1 101 "),
        // Not a WebSocket then, and no other upgrade either.
        ("Upgrade", "h2c", "http/1.1 400 "),
        ("Connection", "close", "http/1.1 400 "),
    ] {
        let mut headers = all.clone();
        headers.iter_mut().filter(|header| header.0 == name).for_each(|header| header.1 = value);
        let (head, _) = request(&lab.exec(&["exit", "0"], OUTPUT), "GET", &headers).await;
        assert!(head.starts_with(expected), "{name}: {value}: {head}");
    }
    let (head, _) = request(&lab.exec(&["exit", "0"], OUTPUT), "POST", &all).await;
    assert!(head.starts_with("http/1.1 405 "), "{head}");
}

#[tokio::test]
async fn heads_without_end_are_cut_off() {
    let lab = Lab::new().await;
    let line =
        b"X-Filler: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\r\n";
    for junk in [&b"GET / HTTP/1.1\r\n"[..], b"\x80\x03\x00\x01", b"GET"] {
        let mut stream = TcpStream::connect(lab.server.address()).await.unwrap();
        stream.write_all(junk).await.unwrap();
        let flood = async { while stream.write_all(line).await.is_ok() {} };
        soon(flood).await;
    }
    let mut stream = TcpStream::connect(lab.server.address()).await.unwrap();
    stream.write_all(b"\x16\x03\x01 is TLS\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = soon(stream.read_to_end(&mut answer)).await;
    assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 400 "));
}

/// The clock goes on by itself whenever nobody has anything to do.
#[tokio::test(start_paused = true)]
async fn a_client_that_says_nothing_is_let_go() {
    let lab = Lab::new().await;
    for beginning in [&b""[..], b"GET / HTTP/1.1\r\nHost: "] {
        let mut stream = TcpStream::connect(lab.server.address()).await.unwrap();
        stream.write_all(beginning).await.unwrap();
        let mut answer = Vec::new();
        soon(stream.read_to_end(&mut answer)).await.unwrap();
        assert!(answer.is_empty() || answer.starts_with(b"HTTP/1.1 408 "));
    }
}

#[tokio::test]
async fn requests_that_cri_does_not_allow_get_no_url() {
    let lab = Lab::with(Config { max_pending: 2, ..Config::default() }).await;
    let exec = |streams| {
        let cmd = vec!["exit".to_owned(), "0".to_owned()];
        lab.server.exec(crate::ExecRequest { container_id: "box".to_owned(), cmd, streams })
    };
    let all = Streams { stdin: true, stdout: true, stderr: true, tty: true };
    assert_eq!(exec(all), Err(RequestError::TtyWithStderr));
    assert_eq!(exec(Streams::default()), Err(RequestError::NoStreams));
    exec(OUTPUT).unwrap();
    exec(OUTPUT).unwrap();
    assert_eq!(exec(OUTPUT), Err(RequestError::ManyPending(2)));
}

#[tokio::test]
async fn there_is_a_most_of_clients_and_whoever_is_refused_can_come_again() {
    let lab = Lab::with(Config { max_clients: 1, ..Config::default() }).await;
    let first = request(&lab.exec(&["deaf"], ALL), "POST", &upgrade(VERSIONS)).await;
    assert!(first.0.starts_with("http/1.1 101 "), "{}", first.0);
    let url = lab.exec(&["exit", "0"], OUTPUT);
    let (head, _) = request(&url, "POST", &upgrade(VERSIONS)).await;
    assert!(head.starts_with("http/1.1 503 "), "{head}");
    // One that knows no token takes no place.
    let path = "/exec/00000000000000000000000000000000";
    drop(first);
    soon(async {
        while status(&lab, "POST", path, &upgrade(VERSIONS)).await.starts_with("http/1.1 503 ") {
            tokio::task::yield_now().await;
        }
    })
    .await;
    let (head, _) = request(&url, "POST", &upgrade(VERSIONS)).await;
    assert!(head.starts_with("http/1.1 101 "), "{head}");
}

/// Less than a connection may say nothing.
const STRANGERS_WAIT: Duration = Duration::from_secs(9);

#[tokio::test]
async fn those_without_a_url_keep_nobody_out() {
    let lab = Lab::with(Config { max_clients: 1, max_strangers: 2, ..Config::default() }).await;
    let mut strangers = Vec::new();
    for _ in 0..5 {
        let mut stream = TcpStream::connect(lab.server.address()).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\n").await.unwrap();
        strangers.push(stream);
    }
    let (url, headers) = (lab.exec(&["deaf"], ALL), upgrade(VERSIONS));
    let request = tokio::time::timeout(STRANGERS_WAIT, request(&url, "POST", &headers));
    let (head, _client) = request.await.expect("it waits for strangers to go by themselves");
    assert!(head.starts_with("http/1.1 101 "), "{head}");
    // The oldest went, the newest are still listened to.
    let newest = strangers.split_off(4);
    for mut stream in strangers {
        let gone = stream.read(&mut [0]).await;
        assert!(!matches!(gone, Ok(1..)), "{gone:?}");
    }
    for mut stream in newest {
        stream.write_all(b"Host: node\r\n\r\n").await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 404 "), "{answer}");
    }
}
