//! The store as a whole, against a registry that misbehaves. These run as root, as the daemon does.

use std::error::Error;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::*;
use crate::testing::archive::{Layer, Tar};
use crate::testing::image::TestImage;
use crate::testing::registry::FakeRegistry;

mod concurrency;
mod corrections;
mod crashes;
mod credentials;
mod faults;
mod layer_files;
mod layouts;
mod mirrors;
mod names;

/// A store in a folder of its own, and a registry.
struct World {
    folder: tempfile::TempDir,
    registry: FakeRegistry,
    store: ImageStore,
}

impl World {
    async fn new() -> World {
        World::with(|_| {}).await
    }

    async fn with(adjust: impl FnOnce(&mut ImagesConfig)) -> World {
        let folder = tempfile::tempdir().unwrap();
        let mut config = config(&folder);
        adjust(&mut config);
        let store = ImageStore::open_blocking(config).unwrap();
        World { folder, registry: FakeRegistry::start().await, store }
    }

    fn root(&self) -> PathBuf {
        self.folder.path().join("images")
    }

    /// A reference to an image of the registry.
    fn reference(&self, rest: &str) -> Reference {
        format!("{}/{rest}", self.registry.address()).parse().unwrap()
    }

    async fn pull(&self, rest: &str) -> Result<Arc<Image>, PullError> {
        self.store.pull(&self.reference(rest), None, None).await
    }

    /// Closes the store, as a crash would, and opens it again.
    fn reopen(&mut self) {
        // The lock goes with the last clone, so the old store must go first.
        let elsewhere = tempfile::tempdir().unwrap();
        self.store = ImageStore::open_blocking(config(&elsewhere)).unwrap();
        self.store = ImageStore::open_blocking(config(&self.folder)).unwrap();
    }

    /// Everything in the store's folders, sorted.
    fn contents(&self) -> Vec<String> {
        let mut names = Vec::new();
        for folder in ["images", "layers", "lists", "erofs", "tmp"] {
            for entry in std::fs::read_dir(self.root().join(folder)).unwrap() {
                names.push(format!("{folder}/{}", entry.unwrap().file_name().to_string_lossy()));
            }
        }
        names.sort();
        names
    }

    /// Waits until the store's folders are as they should be, for work that goes on after its caller left.
    async fn eventually(&self, what: &str, is: impl Fn(&World) -> bool) {
        let start = Instant::now();
        while !is(self) {
            assert!(start.elapsed() < Duration::from_secs(10), "{what}: {:?}", self.contents());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn config(folder: &tempfile::TempDir) -> ImagesConfig {
    ImagesConfig {
        root: folder.path().join("images"),
        hosts_dir: folder.path().join("hosts"),
        progress_timeout: Duration::from_secs(10),
        max_layer_bytes: 10 << 20,
        ..ImagesConfig::default()
    }
}

/// A layer with one file.
fn layer(name: &str, content: &[u8]) -> Layer {
    Layer::gzip(&Tar::new().file(name, content).finish())
}

/// A layer of some size that does not compress.
fn noise(seed: u64, bytes: usize) -> Layer {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let mut data = Vec::with_capacity(bytes);
    while data.len() < bytes {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        data.extend_from_slice(&state.to_le_bytes());
    }
    layer("noise", &data)
}

/// An error with all its causes.
fn chain(error: &PullError) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text += &format!(": {cause}");
        next = cause.source();
    }
    text
}

#[tokio::test]
async fn an_image_is_pulled_listed_found_and_removed() {
    let world = World::new().await;
    let image = TestImage::new(vec![layer("a", b"one"), Layer::zstd(&Tar::new().file("b", b"two").finish())]);
    world.registry.push_index("app", "v1", &image);
    let pulled = world.pull("app:v1").await.unwrap();

    let address = world.registry.address();
    assert_eq!(pulled.id.to_string(), image.id());
    assert_eq!(pulled.tags, [format!("{address}/app:v1")]);
    assert_eq!(pulled.digests, [format!("{address}/app@{}", crate::digest::Digest::of(&image.index()))]);
    let blobs = image.layers.iter().map(|layer| layer.blob.len()).sum::<usize>() + image.config.len();
    assert_eq!(pulled.size, blobs as u64);
    assert_eq!(pulled.layers, image.layers.iter().map(|l| l.diff_id.hex().to_owned()).collect::<Vec<_>>());
    assert_eq!(pulled.config.config().as_ref().unwrap().cmd().as_ref().unwrap(), &["/bin/sh"]);
    let file = world.store.layers_dir().join(&pulled.layers[1]).join("b");
    assert_eq!(std::fs::read_to_string(file).unwrap(), "two");

    assert_eq!(world.store.list().len(), 1);
    for text in [format!("{address}/app:v1"), pulled.digests[0].clone(), pulled.id.to_string()] {
        assert_eq!(world.store.resolve(&text).unwrap().id, pulled.id, "{text}");
    }
    assert_eq!(world.contents().len(), 5, "{:?}", world.contents());

    world.store.remove(&pulled.id).await.unwrap();
    assert_eq!(world.contents(), Vec::<String>::new());
    assert!(world.store.list().is_empty() && world.store.resolve(&pulled.id.to_string()).is_none());
    world.store.remove(&pulled.id).await.unwrap();
}

#[tokio::test]
async fn progress_ends_with_every_layer_done() {
    let world = World::new().await;
    let shared = layer("a", b"one");
    let image = TestImage::new(vec![shared.clone(), noise(1, 100_000), shared]);
    world.registry.push("app", "v1", &image);
    let (sender, receiver) = watch::channel(Progress::default());
    world.store.pull(&world.reference("app:v1"), None, Some(sender)).await.unwrap();
    let last = receiver.borrow().clone();
    assert_eq!(last.layers.len(), 3);
    for (layer, expected) in last.layers.iter().zip(&image.layers) {
        assert_eq!(layer.digest, expected.digest);
        assert_eq!((layer.done, layer.total), (expected.blob.len() as u64, expected.blob.len() as u64));
        assert_eq!(layer.state, crate::image::LayerState::Done);
    }
}

#[tokio::test]
async fn a_layer_that_is_there_is_not_downloaded_again() {
    let world = World::new().await;
    let base = layer("base", b"shared");
    world.registry.push("one", "v1", &TestImage::new(vec![base.clone(), layer("one", b"1")]));
    world.registry.push("two", "v1", &TestImage::new(vec![base.clone(), layer("two", b"2")]));
    let one = world.pull("one:v1").await.unwrap();
    world.pull("two:v1").await.unwrap();
    assert_eq!(world.registry.count(base.digest.hex()), 1);
    // One image's removal leaves what the other has.
    world.store.remove(&one.id).await.unwrap();
    assert!(world.store.layers_dir().join(base.diff_id.hex()).join("base").is_file());
    assert_eq!(std::fs::read_dir(world.store.layers_dir()).unwrap().count(), 2);
}

#[tokio::test]
async fn an_image_that_is_up_to_date_costs_one_request() {
    let world = World::new().await;
    world.registry.push_index("app", "v1", &TestImage::new(vec![layer("a", b"one")]));
    let first = world.pull("app:v1").await.unwrap();
    let before = world.registry.requests().len();
    let second = world.pull("app:v1").await.unwrap();
    assert_eq!(first.id, second.id);
    let after = world.registry.requests();
    assert_eq!(after.len(), before + 1);
    assert_eq!(after.last().unwrap().method, "HEAD");
}

#[tokio::test]
async fn usage_is_what_du_says() {
    let world = World::new().await;
    let many = (0..50).fold(Tar::new().folder("d"), |tar, n| tar.file(&format!("d/{n}"), &vec![1; n * 300]));
    world.registry.push(
        "app",
        "v1",
        &TestImage::new(vec![Layer::gzip(&many.finish()), layer("x/y/z", b"1")]),
    );
    world.pull("app:v1").await.unwrap();
    let (mut bytes, mut inodes) = (0, 0);
    let mut todo = vec![world.root()];
    while let Some(path) = todo.pop() {
        let stat = std::fs::symlink_metadata(&path).unwrap();
        bytes += std::os::unix::fs::MetadataExt::blocks(&stat) * 512;
        inodes += 1;
        if stat.is_dir() {
            todo.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
    }
    let usage = world.store.usage();
    assert_eq!(usage.inodes, inodes);
    let off = usage.bytes.abs_diff(bytes);
    assert!(off * 10 < bytes, "{} instead of {bytes}", usage.bytes);
}

#[tokio::test]
async fn a_second_store_on_the_same_folder_is_refused() {
    let world = World::new().await;
    let error = ImageStore::open_blocking(config(&world.folder)).unwrap_err();
    assert!(matches!(error, OpenError::InUse { .. }), "{error}");
}
