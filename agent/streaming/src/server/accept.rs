//! From a TCP connection to a client's upgraded one.

use std::convert::Infallible;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tracing::{Instrument as _, debug, debug_span, warn};

use super::answer::answer;
use crate::runtime::chain;
use crate::serve::{Context, Job, serve};
use crate::tokens::Tokens;
use crate::wire::{Halves, Socket};

/// What a client gets for its TLS handshake, and then for its request.
const REQUEST_WAIT: Duration = Duration::from_secs(10);

/// Bytes of a request's head; hyper takes no less.
const MOST_HEAD: usize = 16 * 1024;
/// Header lines of a request.
const MOST_HEADERS: usize = 64;

/// Pause after a failed accept, which fails again at once when the cause is a lack of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What clients get to leave when the server stops.
const STOP_WAIT: Duration = Duration::from_secs(6);

/// Lets clients in.
#[derive(Clone)]
pub(super) struct Doorkeeper {
    pub(super) tokens: Arc<Tokens>,
    pub(super) context: Context,
    pub(super) tls: Option<TlsAcceptor>,
    pub(super) most: usize,
}

impl Doorkeeper {
    /// Serves until the server stops.
    pub(super) async fn accept_all(self, listener: TcpListener) {
        let mut stop = self.context.stop.clone();
        let mut clients = JoinSet::new();
        loop {
            tokio::select! {
                () = stop.asked() => break,
                accepted = listener.accept(), if clients.len() < self.most => match accepted {
                    Ok((stream, address)) => {
                        let client = self.clone().client(stream);
                        clients.spawn(client.instrument(debug_span!("client", %address)));
                    }
                    Err(error) => {
                        warn!(%error, "cannot accept a streaming client");
                        sleep(ACCEPT_PAUSE).await;
                    }
                },
                Some(_) = clients.join_next() => {}
            }
        }
        drop(listener);
        let all_left = async { while clients.join_next().await.is_some() {} };
        if timeout(STOP_WAIT, all_left).await.is_err() {
            warn!("streaming clients did not leave in time");
        }
    }

    async fn client(mut self, stream: TcpStream) {
        let ended = match self.tls.take() {
            None => match Socket::new(stream) {
                Ok(socket) => self.request(socket).await,
                Err(error) => Err(error),
            },
            Some(acceptor) => match handshake(&acceptor, stream).await {
                Ok(stream) => self.request(stream).await,
                Err(error) => Err(error),
            },
        };
        if let Err(error) = ended {
            debug!(%error, "a client went before its session began");
        }
    }

    /// Answers one request, and serves what that asks for.
    async fn request<S: Halves>(mut self, stream: S) -> io::Result<()> {
        // Filled by the request, when it is an upgrade that is agreed to.
        let agreed: Mutex<Option<Job>> = Mutex::default();
        let service = service_fn(async |request| {
            let (response, job) = answer(&request, &self.tokens);
            *agreed.lock().unwrap_or_else(PoisonError::into_inner) = job;
            Ok::<_, Infallible>(response)
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(REQUEST_WAIT)
            .max_buf_size(MOST_HEAD)
            .max_headers(MOST_HEADERS)
            .serve_connection(TokioIo::new(stream), service)
            .without_shutdown();
        let mut stop = self.context.stop.clone();
        let parts = tokio::select! {
            parts = connection => parts.map_err(io::Error::other)?,
            () = stop.asked() => return Ok(()),
        };
        let job = agreed.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(job) = job {
            debug!(job = job.verb(), on = job.id(), transport = ?job.transport(), "a session begins");
            match serve(parts.io.into_inner().wire(parts.read_buf), job, &mut self.context).await {
                Ok(()) => debug!("a client is done"),
                Err(end) => debug!(why = chain(&end), "a client's session was cut short"),
            }
        }
        Ok(())
    }
}

async fn handshake(
    acceptor: &TlsAcceptor,
    stream: TcpStream,
) -> io::Result<tokio_rustls::server::TlsStream<Socket>> {
    match timeout(REQUEST_WAIT, acceptor.accept(Socket::new(stream)?)).await {
        Ok(accepted) => accepted,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}
