//! What a daemon tells Prometheus.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::eventually::eventually;
use crate::node::Node;

/// Where a daemon serves its metrics, as its log says.
pub fn address(node: &Node) -> Result<String> {
    let log = std::fs::read_to_string(node.log_file())?;
    let line = log
        .lines()
        .rfind(|line| line.contains(" metrics at="))
        .context("the log tells no address of metrics")?;
    let (_, address) = line.split_once("at=").context("no address")?;
    Ok(address.trim().to_owned())
}

/// One HTTP request; the head and the body of the answer.
pub async fn http(address: &str, request: &str) -> Result<(String, String)> {
    let mut stream = TcpStream::connect(address).await.with_context(|| format!("connect to {address}"))?;
    stream
        .write_all(format!("{request} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").as_bytes())
        .await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no end of the head")?;
    Ok((head.to_owned(), body.to_owned()))
}

/// All metrics of the daemon that serves them at `address`, read after this was called: for a second it may tell what it has read already.
pub async fn scrape(address: &str) -> Result<String> {
    let began = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64();
    let mut told = String::new();
    let fresh = async || {
        told = scrape_once(address).await?;
        let line = told.lines().find_map(|line| line.strip_prefix("hartpod_metrics_read_timestamp_seconds "));
        Ok(line.context("no time of reading")?.parse::<f64>()?)
    };
    eventually("what was read just now", fresh, |read_at| *read_at > began).await?;
    Ok(told)
}

/// The answer to one request.
pub async fn scrape_once(address: &str) -> Result<String> {
    let (head, body) = http(address, "GET /metrics").await?;
    ensure!(head.starts_with("HTTP/1.1 200 "), "{head}");
    Ok(body)
}
