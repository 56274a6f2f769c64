//! A registry on loopback, and a client that pushes images to it: Debian's docker-registry, or where that takes seconds to start (in the lab)
//! one that knows just what it was given.

use std::path::Path;
use std::process::Stdio;

use anyhow::{Context, Result, bail, ensure};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::header::{ACCEPT, CONTENT_TYPE, LOCATION};
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use tokio::process::{Child, Command};

use crate::eventually::{emulated, eventually};
use crate::fake_registry::FakeRegistry;
use crate::image::{self, ARCHITECTURE, INDEX_TYPE, Image, MANIFEST_TYPE};

/// Every test has a network namespace of its own, so the port is always free.
pub const ADDRESS: &str = "127.0.0.1:5000";
/// The name that `hosts.toml` maps to [`ADDRESS`].
pub const NAME: &str = "registry.test";

/// A running registry.
#[derive(Debug)]
pub struct Registry(Kind);

#[derive(Debug)]
enum Kind {
    Real(Box<Process>),
    Imitated(FakeRegistry),
}

#[derive(Debug)]
struct Process {
    child: Child,
    http: Http,
}

impl Registry {
    /// Starts one at `address` that keeps its data and its log in `dir`.
    pub async fn start(dir: &Path, address: &str) -> Result<Self> {
        let kind = if emulated() {
            Kind::Imitated(FakeRegistry::start_at(address).await?)
        } else {
            let child = start_process(dir, address)?;
            let http = Http::new(address);
            eventually("the registry's first answer", async || Ok(http.get("/v2/").await.is_ok()), |ok| *ok)
                .await?;
            Kind::Real(Box::new(Process { child, http }))
        };
        Ok(Self(kind))
    }

    /// Pushes the test image, for this machine's architecture and another, as `busybox:1`.
    pub async fn push_busybox(&self) -> Result<()> {
        let image = image::busybox()?;
        let other = if ARCHITECTURE == "riscv64" { "amd64" } else { "riscv64" };
        let foreign = image.clone().architecture(other).build()?;
        let index = Image::index(vec![(other, foreign), (ARCHITECTURE, image.build()?)])?;
        self.push("busybox", "1", &index).await?;
        Ok(())
    }

    /// Pushes an image under `name:tag` and returns its digest.
    pub async fn push(&self, name: &str, tag: &str, image: &Image) -> Result<String> {
        match &self.0 {
            Kind::Real(process) => push(&process.http, name, tag, image).await?,
            Kind::Imitated(fake) => fake.serve(name, tag, image),
        }
        Ok(image.digest())
    }

    /// The registry is down from now on.
    pub async fn stop(&mut self) -> Result<()> {
        match &mut self.0 {
            Kind::Real(process) if process.child.id().is_some() => {
                process.child.kill().await.context("stop docker-registry")
            }
            Kind::Real(_) => Ok(()),
            Kind::Imitated(fake) => {
                fake.stop();
                Ok(())
            }
        }
    }
}

fn start_process(dir: &Path, address: &str) -> Result<Child> {
    std::fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
    let config = dir.join("config.yml");
    let text = format!(
        "version: 0.1\nlog: {{level: warn}}\nstorage:\n  filesystem: {{rootdirectory: {}}}\n\
         http: {{addr: '{address}', secret: tests}}\n",
        dir.join("data").display()
    );
    std::fs::write(&config, text).with_context(|| format!("write {}", config.display()))?;
    let log = std::fs::File::create(dir.join("registry.log")).context("create registry.log")?;
    Command::new("docker-registry")
        .arg("serve")
        .arg(&config)
        .stdin(Stdio::null())
        .stdout(log.try_clone().context("share registry.log")?)
        .stderr(log)
        // Its tracing would look for a collector that is not there.
        .env("OTEL_TRACES_EXPORTER", "none")
        .kill_on_drop(true)
        .spawn()
        .context("start docker-registry")
}

async fn push(http: &Http, name: &str, tag: &str, image: &Image) -> Result<()> {
    for child in &image.children {
        Box::pin(push(http, name, &child.digest(), child)).await?;
    }
    for (digest, blob) in &image.blobs {
        push_blob(http, name, digest, blob).await?;
    }
    let request = Request::put(http.url(&format!("/v2/{name}/manifests/{tag}")))
        .header(CONTENT_TYPE, image.media_type)
        .body(Full::from(image.manifest.clone()))?;
    http.send(request, StatusCode::CREATED).await?;
    Ok(())
}

async fn push_blob(http: &Http, name: &str, digest: &str, blob: &[u8]) -> Result<()> {
    let start = Request::post(http.url(&format!("/v2/{name}/blobs/uploads/"))).body(Full::default())?;
    let response = http.send(start, StatusCode::ACCEPTED).await?;
    let location = response.headers().get(LOCATION).context("no Location for the upload")?.to_str()?;
    let separator = if location.contains('?') { '&' } else { '?' };
    let url = format!("{location}{separator}digest={digest}");
    let put =
        Request::put(url).header(CONTENT_TYPE, "application/octet-stream").body(Full::from(blob.to_vec()))?;
    http.send(put, StatusCode::CREATED).await?;
    Ok(())
}

/// Plain HTTP to one host.
#[derive(Debug, Clone)]
pub struct Http {
    client: Client<HttpConnector, Full<Bytes>>,
    address: String,
}

impl Http {
    pub fn new(address: &str) -> Self {
        Self { client: Client::builder(TokioExecutor::new()).build_http(), address: address.to_owned() }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// The body of a 200.
    pub async fn get(&self, path: &str) -> Result<Vec<u8>> {
        let request = Request::builder()
            .method(Method::GET)
            .uri(self.url(path))
            .header(ACCEPT, format!("{MANIFEST_TYPE}, {INDEX_TYPE}"))
            .body(Full::default())?;
        Ok(self.send(request, StatusCode::OK).await?.into_body().to_vec())
    }

    async fn send(&self, request: Request<Full<Bytes>>, wanted: StatusCode) -> Result<Response<Bytes>> {
        let what = format!("{} {}", request.method(), request.uri());
        let response = self.client.request(request).await.with_context(|| what.clone())?;
        let (parts, body) = response.into_parts();
        let body = body.collect().await.with_context(|| format!("{what}: read the body"))?.to_bytes();
        if parts.status != wanted {
            bail!("{what}: {} instead of {wanted}: {}", parts.status, String::from_utf8_lossy(&body));
        }
        ensure!(body.len() < 64 << 20, "{what}: an answer of {} bytes", body.len());
        Ok(Response::from_parts(parts, body))
    }
}
