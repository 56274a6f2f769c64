//! The HTTP request that a connection begins with.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::Protocol;
use crate::eventually::patient;

/// Within this the server has answered.
const DEADLINE: Duration = Duration::from_secs(30);

/// What a request for an upgrade came to.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    /// As it came.
    pub head: String,
    pub stream: TcpStream,
}

/// Asks for an upgrade as client-go does: by POST to SPDY, by GET to WebSocket.
pub async fn upgrade(url: &str, protocol: Protocol) -> Result<Answer> {
    let headers = match protocol {
        Protocol::Spdy(version) => {
            format!("Upgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: {version}\r\nContent-Length: 0\r\n")
        }
        Protocol::WebSocket(version) => format!(
            "Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             Sec-WebSocket-Protocol: {version}\r\n"
        ),
    };
    let method = match protocol {
        Protocol::Spdy(_) => "POST",
        Protocol::WebSocket(_) => "GET",
    };
    let asking = ask(url, method, &headers);
    timeout(patient(DEADLINE), asking).await.with_context(|| format!("{url} does not answer"))?
}

async fn ask(url: &str, method: &str, headers: &str) -> Result<Answer> {
    let rest = url.strip_prefix("http://").with_context(|| format!("no http URL: {url}"))?;
    let (host, path) = rest.split_once('/').with_context(|| format!("no path: {url}"))?;
    let mut stream = TcpStream::connect(host).await.with_context(|| format!("connect to {host}"))?;
    // As Go's connections are.
    stream.set_nodelay(true).context("set TCP_NODELAY")?;
    let request =
        format!("{method} /{path} HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).await.context("send the request")?;
    let mut head = Vec::new();
    // One by one: what follows the head is not ours.
    while !head.ends_with(b"\r\n\r\n") {
        head.push(stream.read_u8().await.context("read the answer's head")?);
    }
    let head = String::from_utf8(head).context("the answer's head")?;
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    let status = status.with_context(|| format!("not an answer of HTTP: {head}"))?;
    Ok(Answer { status, head, stream })
}

/// [`upgrade`] where nothing else will do.
pub(super) async fn connect(url: &str, protocol: Protocol) -> Result<TcpStream> {
    let answer = upgrade(url, protocol).await?;
    ensure!(answer.status == 101, "no upgrade to {protocol:?}: {}", answer.head.trim_end());
    Ok(answer.stream)
}
