//! Where Prometheus reads the metrics: `GET /metrics`.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Mutex, Semaphore};

use super::guests::guests;
use super::{collect, node_text, text};
use crate::node::Node;

/// Connections at a time; more wait to be accepted.
const CONNECTIONS: usize = 16;
/// For a client to say what it wants.
const HEADERS: Duration = Duration::from_secs(10);
/// For a connection in all: a scrape and a slow reader of it.
const CONNECTION: Duration = Duration::from_secs(60);
/// After an error of accept(2), such as too many open files.
const BREATH: Duration = Duration::from_millis(100);

/// The server.
#[derive(Debug)]
pub(crate) struct Endpoint {
    listener: TcpListener,
    address: SocketAddr,
}

impl Endpoint {
    /// # Errors
    /// When the address cannot be had.
    pub(crate) async fn bind(listen: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(listen).await?;
        let address = listener.local_addr()?;
        Ok(Self { listener, address })
    }

    /// Where it listens.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Answers until the daemon ends.
    pub(crate) async fn serve(self, node: Arc<Node>) {
        let room = Arc::new(Semaphore::new(CONNECTIONS));
        // One scrape at a time: each reads everything.
        let scrape = Arc::new(Mutex::new(()));
        loop {
            let Ok(place) = room.clone().acquire_owned().await else { return };
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let (node, scrape) = (node.clone(), scrape.clone());
                    tokio::spawn(async move {
                        let _ = tokio::time::timeout(CONNECTION, converse(stream, node, scrape)).await;
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::debug!(%error, "no connection for metrics");
                    tokio::time::sleep(BREATH).await;
                }
            }
        }
    }
}

async fn converse(stream: TcpStream, node: Arc<Node>, scrape: Arc<Mutex<()>>) {
    let service = service_fn(|request| {
        let (node, scrape) = (node.clone(), scrape.clone());
        async move { Ok::<_, Infallible>(answer(&request, &node, &scrape).await) }
    });
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEADERS);
    if let Err(error) = server.serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!(%error, "a connection for metrics broke");
    }
}

async fn answer(request: &Request<Incoming>, node: &Arc<Node>, scrape: &Arc<Mutex<()>>) -> Response<String> {
    let mut response = Response::new(String::new());
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => {
            // A client that leaves ends what answers it, but not what reads: that keeps its turn until it is done.
            let (turn, node) = (scrape.clone().lock_owned().await, node.clone());
            let rendered = tokio::spawn(async move {
                let _turn = turn;
                render(&node).await
            });
            match rendered.await {
                Ok(text) => *response.body_mut() = text,
                Err(_) => *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR,
            }
            // exposition_formats.md
            let format = hyper::header::HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
            response.headers_mut().insert(CONTENT_TYPE, format);
        }
        (_, "/metrics") => {
            *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
            response.headers_mut().insert(ALLOW, hyper::header::HeaderValue::from_static("GET"));
        }
        _ => {
            *response.status_mut() = StatusCode::NOT_FOUND;
            "there is nothing here but /metrics\n".clone_into(response.body_mut());
        }
    }
    response
}

async fn render(node: &Arc<Node>) -> String {
    let (pods, guests) = tokio::join!(collect(node), guests(node));
    let snapshots: Vec<_> = node.registry.pods().iter().map(|pod| pod.snapshot()).collect();
    let process = tokio::task::spawn_blocking(node_text::process_blocking).await.unwrap_or_default();
    let mut text = text::render(&pods);
    text.push_str(&node_text::overheads(&pods));
    text.push_str(&guests);
    text.push_str(&node_text::states(snapshots.iter().map(Arc::as_ref)));
    text.push_str(&process);
    text.push_str(&node.own_metrics.render());
    text
}
