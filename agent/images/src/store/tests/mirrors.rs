//! `hosts.toml`: who is asked in which order.

use super::*;
use crate::testing::registry::Reply;

impl World {
    fn hosts_toml(&self, folder: &str, text: &str) {
        let folder = self.folder.path().join("hosts").join(folder);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("hosts.toml"), text).unwrap();
    }
}

fn image() -> TestImage {
    TestImage::new(vec![layer("a", b"one")])
}

#[tokio::test]
async fn mirrors_are_asked_in_order_and_the_error_tells_what_each_said() {
    let world = World::new().await;
    let second = FakeRegistry::start().await;
    let upstream = FakeRegistry::start().await;
    second.hook(|_| Some(Reply::new(503, "")));
    let first = world.registry.address();
    // Sorted by name, the order would be another one.
    let (one, two) = (format!("http://{first}/z"), format!("http://{}/a", second.address()));
    world.hosts_toml(
        "reg.example",
        &format!("server = \"http://{}\"\n[host.\"{one}\"]\n[host.\"{two}\"]\n", upstream.address()),
    );
    let reference: Reference = "reg.example/app".parse().unwrap();
    let error = world.store.pull(&reference, None, None).await.unwrap_err();
    assert!(matches!(error, PullError::NotFound { .. }), "{error}");
    let expected = format!(
        "http://{first}: 404 Not Found: page unknown; http://{}: 503 Service Unavailable; http://{}: 404 Not Found: manifest unknown",
        second.address(),
        upstream.address()
    );
    assert!(error.to_string().ends_with(&expected), "{error}");
    assert_eq!(world.registry.requests()[0].target, "/z/v2/app/manifests/latest?ns=reg.example");
    assert_eq!(upstream.requests()[0].target, "/v2/app/manifests/latest");
}

#[tokio::test]
async fn a_mirror_is_enough_and_gets_no_credentials() {
    let world = World::new().await;
    world.registry.push("app", "latest", &image());
    let mirror = format!("http://{}", world.registry.address());
    world.hosts_toml(
        "reg.example_8443_",
        &format!("[host.\"{mirror}\"]\n[host.\"{mirror}\".header]\nx-team = \"blue\"\n"),
    );
    let reference: Reference = "reg.example:8443/app".parse().unwrap();
    let pulled = world.store.pull(&reference, Some(Auth::password("me", "pw")), None).await.unwrap();
    assert_eq!(pulled.tags, ["reg.example:8443/app:latest"]);
    for request in world.registry.requests() {
        assert_eq!(request.header("authorization"), "");
        assert_eq!(request.header("x-team"), "blue");
        assert!(request.target.ends_with("?ns=reg.example%3A8443"), "{}", request.target);
    }
}

#[tokio::test]
async fn settings_are_read_again_for_each_pull() {
    let world = World::new().await;
    world.registry.push("app", "latest", &image());
    let reference: Reference = "reg.example/app".parse().unwrap();
    world.hosts_toml("_default", "server = \"http://127.0.0.1:1\"");
    let error = world.store.pull(&reference, None, None).await.unwrap_err();
    assert!(error.to_string().contains("http://127.0.0.1:1"), "{error}");
    world.hosts_toml("_default", &format!("server = \"http://{}\"", world.registry.address()));
    world.store.pull(&reference, None, None).await.unwrap();
}

#[tokio::test]
async fn a_mirror_that_sends_wrong_bytes_is_passed_over() {
    let world = World::new().await;
    let upstream = FakeRegistry::start().await;
    let image = image();
    upstream.push("app", "latest", &image);
    world.registry.push("app", "latest", &image);
    let mut wrong = image.layers[0].blob.clone();
    wrong[10] ^= 1;
    world.registry.set_blob(&image.layers[0].digest, &wrong);
    let mirror = format!(
        "server = \"http://{}\"\n[host.\"http://{}\"]\n",
        upstream.address(),
        world.registry.address()
    );
    world.hosts_toml("reg.example", &mirror);
    let reference: Reference = "reg.example/app".parse().unwrap();
    world.store.pull(&reference, None, None).await.unwrap();
    assert_eq!(world.registry.count(image.layers[0].digest.hex()), 1);
    assert_eq!(upstream.count(image.layers[0].digest.hex()), 1);
}

#[tokio::test]
async fn a_mirror_without_resolve_is_asked_for_content_only() {
    let world = World::new().await;
    let upstream = FakeRegistry::start().await;
    let image = image();
    upstream.push_manifest("app", "latest", crate::testing::image::MANIFEST, &image.manifest);
    world.registry.push("app", "latest", &image);
    let mirror = format!(
        "server = \"http://{}\"\n[host.\"http://{}\"]\ncapabilities = [\"pull\"]\n",
        upstream.address(),
        world.registry.address()
    );
    world.hosts_toml("reg.example", &mirror);
    world.store.pull(&"reg.example/app".parse().unwrap(), None, None).await.unwrap();
    assert_eq!((upstream.count("/manifests/latest"), world.registry.count("/manifests/latest")), (1, 0));
    assert_eq!((upstream.count("/blobs/"), world.registry.count("/blobs/")), (0, 2));
}

#[tokio::test]
async fn a_download_goes_on_at_the_next_host() {
    let world = World::with(|config| config.progress_timeout = Duration::from_millis(300)).await;
    let upstream = FakeRegistry::start().await;
    let big = noise(20, 100_000);
    let image = TestImage::new(vec![big.clone()]);
    upstream.push("app", "latest", &image);
    world.registry.push("app", "latest", &image);
    let (digest, blob) = (big.digest.to_string(), big.blob.clone());
    world.registry.hook(move |request| {
        request.target.contains(&digest).then(|| Reply::new(200, blob.clone()).stall(60_000))
    });
    let mirror = format!(
        "server = \"http://{}\"\n[host.\"http://{}\"]\n",
        upstream.address(),
        world.registry.address()
    );
    world.hosts_toml("reg.example", &mirror);
    world.store.pull(&"reg.example/app".parse().unwrap(), None, None).await.unwrap();
    let rest =
        upstream.requests().into_iter().find(|request| request.target.contains(big.digest.hex())).unwrap();
    assert_eq!(rest.range_start(), Some(60_000));
}

#[tokio::test]
async fn broken_settings_are_an_error_that_names_the_file() {
    let world = World::new().await;
    world.hosts_toml("reg.example", "server = [");
    let error = world.store.pull(&"reg.example/app".parse().unwrap(), None, None).await.unwrap_err();
    assert!(matches!(error, PullError::Settings { .. }), "{error}");
    assert!(chain(&error).contains("reg.example/hosts.toml"), "{}", chain(&error));
}
