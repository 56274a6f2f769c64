//! A CRI endpoint: what it calls itself, and which process serves it.

use std::os::unix::net::UnixStream;
use std::path::Path;

use anyhow::{Context, Result};
use hartpod_tests::{Client, cri};
use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

/// One runtime.
#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(crate) name: String,
    pub(crate) client: Client,
    /// The process behind the socket.
    pub(crate) daemon: i32,
    /// Where it serves metrics, if that is known.
    pub(crate) metrics: Option<String>,
}

impl Endpoint {
    /// Connects and asks for the version.
    pub(crate) async fn connect(socket: &Path) -> Result<Self> {
        let stream =
            UnixStream::connect(socket).with_context(|| format!("connect to {}", socket.display()))?;
        let daemon = getsockopt(&stream, PeerCredentials).context("ask who serves the socket")?.pid();
        let client = Client::new(socket);
        let version = client.version(cri::VersionRequest::default()).await.context("Version")?;
        let name = format!("{} {}", version.runtime_name, version.runtime_version);
        Ok(Self { name, client, daemon, metrics: None })
    }
}
