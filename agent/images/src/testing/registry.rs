//! A registry on loopback that does what a test tells it, down to the byte where a connection breaks.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::image::{INDEX, MANIFEST, TestImage};
use crate::digest::Digest;

/// A request as it came.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub(crate) method: String,
    /// With the query.
    pub(crate) target: String,
    /// Names in lower case.
    pub(crate) headers: HashMap<String, String>,
    pub(crate) body: String,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    /// Where a ranged request starts.
    pub(crate) fn range_start(&self) -> Option<usize> {
        self.header("range").strip_prefix("bytes=")?.strip_suffix('-')?.parse().ok()
    }
}

/// What the registry answers.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    /// Claims the whole body's length, sends so many bytes, and closes.
    cut: Option<usize>,
    /// Sends so many bytes and then nothing.
    stall: Option<usize>,
    /// Waits for a permit before anything is sent.
    gate: Option<Arc<Semaphore>>,
}

impl Reply {
    pub(crate) fn new(status: u16, body: impl Into<Vec<u8>>) -> Reply {
        let body = body.into();
        Reply { status, headers: Vec::new(), body, cut: None, stall: None, gate: None }
    }

    pub(crate) fn header(mut self, name: &str, value: impl Into<String>) -> Reply {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    pub(crate) fn cut(self, bytes: usize) -> Reply {
        Reply { cut: Some(bytes), ..self }
    }

    pub(crate) fn stall(self, bytes: usize) -> Reply {
        Reply { stall: Some(bytes), ..self }
    }

    pub(crate) fn gate(self, gate: &Arc<Semaphore>) -> Reply {
        Reply { gate: Some(Arc::clone(gate)), ..self }
    }
}

type Hook = Box<dyn Fn(&Request) -> Option<Reply> + Send>;

#[derive(Default)]
struct State {
    blobs: HashMap<String, Vec<u8>>,
    /// By `repository/manifests/tag or digest`.
    manifests: HashMap<String, (String, Vec<u8>)>,
    log: Vec<Request>,
    hook: Option<Hook>,
}

/// Stops when it is dropped.
pub(crate) struct FakeRegistry {
    address: String,
    state: Arc<Mutex<State>>,
    server: JoinHandle<()>,
}

impl Drop for FakeRegistry {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl FakeRegistry {
    pub(crate) async fn start() -> FakeRegistry {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let state = Arc::new(Mutex::new(State::default()));
        let shared = Arc::clone(&state);
        let server = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // The client may be gone: nobody's business.
                tokio::spawn(serve(stream, Arc::clone(&shared)));
            }
        });
        FakeRegistry { address, state, server }
    }

    /// Host and port.
    pub(crate) fn address(&self) -> &str {
        &self.address
    }

    pub(crate) fn push(&self, repository: &str, tag: &str, image: &TestImage) {
        self.push_blobs(image);
        self.push_manifest(repository, tag, MANIFEST, &image.manifest);
    }

    pub(crate) fn push_index(&self, repository: &str, tag: &str, image: &TestImage) {
        self.push(repository, "unused", image);
        self.push_manifest(repository, tag, INDEX, &image.index());
    }

    pub(crate) fn push_blobs(&self, image: &TestImage) {
        let mut state = self.state.lock().unwrap();
        for layer in &image.layers {
            state.blobs.insert(layer.digest.to_string(), layer.blob.clone());
        }
        state.blobs.insert(image.id(), image.config.clone());
    }

    pub(crate) fn push_manifest(&self, repository: &str, tag: &str, media_type: &str, bytes: &[u8]) {
        let mut state = self.state.lock().unwrap();
        for name in [tag.to_owned(), Digest::of(bytes).to_string()] {
            let entry = (media_type.to_owned(), bytes.to_vec());
            state.manifests.insert(format!("{repository}/manifests/{name}"), entry);
        }
    }

    /// Puts other bytes behind a blob's digest.
    pub(crate) fn set_blob(&self, digest: &Digest, bytes: &[u8]) {
        self.state.lock().unwrap().blobs.insert(digest.to_string(), bytes.to_vec());
    }

    /// Asked before every answer; None means the usual one.
    pub(crate) fn hook(&self, hook: impl Fn(&Request) -> Option<Reply> + Send + 'static) {
        self.state.lock().unwrap().hook = Some(Box::new(hook));
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.state.lock().unwrap().log.clone()
    }

    /// How many requests there were whose target has `part` in it.
    pub(crate) fn count(&self, part: &str) -> usize {
        self.requests().iter().filter(|request| request.target.contains(part)).count()
    }
}

async fn serve(stream: TcpStream, state: Arc<Mutex<State>>) -> std::io::Result<()> {
    let mut stream = BufReader::new(stream);
    while let Some(request) = read_request(&mut stream).await? {
        let is_head = request.method == "HEAD";
        let reply = answer(&state, request);
        if let Some(gate) = &reply.gate {
            gate.acquire().await.unwrap().forget();
        }
        let mut head = format!("HTTP/1.1 {} x\r\n", reply.status);
        for (name, value) in &reply.headers {
            head += &format!("{name}: {value}\r\n");
        }
        head += &format!("Content-Length: {}\r\n\r\n", reply.body.len());
        stream.write_all(head.as_bytes()).await?;
        let end = reply.cut.or(reply.stall).unwrap_or(reply.body.len()).min(reply.body.len());
        if !is_head {
            stream.write_all(&reply.body[..end]).await?;
        }
        stream.flush().await?;
        if reply.stall.is_some() {
            // Until the client hangs up.
            while stream.read(&mut [0; 100]).await? > 0 {}
        }
        if reply.cut.is_some() || reply.stall.is_some() {
            return Ok(());
        }
    }
    Ok(())
}

async fn read_request(stream: &mut BufReader<TcpStream>) -> std::io::Result<Option<Request>> {
    let mut line = String::new();
    if stream.read_line(&mut line).await? == 0 {
        return Ok(None);
    }
    let mut words = line.split_whitespace().map(str::to_owned);
    let (method, target) = (words.next().unwrap(), words.next().unwrap());
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await?;
        match line.trim_end().split_once(':') {
            Some((name, value)) => headers.insert(name.to_ascii_lowercase(), value.trim().to_owned()),
            None => break,
        };
    }
    let length = headers.get("content-length").map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    let body = String::from_utf8(body).unwrap();
    Ok(Some(Request { method, target, headers, body }))
}

fn answer(state: &Mutex<State>, request: Request) -> Reply {
    let mut state = state.lock().unwrap();
    state.log.push(request.clone());
    if let Some(reply) = state.hook.as_ref().and_then(|hook| hook(&request)) {
        return reply;
    }
    let path = request.target.split('?').next().unwrap_or_default();
    let Some(path) = path.strip_prefix("/v2/") else { return not_found("page") };
    if let Some((_, digest)) = path.split_once("/blobs/") {
        return match state.blobs.get(digest) {
            Some(blob) => ranged(blob, &request),
            None => not_found("blob"),
        };
    }
    match state.manifests.get(path) {
        Some((media_type, bytes)) => Reply::new(200, bytes.clone())
            .header("Content-Type", media_type)
            .header("Docker-Content-Digest", Digest::of(bytes).to_string()),
        None => not_found("manifest"),
    }
}

/// A blob, or its end if that was asked for.
pub(crate) fn ranged(blob: &[u8], request: &Request) -> Reply {
    match request.range_start() {
        Some(start) => {
            let range = format!("bytes {start}-{}/{}", blob.len() - 1, blob.len());
            Reply::new(206, &blob[start..]).header("Content-Range", range)
        }
        None => Reply::new(200, blob),
    }
}

fn not_found(what: &str) -> Reply {
    let body = format!(r#"{{"errors":[{{"code":"UNKNOWN","message":"{what} unknown"}}]}}"#);
    Reply::new(404, body)
}
