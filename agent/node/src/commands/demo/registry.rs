//! A registry on the loopback interface that has one image: so that the demo's pull is a pull.
//!
//! Just enough of the distribution API (<https://github.com/opencontainers/distribution-spec>) over HTTP/1.1: manifests and
//! blobs, GET and HEAD, one answer per request, no ranges. It lives as long as the demo.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::AbortHandle;

use super::image::{Blob, DemoImage, MANIFEST_TYPE};

/// Name of the image's repository and its tag.
const REPOSITORY: &str = "hartpod/demo";
const TAG: &str = "latest";

/// Longest head of a request that is read.
const HEAD_MAX: u64 = 16 << 10;

/// The running registry; ends when dropped.
#[derive(Debug)]
pub(super) struct Registry {
    address: SocketAddr,
    server: AbortHandle,
}

impl Registry {
    /// Serves `image` on a free port of 127.0.0.1.
    pub(super) async fn start(image: DemoImage) -> io::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let server = tokio::spawn(serve(listener, Arc::new(image))).abort_handle();
        Ok(Self { address, server })
    }

    /// HOST:PORT.
    pub(super) fn host(&self) -> String {
        self.address.to_string()
    }

    /// The image by its tag.
    pub(super) fn reference(&self) -> String {
        format!("{}/{REPOSITORY}:{TAG}", self.address)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn serve(listener: TcpListener, image: Arc<DemoImage>) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        if let Ok((stream, _)) = listener.accept().await {
            connections.spawn(converse(stream, image.clone()));
        }
    }
}

/// Requests on one connection, until the client hangs up or says something that is not one.
async fn converse(mut stream: TcpStream, image: Arc<DemoImage>) -> io::Result<()> {
    let (read, mut write) = stream.split();
    let mut read = BufReader::new(read);
    while let Some(request) = head(&mut read).await? {
        let mut words = request.split(' ');
        let (method, path) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
        let (status, media_type, blob) = match (method, find(&image, path)) {
            ("GET" | "HEAD", Some((media_type, blob))) => ("200 OK", media_type, blob),
            ("GET" | "HEAD", None) => ("404 Not Found", "application/json", None),
            _ => ("405 Method Not Allowed", "application/json", None),
        };
        let body = blob.map_or(&b"{}"[..], |b| &b.bytes);
        let mut answer =
            format!("HTTP/1.1 {status}\r\nContent-Type: {media_type}\r\nContent-Length: {}\r\n", body.len());
        if let Some(blob) = blob {
            answer.push_str(&format!("Docker-Content-Digest: {}\r\n", blob.digest));
        }
        answer.push_str("\r\n");
        write.write_all(answer.as_bytes()).await?;
        if method != "HEAD" {
            write.write_all(body).await?;
        }
    }
    Ok(())
}

/// The first line of a request; its headers are read and forgotten. None at the end of the connection.
async fn head(read: &mut (impl tokio::io::AsyncBufRead + Unpin)) -> io::Result<Option<String>> {
    let mut limited = read.take(HEAD_MAX);
    let mut first = String::new();
    if limited.read_line(&mut first).await? == 0 {
        return Ok(None);
    }
    let mut line = String::new();
    loop {
        line.clear();
        match limited.read_line(&mut line).await? {
            0 => return Ok(None),
            _ if line.trim_end().is_empty() => return Ok(Some(first)),
            _ => {}
        }
    }
}

/// What a path names: the API itself (without a blob), the manifest, or a blob.
fn find<'a>(image: &'a DemoImage, path: &str) -> Option<(&'static str, Option<&'a Blob>)> {
    let path = path.split('?').next().unwrap_or_default();
    if path == "/v2/" {
        return Some(("application/json", None));
    }
    let below = path.strip_prefix("/v2/")?.strip_prefix(REPOSITORY)?;
    if let Some(name) = below.strip_prefix("/manifests/") {
        let known = name == TAG || name == image.manifest.digest;
        return known.then_some((MANIFEST_TYPE, Some(&image.manifest)));
    }
    let digest = below.strip_prefix("/blobs/")?;
    let blob = [&image.config, &image.layer].into_iter().find(|b| b.digest == digest)?;
    Some(("application/octet-stream", Some(blob)))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn ask(registry: &Registry, requests: &str) -> String {
        let mut stream = TcpStream::connect(registry.address).await.unwrap();
        stream.write_all(requests.as_bytes()).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).await.unwrap();
        String::from_utf8_lossy(&answer).into_owned()
    }

    #[tokio::test]
    async fn the_image_is_found_by_tag_and_by_digest_and_nothing_else_is() {
        let image = DemoImage::pack_blocking().unwrap();
        let (manifest, layer) = (image.manifest.digest.clone(), image.layer.digest.clone());
        let registry = Registry::start(image).await.unwrap();
        for (path, expected) in [
            ("/v2/".to_owned(), "200"),
            ("/v2/hartpod/demo/manifests/latest".to_owned(), "200"),
            (format!("/v2/hartpod/demo/manifests/{manifest}"), "200"),
            (format!("/v2/hartpod/demo/blobs/{layer}"), "200"),
            (format!("/v2/hartpod/demo/blobs/{layer}0"), "404"),
            ("/v2/other/manifests/latest".to_owned(), "404"),
            ("/".to_owned(), "404"),
        ] {
            let answer = ask(&registry, &format!("HEAD {path} HTTP/1.1\r\nHost: x\r\n\r\n")).await;
            assert!(answer.starts_with(&format!("HTTP/1.1 {expected} ")), "{path}: {answer}");
        }
    }

    #[tokio::test]
    async fn one_connection_carries_several_requests() {
        let registry = Registry::start(DemoImage::pack_blocking().unwrap()).await.unwrap();
        let twice = "GET /v2/ HTTP/1.1\r\nHost: x\r\n\r\n".repeat(2);
        assert_eq!(ask(&registry, &twice).await.matches("HTTP/1.1 200 OK").count(), 2);
        let post = ask(&registry, "POST /v2/ HTTP/1.1\r\n\r\n").await;
        assert!(post.starts_with("HTTP/1.1 405 "), "{post}");
    }

    #[tokio::test]
    async fn the_image_store_pulls_the_image_like_any_other() {
        let dir = tempfile::tempdir().unwrap();
        let registry = Registry::start(DemoImage::pack_blocking().unwrap()).await.unwrap();
        let hosts = dir.path().join("hosts").join(registry.host());
        std::fs::create_dir_all(&hosts).unwrap();
        std::fs::write(hosts.join("hosts.toml"), format!("server = \"http://{}\"\n", registry.host()))
            .unwrap();
        let config = hartpod_images::ImagesConfig {
            root: dir.path().join("images"),
            hosts_dir: dir.path().join("hosts"),
            ..hartpod_images::ImagesConfig::default()
        };
        let open = || hartpod_images::ImageStore::open_blocking(config);
        let store = tokio::task::spawn_blocking(open).await.unwrap().unwrap();
        let reference = registry.reference().parse().unwrap();
        let image = store.pull(&reference, None, None).await.unwrap();
        assert_eq!(image.config.config().as_ref().unwrap().user().as_deref(), Some("demo"));
        let [layer] = &image.layers[..] else { panic!("{:?}", image.layers) };
        let program = std::fs::read(store.layers_dir().join(layer).join("demo")).unwrap();
        assert_eq!(program, super::super::image::PROGRAM);
    }
}
