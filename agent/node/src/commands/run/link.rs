//! A connection to the daemon's streaming server: WebSocket with `v5.channel.k8s.io`, where a message's first byte names a stream
//! (k8s.io/apimachinery/pkg/util/remotecommand).

use std::fmt::Debug;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, bail};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::http::header::SEC_WEBSOCKET_PROTOCOL;
use tokio_tungstenite::tungstenite::http::{HeaderValue, Uri};
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Bytes, Message};

use super::{RunArgs, tls};

const PROTOCOL: &str = "v5.channel.k8s.io";

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const STATUS: u8 = 3;
const RESIZE: u8 = 4;
/// Names a stream that says no more.
const CLOSE: u8 = 255;

/// For a server on the same machine to answer, and to open the container's streams.
const ANSWER: Duration = Duration::from_secs(30);

/// A connection, with TLS or without.
type Stream = Box<dyn Connection>;

trait Connection: AsyncRead + AsyncWrite + Debug + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Debug + Send + Unpin> Connection for T {}

/// Both directions.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) sender: Sender,
    pub(super) receiver: Receiver,
}

#[derive(Debug)]
pub(super) struct Sender(SplitSink<WebSocketStream<Stream>, Message>);

#[derive(Debug)]
pub(super) struct Receiver {
    messages: SplitStream<WebSocketStream<Stream>>,
    status: Vec<u8>,
}

/// What comes.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Received {
    Stdout(Bytes),
    Stderr(Bytes),
    /// The container's streams are over.
    End,
}

impl Link {
    /// Opens a URL that the daemon has made. What the container says from now on comes.
    pub(super) async fn open(url: &str, args: &RunArgs) -> anyhow::Result<Self> {
        match timeout(ANSWER, open(url, args)).await {
            Ok(link) => link,
            Err(_) => bail!("the streaming server at {url} does not answer"),
        }
    }
}

async fn open(url: &str, args: &RunArgs) -> anyhow::Result<Link> {
    let uri: Uri = url.parse().with_context(|| format!("the daemon's URL {url:?}"))?;
    let (Some(authority), Some(path)) = (uri.authority(), uri.path_and_query()) else {
        bail!("the daemon's URL {url:?} is not whole");
    };
    let stream = TcpStream::connect(authority.as_str())
        .await
        .with_context(|| format!("connect to the streaming server at {authority}"))?;
    // A key is a message.
    stream.set_nodelay(true)?;
    let stream: Stream = match uri.scheme_str() {
        Some("https") => Box::new(tls::connect(stream, trusted(args)?).await?),
        _ => Box::new(stream),
    };
    let mut request = format!("ws://{authority}{path}").into_client_request()?;
    request.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(PROTOCOL));
    let (socket, _) =
        tokio_tungstenite::client_async(request, stream).await.context("upgrade to WebSocket")?;
    let (sender, messages) = socket.split();
    let mut link = Link { sender: Sender(sender), receiver: Receiver { messages, status: Vec::new() } };
    // An empty message says that the streams are there.
    match link.receiver.next().await? {
        Received::Stdout(bytes) | Received::Stderr(bytes) if bytes.is_empty() => Ok(link),
        other => bail!("the streaming server began with {other:?}"),
    }
}

/// The file with the streaming server's certificate.
fn trusted(args: &RunArgs) -> anyhow::Result<PathBuf> {
    let file = args.config()?.streaming.tls_cert;
    if file.as_os_str().is_empty() {
        bail!(
            "the streaming server speaks TLS, and no streaming.tls_cert says with which certificate: name the daemon's configuration with --config"
        );
    }
    Ok(file)
}

impl Sender {
    /// Bytes for the container's stdin.
    pub(super) async fn stdin(&mut self, bytes: &[u8]) -> anyhow::Result<()> {
        self.send(STDIN, bytes).await
    }

    /// No more of them come.
    pub(super) async fn end_stdin(&mut self) -> anyhow::Result<()> {
        self.send(CLOSE, &[STDIN]).await
    }

    /// The terminal's size.
    pub(super) async fn resize(&mut self, (columns, rows): (u16, u16)) -> anyhow::Result<()> {
        let size = serde_json::json!({ "Width": columns, "Height": rows });
        self.send(RESIZE, size.to_string().as_bytes()).await
    }

    async fn send(&mut self, stream: u8, bytes: &[u8]) -> anyhow::Result<()> {
        let message = [&[stream], bytes].concat();
        Ok(self.0.send(Message::Binary(message.into())).await?)
    }
}

impl Receiver {
    /// The next of what comes. An error: the session failed, or broke off.
    pub(super) async fn next(&mut self) -> anyhow::Result<Received> {
        loop {
            let message = match self.messages.next().await {
                Some(Ok(message)) => message,
                Some(Err(error)) => return Err(error).context("the connection to the container broke off"),
                None => bail!("the connection to the container broke off"),
            };
            match message {
                Message::Binary(mut bytes) if !bytes.is_empty() => match bytes.split_to(1)[0] {
                    STDOUT => return Ok(Received::Stdout(bytes)),
                    STDERR => return Ok(Received::Stderr(bytes)),
                    STATUS => self.status.extend_from_slice(&bytes),
                    _ => {}
                },
                Message::Close(frame) => {
                    let normal = frame.is_some_and(|frame| frame.code == CloseCode::Normal);
                    judge(&self.status, normal)?;
                    return Ok(Received::End);
                }
                _ => {}
            }
        }
    }
}

/// What the status, a `metav1.Status`, says of the session.
fn judge(status: &[u8], closed_normally: bool) -> anyhow::Result<()> {
    if status.is_empty() && !closed_normally {
        bail!("the streaming server has closed the connection to the container");
    }
    let status: serde_json::Value = serde_json::from_slice(status).context("read the session's status")?;
    if status["status"] != "Success" {
        bail!("{}", status["message"].as_str().unwrap_or("the session has failed"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_session_ends_well_or_says_why_not() {
        judge(br#"{"metadata":{},"status":"Success"}"#, true).unwrap();
        let failed = br#"{"status":"Failure","message":"it is gone","code":500}"#;
        assert_eq!(judge(failed, true).unwrap_err().to_string(), "it is gone");
        assert!(judge(b"", false).is_err(), "a server that stops");
        assert!(judge(b"{", true).is_err());
    }
}
