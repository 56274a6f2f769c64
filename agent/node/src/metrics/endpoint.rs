//! Where Prometheus reads the metrics: `GET /metrics`.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};

use super::door::{Door, Visit};
use super::scrape::Scraper;
use crate::node::Node;

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
        let (door, scraper) = (Door::default(), Scraper::new(node));
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let (visit, leave) = door.enter();
                    let scraper = scraper.clone();
                    tokio::spawn(async move {
                        tokio::select! {
                            _ = tokio::time::timeout(CONNECTION, converse(stream, &visit, &scraper)) => {}
                            _ = leave => tracing::debug!("a connection for metrics made room"),
                        }
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

async fn converse(stream: TcpStream, visit: &Visit, scraper: &Scraper) {
    let service = service_fn(async |request| {
        visit.asks();
        let answer = answer(&request, scraper).await;
        visit.has_answer();
        Ok::<_, Infallible>(answer)
    });
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(HEADERS);
    if let Err(error) = server.serve_connection(TokioIo::new(stream), service).await {
        tracing::debug!(%error, "a connection for metrics broke");
    }
}

async fn answer(request: &Request<Incoming>, scraper: &Scraper) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => {
            match scraper.text().await {
                Some(text) => *response.body_mut() = Full::new(text),
                None => *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR,
            }
            // exposition_formats.md
            let format = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");
            response.headers_mut().insert(CONTENT_TYPE, format);
        }
        (_, "/metrics") => {
            *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
            response.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
        }
        _ => {
            *response.status_mut() = StatusCode::NOT_FOUND;
            *response.body_mut() = Full::from("there is nothing here but /metrics\n");
        }
    }
    response
}
