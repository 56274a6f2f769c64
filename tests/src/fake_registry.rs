//! A registry that lies: answers what a test wrote, byte for byte.

use std::collections::{BTreeMap, HashMap};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use anyhow::{Context, Result};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;

use crate::image::Image;
use crate::layer::digest;

/// What one path answers.
#[derive(Debug, Clone)]
pub struct Answer {
    pub status: u16,
    pub content_type: String,
    pub body: Vec<u8>,
    pub headers: BTreeMap<String, String>,
    /// Close the connection after this many bytes of the body, although Content-Length promised all.
    pub cut_after: Option<usize>,
    /// Never finish: send the head and then nothing.
    pub hang: bool,
}

impl Answer {
    pub fn ok(content_type: &str, body: Vec<u8>) -> Self {
        Self {
            status: 200,
            content_type: content_type.to_owned(),
            body,
            headers: BTreeMap::new(),
            cut_after: None,
            hang: false,
        }
    }

    pub fn status(status: u16) -> Self {
        Self { status, ..Self::ok("application/json", br#"{"errors":[]}"#.to_vec()) }
    }
}

/// A server on a loopback port. Paths without an answer are 404; every request is written down.
#[derive(Debug, Clone)]
pub struct FakeRegistry {
    pub address: SocketAddr,
    state: Arc<State>,
    server: AbortHandle,
}

#[derive(Debug, Default)]
struct State {
    /// Guards the answers, changed by tests while the server runs.
    answers: Mutex<HashMap<String, Answer>>,
    /// Guards the log: path and Authorization header of each request, in order.
    requests: Mutex<Vec<(String, Option<String>)>>,
    /// Guards the token that every path below /v2/ wants, and what is answered without it.
    token: Mutex<Option<(String, Answer)>>,
}

impl FakeRegistry {
    pub async fn start() -> Result<Self> {
        Self::start_at("127.0.0.1:0").await
    }

    pub async fn start_at(address: &str) -> Result<Self> {
        let listener = TcpListener::bind(address).await.with_context(|| format!("listen on {address}"))?;
        let address = listener.local_addr().context("address of the fake registry")?;
        let state = Arc::new(State::default());
        let serving = state.clone();
        let server = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, serving.clone()));
            }
        });
        let registry = Self { address, state, server: server.abort_handle() };
        registry.answer("/v2/", Answer::ok("application/json", b"{}".to_vec()));
        Ok(registry)
    }

    /// Takes no connection any more.
    pub fn stop(&self) {
        self.server.abort();
    }

    /// What `path` answers from now on.
    pub fn answer(&self, path: &str, answer: Answer) {
        lock(&self.state.answers).insert(path.to_owned(), answer);
    }

    /// Serves an image under a tag and its digest.
    pub fn serve(&self, name: &str, tag: &str, image: &Image) {
        for child in &image.children {
            self.serve(name, &child.digest(), child);
        }
        for (digest, blob) in &image.blobs {
            self.answer(
                &format!("/v2/{name}/blobs/{digest}"),
                Answer::ok("application/octet-stream", blob.clone()),
            );
        }
        let manifest = || Answer::ok(image.media_type, image.manifest.clone());
        self.answer(&format!("/v2/{name}/manifests/{tag}"), manifest());
        self.answer(&format!("/v2/{name}/manifests/{}", digest(&image.manifest)), manifest());
    }

    /// Answers `challenge` to every request below /v2/ that does not bear `token`.
    pub fn require_token(&self, token: &str, challenge: Answer) {
        *lock(&self.state.token) = Some((format!("Bearer {token}"), challenge));
    }

    /// The reference that names an image of this registry.
    pub fn reference(&self, name: &str, tag: &str) -> String {
        format!("{}/{name}:{tag}", self.address)
    }

    /// Every request so far: path, and what Authorization said.
    pub fn requests(&self) -> Vec<(String, Option<String>)> {
        lock(&self.state.requests).clone()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// Answers that cut or hang break HTTP, so they are written by hand; all others are hyper's.
async fn serve(mut stream: TcpStream, state: Arc<State>) {
    let mut head = [0; 4096];
    let Ok(read) = stream.peek(&mut head).await else { return };
    let text = String::from_utf8_lossy(&head[..read]).into_owned();
    let path = text.split(' ').nth(1).unwrap_or_default().to_owned();
    let broken =
        lock(&state.answers).get(&path).filter(|answer| answer.hang || answer.cut_after.is_some()).cloned();
    if let Some(answer) = broken {
        lock(&state.requests).push((path, None));
        let _ = break_off(&mut stream, &answer).await;
        return;
    }
    let service = service_fn(move |request: Request<Incoming>| {
        let state = state.clone();
        async move { Ok::<_, Infallible>(respond(&request, &state)) }
    });
    // One request per connection, so that a broken answer is seen by the peek above.
    let _ = hyper::server::conn::http1::Builder::new()
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service)
        .await;
}

fn respond(request: &Request<Incoming>, state: &State) -> Response<Full<Bytes>> {
    let path = request.uri().path().to_owned();
    let authorization = request.headers().get("authorization").and_then(|value| value.to_str().ok());
    lock(&state.requests).push((path.clone(), authorization.map(str::to_owned)));
    let token = lock(&state.token).clone();
    let closed =
        token.filter(|(bearer, _)| path.starts_with("/v2/") && authorization != Some(bearer.as_str()));
    let answer = match closed {
        Some((_, challenge)) => challenge,
        None => lock(&state.answers).get(&path).cloned().unwrap_or_else(|| Answer::status(404)),
    };
    let mut response = Response::builder().status(answer.status).header("content-type", answer.content_type);
    for (name, value) in &answer.headers {
        response = response.header(name, value);
    }
    response.body(Full::from(answer.body)).unwrap_or_else(|_| {
        let mut response = Response::new(Full::default());
        *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
        response
    })
}

async fn break_off(stream: &mut TcpStream, answer: &Answer) -> std::io::Result<()> {
    let mut request = [0; 4096];
    let _ = stream.read(&mut request).await?;
    let head = format!("HTTP/1.1 {} X\r\ncontent-length: {}\r\n\r\n", answer.status, answer.body.len());
    stream.write_all(head.as_bytes()).await?;
    if answer.hang {
        std::future::pending::<()>().await;
    }
    let cut = answer.cut_after.unwrap_or(0).min(answer.body.len());
    stream.write_all(&answer.body[..cut]).await?;
    stream.shutdown().await
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::Http;

    #[tokio::test]
    async fn answers_what_it_was_told_and_writes_it_down() {
        let registry = FakeRegistry::start().await.unwrap();
        let http = Http::new(&registry.address.to_string());
        registry.answer("/there", Answer::ok("text/plain", b"hello".to_vec()));
        registry.answer("/cut", Answer { cut_after: Some(2), ..Answer::ok("text/plain", b"hello".to_vec()) });
        assert_eq!(http.get("/there").await.unwrap(), b"hello");
        assert!(http.get("/nowhere").await.unwrap_err().to_string().contains("404"));
        assert!(http.get("/cut").await.is_err());
        let paths: Vec<String> = registry.requests().into_iter().map(|(path, _)| path).collect();
        assert_eq!(paths, ["/there", "/nowhere", "/cut"]);
    }
}
