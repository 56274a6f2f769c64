//! The HTTP server that clients come to with the URLs they were given.

mod accept;
mod answer;
mod negotiate;
mod tls;

pub use tls::{TlsError, tls_from_pem};

use std::fmt;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::{Semaphore, watch};
use tokio::task::AbortHandle;

use crate::request::{AttachRequest, ExecRequest, Plan, PortForwardRequest, RequestError};
use crate::runtime::Runtime;
use crate::serve::{Context, Stop};
use crate::tokens::Tokens;

/// How the server behaves.
#[derive(Debug, Clone)]
pub struct Config {
    /// Where it listens; port 0 takes a free one. URLs name this address, or the loopback one where this is any.
    pub listen: SocketAddr,
    /// For HTTPS ([`tls_from_pem`]).
    pub tls: Option<Arc<rustls::ServerConfig>>,
    /// A connection on which nothing moves for so long is closed.
    pub idle_timeout: Duration,
    /// What a client gets for making its SPDY streams.
    pub creation_timeout: Duration,
    /// How long a URL can be redeemed.
    pub token_ttl: Duration,
    /// URLs that may wait to be redeemed.
    pub max_pending: usize,
    /// Clients at one time that have redeemed a URL. More are refused, and keep theirs.
    pub max_clients: usize,
    /// Connections at one time that have redeemed none yet. With one more the oldest is closed.
    pub max_strangers: usize,
}

impl Default for Config {
    /// Times and pending URLs as in the reference server (`k8s.io/cri-streaming`).
    fn default() -> Self {
        Self {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            tls: None,
            idle_timeout: Duration::from_secs(4 * 60 * 60),
            creation_timeout: Duration::from_secs(30),
            token_ttl: Duration::from_secs(60),
            max_pending: 1000,
            max_clients: 1024,
            max_strangers: 512,
        }
    }
}

/// The server cannot begin.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// The address is taken, or none of this machine's.
    #[error("listen on {address}")]
    Listen {
        /// What was asked for.
        address: SocketAddr,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// Where a client has to go, within the time that a token lives; once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url(String);

/// The streaming server. Dropped, it ends at once with all its sessions.
#[derive(Debug)]
pub struct Server {
    base: String,
    address: SocketAddr,
    tokens: Arc<Tokens>,
    stop: watch::Sender<bool>,
    accepting: AbortHandle,
    /// Closed when the last client is gone.
    ended: watch::Receiver<()>,
}

impl Server {
    /// Listens, and serves what `runtime` opens.
    ///
    /// # Errors
    /// When the address cannot be listened on.
    pub async fn bind(config: Config, runtime: Arc<dyn Runtime>) -> Result<Self, BindError> {
        let failed = |source| BindError::Listen { address: config.listen, source };
        let listener = TcpListener::bind(config.listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let scheme = if config.tls.is_some() { "https" } else { "http" };
        let tokens = Arc::new(Tokens::new(config.token_ttl, config.max_pending));
        let (stop, stopped) = watch::channel(false);
        let context = Context {
            runtime,
            idle_timeout: config.idle_timeout,
            creation_timeout: config.creation_timeout,
            stop: Stop::new(stopped),
        };
        let doorkeeper = accept::Doorkeeper {
            tokens: Arc::clone(&tokens),
            context,
            tls: config.tls.map(tokio_rustls::TlsAcceptor::from),
            places: Arc::new(Semaphore::new(config.max_clients.min(Semaphore::MAX_PERMITS))),
            most_strangers: config.max_strangers,
        };
        let (running, ended) = watch::channel(());
        let accepting = tokio::spawn(async move {
            doorkeeper.accept_all(listener).await;
            drop(running);
        });
        let (base, accepting) = (format!("{scheme}://{}", reachable(address)), accepting.abort_handle());
        Ok(Self { base, address, tokens, stop, accepting, ended })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Makes a URL for one exec.
    ///
    /// # Errors
    /// For what CRI does not allow, or when too many clients have not come yet.
    pub fn exec(&self, request: ExecRequest) -> Result<Url, RequestError> {
        self.url(Plan::Exec(request))
    }

    /// Makes a URL for one attachment.
    ///
    /// # Errors
    /// As [`Server::exec`].
    pub fn attach(&self, request: AttachRequest) -> Result<Url, RequestError> {
        self.url(Plan::Attach(request))
    }

    /// Makes a URL for one client that forwards ports.
    ///
    /// # Errors
    /// As [`Server::exec`].
    pub fn port_forward(&self, request: PortForwardRequest) -> Result<Url, RequestError> {
        self.url(Plan::PortForward(request))
    }

    fn url(&self, plan: Plan) -> Result<Url, RequestError> {
        plan.check()?;
        let verb = plan.verb();
        let token = self.tokens.keep(plan)?;
        Ok(Url(format!("{}/{verb}/{token}", self.base)))
    }

    /// Takes no more clients, tells those that are there, and waits some seconds for them to go. Their sessions end.
    pub async fn stop(&self) {
        self.stop.send_replace(true);
        // Nothing is ever sent: it fails when the sender is gone, be it by a panic, which has been reported.
        let _ = self.ended.clone().changed().await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Url {
    /// As CRI's responses have it.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<Url> for String {
    fn from(url: Url) -> Self {
        url.0
    }
}

/// An address that a client on this machine can connect to: the kubelet is one.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => address.set_ip(Ipv4Addr::LOCALHOST.into()),
        IpAddr::V6(ip) if ip.is_unspecified() => address.set_ip(Ipv6Addr::LOCALHOST.into()),
        _ => {}
    }
    address
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_name_an_address_that_can_be_reached() {
        for (listening, named) in
            [("0.0.0.0:80", "127.0.0.1:80"), ("[::]:80", "[::1]:80"), ("10.0.0.1:80", "10.0.0.1:80")]
        {
            assert_eq!(reachable(listening.parse().unwrap()).to_string(), named);
        }
    }
}
