//! A client of the streaming server: what kubectl, crictl and the kubelet send to the URLs that Exec, Attach and PortForward answer.
//!
//! SPDY is spoken as Go's client does it, WebSocket as its and browsers' do. Every wait has a deadline, so a test has none.
//!
//! ```no_run
//! # use hartpod_tests::{Client, cri, streaming::{Channel, Exec, Forward, Protocol}};
//! # async fn show(client: &Client, request: cri::ExecRequest) -> anyhow::Result<()> {
//! let mut exec = Exec::start(client, request, Protocol::SPDY).await?;
//! exec.write(b"hello\n").await?;
//! exec.end_stdin().await?;
//! let done = exec.finish().await?;
//! assert_eq!((&*done.text(), done.exit_code()?), ("hello\n", 0));
//!
//! let mut forward = Forward::start(client, "the pod's id", &[80], Protocol::SPDY_PORTS).await?;
//! let connection = forward.connect(80).await?;
//! connection.write(b"GET / HTTP/1.0\r\n\r\n").await?;
//! let (answer, error) = connection.finish().await;
//! # Ok(())
//! # }
//! ```

mod exec;
mod forward;
mod link;
mod spdy;
mod upgrade;
mod websocket;
mod wire;

pub use exec::{Exec, Finished, Input, Output, Streams};
pub use forward::{Connection, Forward, Outgoing};
pub use upgrade::{Answer, upgrade};

/// How a client's streams are carried, and the version that it asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    Spdy(&'static str),
    /// With binary messages: the base64 versions are not known here. `SPDY/3.1+portforward.k8s.io` is SPDY in WebSocket.
    WebSocket(&'static str),
}

impl Protocol {
    /// The kubelet's and crictl's, for exec and attach.
    pub const SPDY: Self = Self::Spdy("v4.channel.k8s.io");
    /// `crictl -r websocket`'s, for exec and attach. containerd has no later one than v4.
    pub const WEBSOCKET: Self = Self::WebSocket("v5.channel.k8s.io");
    /// The kubelet's and crictl's, for ports.
    pub const SPDY_PORTS: Self = Self::Spdy("portforward.k8s.io");
    /// `crictl -r websocket`'s, for ports. containerd has none of it.
    pub const TUNNEL_PORTS: Self = Self::WebSocket("SPDY/3.1+portforward.k8s.io");
    /// Browsers', for ports: one connection to each.
    pub const WEBSOCKET_PORTS: Self = Self::WebSocket("v4.channel.k8s.io");
}

/// Streams of exec and attach, by WebSocket's numbers (k8s.io/apimachinery/pkg/util/remotecommand).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Channel {
    Stdin = 0,
    Stdout = 1,
    Stderr = 2,
    /// Carries the status.
    Error = 3,
    Resize = 4,
}

impl Channel {
    const ALL: [Self; 5] = [Self::Stdin, Self::Stdout, Self::Stderr, Self::Error, Self::Resize];

    /// SPDY's name of it.
    fn stream_type(self) -> &'static str {
        match self {
            Self::Stdin => "stdin",
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
            Self::Error => "error",
            Self::Resize => "resize",
        }
    }
}
