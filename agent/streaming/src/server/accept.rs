//! From a TCP connection to a client's upgraded one.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tracing::{Instrument as _, debug, debug_span, warn};

use super::answer::{Admitted, answer};
use crate::runtime::chain;
use crate::serve::{Context, Job, serve};
use crate::tokens::Tokens;
use crate::wire::{Halves, Socket, Wire};

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
    /// A place for each client that has redeemed its URL.
    pub(super) places: Arc<Semaphore>,
    pub(super) most_strangers: usize,
}

/// A client that has redeemed its URL.
struct Guest {
    wire: Wire,
    job: Job,
    place: OwnedSemaphorePermit,
}

/// The connections that have redeemed no URL, oldest first. Each is told to leave by the end of its sender.
///
/// Anybody who reaches the address can make these. So they take no place from clients with URLs, and none from each other: a client that
/// comes with its URL at once is let in however many there are that say nothing.
struct Strangers {
    most: usize,
    waiting: VecDeque<oneshot::Sender<Infallible>>,
}

impl Strangers {
    /// Takes one more, for which the oldest may have to go. To be dropped as soon as it is no stranger any more.
    fn add(&mut self) -> oneshot::Receiver<Infallible> {
        if self.waiting.len() >= self.most {
            self.waiting.retain(|stranger| !stranger.is_closed());
        }
        if self.waiting.len() >= self.most {
            self.waiting.pop_front();
        }
        let (stranger, leave) = oneshot::channel();
        self.waiting.push_back(stranger);
        leave
    }
}

impl Doorkeeper {
    /// Serves until the server stops.
    pub(super) async fn accept_all(self, listener: TcpListener) {
        let mut stop = self.context.stop.clone();
        let mut clients = JoinSet::new();
        let mut strangers = Strangers { most: self.most_strangers, waiting: VecDeque::new() };
        loop {
            tokio::select! {
                () = stop.asked() => break,
                accepted = listener.accept() => match accepted {
                    Ok((stream, address)) => {
                        let client = self.clone().client(stream, strangers.add());
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
        drop((listener, strangers));
        let all_left = async { while clients.join_next().await.is_some() {} };
        if timeout(STOP_WAIT, all_left).await.is_err() {
            warn!("streaming clients did not leave in time");
        }
    }

    async fn client(mut self, stream: TcpStream, leave: oneshot::Receiver<Infallible>) {
        let greeted = tokio::select! {
            greeted = self.greet(stream) => greeted,
            _ = leave => Err(io::Error::other("it had redeemed nothing, and others came")),
        };
        match greeted {
            Ok(Some(guest)) => guest.serve(&mut self.context).await,
            Ok(None) => {}
            Err(error) => debug!(%error, "a client went before its session began"),
        }
    }

    async fn greet(&self, stream: TcpStream) -> io::Result<Option<Guest>> {
        let socket = Socket::new(stream)?;
        match &self.tls {
            None => self.request(socket).await,
            Some(acceptor) => self.request(handshake(acceptor, socket).await?).await,
        }
    }

    /// Answers one request. `None` if that is no upgrade.
    async fn request<S: Halves>(&self, stream: S) -> io::Result<Option<Guest>> {
        // Filled by the request, when it is an upgrade that is agreed to.
        let agreed: Mutex<Option<Admitted>> = Mutex::default();
        let service = service_fn(async |request| {
            let (response, admitted) = answer(&request, &self.tokens, &self.places);
            *agreed.lock().unwrap_or_else(PoisonError::into_inner) = admitted;
            Ok::<_, Infallible>(response)
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(REQUEST_WAIT)
            .max_buf_size(MOST_HEAD)
            .max_headers(MOST_HEADERS)
            .serve_connection(TokioIo::new(stream), service)
            .without_shutdown();
        let parts = connection.await.map_err(io::Error::other)?;
        let admitted = agreed.lock().unwrap_or_else(PoisonError::into_inner).take();
        Ok(admitted.map(|Admitted { job, place }| {
            let wire = parts.io.into_inner().wire(parts.read_buf);
            Guest { wire, job, place }
        }))
    }
}

impl Guest {
    async fn serve(self, context: &mut Context) {
        let Self { wire, job, place: _place } = self;
        debug!(job = job.verb(), on = job.id(), transport = ?job.transport(), "a session begins");
        match serve(wire, job, context).await {
            Ok(()) => debug!("a client is done"),
            Err(end) => debug!(why = chain(&end), "a client's session was cut short"),
        }
    }
}

async fn handshake(
    acceptor: &TlsAcceptor,
    socket: Socket,
) -> io::Result<tokio_rustls::server::TlsStream<Socket>> {
    match timeout(REQUEST_WAIT, acceptor.accept(socket)).await {
        Ok(accepted) => accepted,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    }
}
